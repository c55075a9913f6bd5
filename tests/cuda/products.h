// Products for Hopper against double precision, and against themselves.
#pragma once

namespace {

using FewRows = void (*)(const TensorMap, const TensorMap, void*, int, int, int, int);

struct Width {
    int outputs;  // of a block
    FewRows kernel;
    int stage, stages;
};

#define WIDTH(OUTPUTS) Width{OUTPUTS, few_rows_##OUTPUTS, Ring<OUTPUTS>::BYTES, Ring<OUTPUTS>::STAGES}

// y as it was before, and what the product makes of it.
std::vector<float> multiply(const Width& width, const std::vector<bf16>& x, const std::vector<bf16>& w, int into, int rows,
                            int outputs, int depth) {
    std::vector<bf16> narrow(rows * outputs, 0x7fc0);
    std::vector<float> wider(rows * outputs);
    for (size_t i = 0; i < wider.size(); ++i) wider[i] = static_cast<float>(i % 13);
    TensorMap x_map, w_map;
    equal("the matrices can be mapped", shim::encode(x_map, x.data(), depth, rows, depth * 2, DEPTH, X_ROWS / CLUSTER) &&
                                            shim::encode(w_map, w.data(), depth, outputs, depth * 2, DEPTH, width.outputs));
    void* y = into == INTO_ROWS ? static_cast<void*>(narrow.data()) : wider.data();
    Dim grid{static_cast<unsigned>(outputs / width.outputs), static_cast<unsigned>((rows + X_ROWS - 1) / X_ROWS)};
    size_t shared = 1024 + width.stages * (width.stage + 2 * sizeof(Barrier));
    shim::launch(grid, {160}, shared, [&] { width.kernel(x_map, w_map, y, into, rows, outputs, depth); }, CLUSTER, true);
    for (size_t i = 0; i < narrow.size() && into == INTO_ROWS; ++i) wider[i] = from_bf16(narrow[i]);
    return wider;
}

std::vector<float> multiply_many(bool gated, const std::vector<bf16>& x, const std::vector<bf16>& w, int into, int rows,
                                 int outputs, int depth, unsigned clusters) {
    std::vector<bf16> narrow(rows * outputs, 0x7fc0);
    std::vector<float> wider(rows * outputs);
    for (size_t i = 0; i < wider.size(); ++i) wider[i] = static_cast<float>(i % 13);
    TensorMap x_map, w_map;
    int of_w = outputs * (gated ? 2 : 1);
    equal("the matrices can be mapped", shim::encode(x_map, x.data(), depth, rows, depth * 2, DEPTH, TILE) &&
                                            shim::encode(w_map, w.data(), depth, of_w, depth * 2, DEPTH, HALF_TILE));
    void* y = into == INTO_ROWS ? static_cast<void*>(narrow.data()) : wider.data();
    size_t shared = 1024 + MANY_STAGES * (MANY_BYTES + 2 * sizeof(Barrier)) + GROUPS * sizeof(Barrier);
    Product product{into, rows, outputs, depth};
    auto kernel = gated ? many_rows_gated : many_rows_plain;
    shim::launch({clusters * CLUSTER}, {128 * GROUPS + 32}, shared, [&] { kernel(x_map, w_map, y, product); }, CLUSTER, true);
    for (size_t i = 0; i < narrow.size() && into == INTO_ROWS; ++i) wider[i] = from_bf16(narrow[i]);
    return wider;
}

// Fewer tiles than warpgroups, many for each; depths of less than a ring, of more, and not of whole stages.
void products_of_many_rows() {
    for (auto [rows, outputs, depth, clusters] :
         {std::tuple{257, 256, 200, 1u}, {130, 128, 64, 2u}, {300, 384, 64 * 7, 2u}, {64, 128, 64 * 13, 3u}}) {
        std::vector<bf16> x = halves(rows * depth, 0.3f), w = halves(2 * outputs * depth, 0.3f);
        std::vector<double> sums;
        for (int row = 0; row < rows; ++row)
            for (int output = 0; output < 2 * outputs; ++output) {
                double sum = 0;
                for (int d = 0; d < depth; ++d) sum += wide(x[row * depth + d]) * wide(w[output * depth + d]);
                sums.push_back(sum);
            }
        auto of = [&, outputs = outputs](size_t i, int more) { return sums[i / outputs * 2 * outputs + i % outputs + more]; };
        std::string name = "product of " + std::to_string(rows) + " x " + std::to_string(depth);
        std::vector<bf16> first(w.begin(), w.begin() + outputs * depth);
        for (int into : {INTO_ROWS, INTO_WIDE, INTO_SUM}) {
            std::vector<float> found = multiply_many(false, x, first, into, rows, outputs, depth, clusters);
            std::vector<double> ours(found.begin(), found.end()), expected;
            for (size_t i = 0; i < ours.size(); ++i) {
                expected.push_back(of(i, 0));
                if (into == INTO_SUM) ours[i] -= static_cast<double>(i % 13);
            }
            compare(name, ours, expected, into == INTO_ROWS ? 0.02 : 2e-5);
            Width few = WIDTH(32);
            equal(name + " as of few rows", into == INTO_SUM || multiply(few, x, first, into, rows, outputs, depth) == found);
        }
        // Gates and ups at once: the bits that a product and a kernel for the gates give.
        Batch batch;
        batch.add(-1, rows);
        batch.plan(1);
        std::vector<float> both = multiply_many(false, x, w, INTO_ROWS, rows, 2 * outputs, depth, clusters);
        std::vector<float> once = multiply_many(true, x, w, INTO_ROWS, rows, outputs, depth, clusters);
        std::vector<bf16> narrow, activated(rows * outputs);
        for (float value : both) narrow.push_back(to_bf16(value));
        shim::launch({static_cast<unsigned>(rows), 1}, {128}, 0, [&, outputs = outputs] {
            silu_mul(batch.words.data(), ROWS, narrow.data(), 0, nullptr, activated.data(), nullptr, outputs);
        });
        bool same = true;
        for (size_t i = 0; i < once.size(); ++i) same &= once[i] == from_bf16(activated[i]);
        equal(name + ", gated at once", same);
    }
}

void products_of_few_rows() {
    const Width widths[] = {WIDTH(8), WIDTH(16), WIDTH(32), WIDTH(48), WIDTH(64), WIDTH(96), WIDTH(128), WIDTH(192)};
    for (const Width& width : widths) {
        // Depths within a ring, around it more than once, and not of whole stages.
        int around = (2 * width.stages + 3) * DEPTH;
        for (auto [rows, depth] : {std::pair{1, 64}, {64, around}, {70, 200}, {130, 72}}) {
            int outputs = 2 * width.outputs * (rows == 70 ? 2 : 1);
            std::vector<bf16> x = halves(rows * depth), w = halves(outputs * depth);
            std::vector<double> expected;
            for (int row = 0; row < rows; ++row)
                for (int output = 0; output < outputs; ++output) {
                    double sum = 0;
                    for (int d = 0; d < depth; ++d) sum += wide(x[row * depth + d]) * wide(w[output * depth + d]);
                    expected.push_back(sum);
                }
            std::string name = "product " + std::to_string(width.outputs) + " of " + std::to_string(rows) + " x " + std::to_string(depth);
            for (int into : {INTO_ROWS, INTO_WIDE, INTO_SUM}) {
                std::vector<float> found = multiply(width, x, w, into, rows, outputs, depth);
                std::vector<double> ours(found.begin(), found.end());
                for (size_t i = 0; i < ours.size() && into == INTO_SUM; ++i) ours[i] -= static_cast<double>(i % 13);
                compare(name, ours, expected, into == INTO_ROWS ? 0.02 : 2e-5);
                if (into != INTO_WIDE || width.outputs != 16) continue;
                // By blocks of another width the same bits.
                equal(name + " by another width", multiply(widths[0], x, w, into, rows, outputs, depth) == found);
            }
        }
    }
}

}  // namespace
