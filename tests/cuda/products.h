// Products for Hopper against double precision, and against themselves.
#pragma once

namespace {

using Multiply = void (*)(const TensorMap, const TensorMap, void*, Product);

struct Width {
    int outputs;  // of a block
    Multiply plain, gated;
    int stage, stages;
};

#define WIDTH(OUTPUTS, GATED) Width{OUTPUTS, few_rows_##OUTPUTS, GATED, Ring<OUTPUTS>::BYTES, Ring<OUTPUTS>::STAGES}
const Width WIDTHS[] = {WIDTH(8, nullptr), WIDTH(16, few_rows_gated_16), WIDTH(32, few_rows_gated_32), WIDTH(48, few_rows_gated_48),
                        WIDTH(64, few_rows_gated_64), WIDTH(96, few_rows_gated_96), WIDTH(128, few_rows_gated_128),
                        WIDTH(192, few_rows_gated_192)};

#define MANY_WIDTH(OUTPUTS) Width{OUTPUTS, many_rows_##OUTPUTS, many_rows_gated_##OUTPUTS, Wheel<OUTPUTS>::BYTES, Wheel<OUTPUTS>::STAGES}
const Width MANY_WIDTHS[] = {MANY_WIDTH(64), MANY_WIDTH(128), MANY_WIDTH(256)};

// y as it was before, and what a product of so many outputs makes of it.
struct Trial {
    const std::vector<bf16>&x, &w;
    int into, rows, outputs, depth;

    std::vector<float> by(Multiply kernel, Dim grid, unsigned threads, size_t shared, int x_tile, int w_tile, int of_w) const {
        std::vector<bf16> narrow(rows * outputs, 0x7fc0);
        std::vector<float> wider(rows * outputs);
        for (size_t i = 0; i < wider.size(); ++i) wider[i] = static_cast<float>(i % 13);
        TensorMap x_map, w_map;
        equal("the matrices can be mapped", shim::encode(x_map, x.data(), depth, rows, depth * 2, DEPTH, x_tile) &&
                                                shim::encode(w_map, w.data(), depth, of_w, depth * 2, DEPTH, w_tile));
        void* y = into == INTO_ROWS ? static_cast<void*>(narrow.data()) : wider.data();
        Product product{into, rows, outputs, depth};
        shim::launch(grid, {threads}, 1024 + shared, [&] { kernel(x_map, w_map, y, product); }, CLUSTER, true);
        for (size_t i = 0; i < narrow.size() && into == INTO_ROWS; ++i) wider[i] = from_bf16(narrow[i]);
        return wider;
    }

    std::vector<float> of_few(const Width& width, bool gated = false) const {
        int of_w = outputs * (gated ? 2 : 1);
        Dim grid{static_cast<unsigned>(of_w / width.outputs), static_cast<unsigned>((rows + X_ROWS - 1) / X_ROWS)};
        size_t shared = width.stages * (width.stage + 2 * sizeof(Barrier));
        return by(gated ? width.gated : width.plain, grid, 160, shared, X_ROWS / CLUSTER, width.outputs / (gated ? 2 : 1), of_w);
    }

    std::vector<float> of_many(int width, unsigned clusters, bool gated = false) const {
        const Width& of = width == 256 ? MANY_WIDTHS[2] : width == 128 ? MANY_WIDTHS[1] : MANY_WIDTHS[0];
        size_t shared = of.stages * (of.stage + 2 * sizeof(Barrier)) + GROUPS * sizeof(Barrier);
        int of_w = outputs * (gated ? 2 : 1);
        return by(gated ? of.gated : of.plain, {clusters * CLUSTER}, 128 * GROUPS + 32, shared, TILE, width / CLUSTER, of_w);
    }
};

std::vector<double> products_of(const std::vector<bf16>& x, const std::vector<bf16>& w, int rows, int outputs, int depth) {
    std::vector<double> sums;
    for (int row = 0; row < rows; ++row)
        for (int output = 0; output < outputs; ++output) {
            double sum = 0;
            for (int d = 0; d < depth; ++d) sum += wide(x[row * depth + d]) * wide(w[output * depth + d]);
            sums.push_back(sum);
        }
    return sums;
}

void compare_product(const std::string& name, const Trial& trial, const std::vector<float>& found) {
    std::vector<double> ours(found.begin(), found.end());
    for (size_t i = 0; i < ours.size() && trial.into == INTO_SUM; ++i) ours[i] -= static_cast<double>(i % 13);
    compare(name, ours, products_of(trial.x, trial.w, trial.rows, trial.outputs, trial.depth), trial.into == INTO_ROWS ? 0.02 : 2e-5);
}

// What a kernel of its own makes of gates and ups.
std::vector<float> gated_apart(const std::vector<float>& both, int rows, int outputs) {
    Batch batch;
    batch.add(-1, rows);
    batch.plan(1);
    std::vector<bf16> narrow, activated(rows * outputs);
    for (float value : both) narrow.push_back(to_bf16(value));
    shim::launch({static_cast<unsigned>(rows), static_cast<unsigned>((outputs / 4 + 127) / 128)}, {128}, 0, [&] {
        silu_mul(batch.words.data(), ROWS, narrow.data(), 0, nullptr, activated.data(), nullptr, outputs);
    });
    std::vector<float> wider;
    for (bf16 value : activated) wider.push_back(from_bf16(value));
    return wider;
}

// Depths within a ring, around it more than once, and not of whole stages.
void products_of_few_rows() {
    for (const Width& width : WIDTHS) {
        int around = (2 * width.stages + 3) * DEPTH;
        for (auto [rows, depth] : {std::pair{1, 64}, {64, around}, {70, 200}, {130, 72}}) {
            if (few && (rows != 64 || width.outputs > 64 || width.outputs % 32 != 16)) continue;
            int outputs = CLUSTER * width.outputs * (rows == 70 ? 2 : 1);
            std::vector<bf16> x = halves(rows * depth, 0.3f), w = halves(outputs * depth, 0.3f);
            std::string name = "product " + std::to_string(width.outputs) + " of " + std::to_string(rows) + " x " + std::to_string(depth);
            for (int into : {INTO_ROWS, INTO_WIDE, INTO_SUM}) {
                if (few && into != INTO_ROWS) continue;
                Trial trial{x, w, into, rows, outputs, depth};
                std::vector<float> found = trial.of_few(width);
                compare_product(name, trial, found);
                // By blocks of another width the same bits.
                if (into == INTO_WIDE) equal(name + " by another width", trial.of_few(WIDTHS[0]) == found);
                if (into != INTO_ROWS || width.gated == nullptr) continue;
                std::vector<float> once = Trial{x, w, into, rows, outputs / 2, depth}.of_few(width, true);
                equal(name + ", gated at once", once == gated_apart(found, rows, outputs / 2));
            }
        }
    }
}

// Fewer tiles than warpgroups, many for each; depths of less than a ring, of more, and not of whole stages.
void products_of_many_rows() {
    for (auto [width, rows, outputs, depth, clusters] :
         {std::tuple{128, 257, 256, 200, 1u}, {128, 130, 128, 64, 2u}, {128, 300, 384, 64 * 7, 2u}, {128, 64, 128, 64 * 13, 3u},
          {64, 257, 192, 64 * 11, 1u}, {64, 300, 128, 72, 3u}, {256, 257, 512, 64 * 9, 1u}, {256, 300, 256, 72, 2u},
          {256, 64, 256, 64 * 3, 1u}, {256, 600, 512, 64 * 5, 2u}}) {
        std::vector<bf16> x = halves(rows * depth, 0.3f), w = halves(outputs * depth, 0.3f);
        std::string name = "product " + std::to_string(width) + " of " + std::to_string(rows) + " x " + std::to_string(depth);
        for (int into : {INTO_ROWS, INTO_WIDE, INTO_SUM}) {
            if (few && into != INTO_ROWS) continue;
            Trial trial{x, w, into, rows, outputs, depth};
            std::vector<float> found = trial.of_many(width, clusters);
            compare_product(name, trial, found);
            equal(name + " as of few rows", trial.of_few(WIDTHS[1]) == found);
            if (into != INTO_ROWS) continue;
            std::vector<float> once = Trial{x, w, into, rows, outputs / 2, depth}.of_many(width, clusters, true);
            equal(name + ", gated at once", once == gated_apart(found, rows, outputs / 2));
        }
    }
}

}  // namespace
