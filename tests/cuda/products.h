// Products for Hopper against double precision, and against themselves.
#pragma once

#include "attention.h"
#include "batch.h"

namespace {

using Multiply = void (*)(const TensorMap, const TensorMap, void*, Product);

struct Width {
    int outputs;  // of a block
    Multiply plain, gated;
    int stage, stages;
    int rows = X_ROWS;
    unsigned threads = 160;
};

// The longest ring of so many bytes, but of two stages; the host has one of 200 KiB and one of 110.
constexpr int stages_of(int bytes, int stage) { return std::clamp(bytes / stage, 2, 24); }

#define WIDTH(OUTPUTS, GATED) Width{OUTPUTS, few_rows_##OUTPUTS, GATED, STAGE_BYTES<OUTPUTS>, stages_of(200 << 10, STAGE_BYTES<OUTPUTS>)}
const Width WIDTHS[] = {WIDTH(8, nullptr), WIDTH(16, few_rows_gated_16), WIDTH(32, few_rows_gated_32), WIDTH(48, few_rows_gated_48),
                        WIDTH(64, few_rows_gated_64), WIDTH(96, few_rows_gated_96), WIDTH(128, few_rows_gated_128),
                        WIDTH(192, few_rows_gated_192)};

// Twice as many rows to a block.
#define TALL(OUTPUTS) \
    Width{OUTPUTS, tall_rows_##OUTPUTS, tall_rows_gated_##OUTPUTS, STAGE_BYTES<OUTPUTS, 128>, stages_of(200 << 10, STAGE_BYTES<OUTPUTS, 128>), 128, 288}
const Width TALL_WIDTHS[] = {TALL(32), TALL(48), TALL(64), TALL(96)};

#define MANY_WIDTH(OUTPUTS) Width{OUTPUTS, many_rows_##OUTPUTS, many_rows_gated_##OUTPUTS, Wheel<OUTPUTS>::BYTES, Wheel<OUTPUTS>::STAGES}
const Width MANY_WIDTHS[] = {MANY_WIDTH(64), MANY_WIDTH(128), MANY_WIDTH(256),
                             {192, nullptr, many_rows_gated_192, Wheel<192>::BYTES, Wheel<192>::STAGES}};

// y as it was before, and what a product of so many outputs makes of it.
struct Trial {
    const std::vector<bf16>&x, &w;
    int into, rows, outputs, depth;

    std::vector<float> by(Multiply kernel, Dim grid, unsigned threads, size_t shared, int stages, int x_tile, int w_tile, int of_w, unsigned cluster, int parts = 0, unsigned panels = 0) const {
        std::vector<bf16> narrow(rows * outputs, 0x7fc0);
        std::vector<float> wider(rows * outputs);
        for (size_t i = 0; i < wider.size(); ++i) wider[i] = static_cast<float>(i % 13);
        TensorMap x_map, w_map;
        // Of few rows by panels, of which w has ups beside gates.
        equal("the matrices can be mapped",
              parts ? shim::encode_panels(x_map, x.data(), rows, depth, x_tile, 1, 0, panels) && shim::encode_panels(w_map, w.data(), of_w, depth, w_tile, parts, outputs, panels)
                    : shim::encode(x_map, x.data(), depth, rows, depth * 2, DEPTH, x_tile) && shim::encode(w_map, w.data(), depth, of_w, depth * 2, DEPTH, w_tile));
        void* y = into == INTO_ROWS ? static_cast<void*>(narrow.data()) : wider.data();
        Product product{into, rows, outputs, depth, stages, x_tile};
        shim::launch(grid, {threads}, 1024 + shared, [&] { kernel(x_map, w_map, y, product); }, cluster, true);
        for (size_t i = 0; i < narrow.size() && into == INTO_ROWS; ++i) wider[i] = from_bf16(narrow[i]);
        return wider;
    }

    std::vector<float> of_few(const Width& width, bool gated = false, int stages = 0) const {
        int of_w = outputs * (gated ? 2 : 1);
        Dim grid{static_cast<unsigned>(of_w / width.outputs), static_cast<unsigned>((rows + width.rows - 1) / width.rows)};
        if (stages == 0) stages = width.stages;
        size_t shared = stages * (width.stage + 2 * sizeof(Barrier));
        return by(gated ? width.gated : width.plain, grid, width.threads, shared, stages, std::min(width.rows, (rows + 7) / 8 * 8), width.outputs / (gated ? 2 : 1), of_w, 1, gated ? 2 : 1, width.outputs <= 32 ? 2 : 1);
    }

    std::vector<float> of_many(int width, unsigned clusters, bool gated = false) const {
        const Width& of = *std::find_if(std::begin(MANY_WIDTHS), std::end(MANY_WIDTHS), [&](const Width& one) { return one.outputs == width; });
        size_t shared = of.stages * (of.stage + 2 * sizeof(Barrier)) + GROUPS * sizeof(Barrier) + 2 * HEAD * sizeof(float);
        int of_w = outputs * (gated ? 2 : 1);
        return by(gated ? of.gated : of.plain, {clusters * CLUSTER}, MANY_THREADS, shared, 0, TILE, width / CLUSTER, of_w, CLUSTER);
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
        int around = ((few ? 1 : 2) * width.stages + 3) * 2 * DEPTH;
        for (auto [rows, depth] : {std::pair{1, 64}, {64, around}, {70, 64 * 3}, {130, 128}}) {
            if (few && (rows != 64 || width.outputs > 64 || width.outputs % 32 != 16)) continue;
            int outputs = CLUSTER * width.outputs * (rows == 70 ? 2 : 1);
            std::vector<bf16> x = halves(rows * depth, 0.3f), w = halves(outputs * depth, 0.3f);
            std::string name = "product " + std::to_string(width.outputs) + " of " + std::to_string(rows) + " x " + std::to_string(depth);
            for (int into : {INTO_ROWS, INTO_WIDE, INTO_SUM}) {
                if (few && into != INTO_ROWS) continue;
                Trial trial{x, w, into, rows, outputs, depth};
                std::vector<float> found = trial.of_few(width);
                compare_product(name, trial, found);
                // By a short ring, and by blocks of another width, the same bits.
                int stages = stages_of(110 << 10, width.stage);
                equal(name + " by a short ring", trial.of_few(width, false, stages) == found);
                if (into == INTO_WIDE) equal(name + " by another width", trial.of_few(WIDTHS[0]) == found);
                if (into != INTO_ROWS || width.gated == nullptr) continue;
                std::vector<float> once = Trial{x, w, into, rows, outputs / 2, depth}.of_few(width, true);
                equal(name + ", gated at once", once == gated_apart(found, rows, outputs / 2));
                equal(name + ", gated by a short ring", Trial{x, w, into, rows, outputs / 2, depth}.of_few(width, true, stages) == once);
            }
        }
    }
}

// By blocks of other heights the bits of products of few rows. Rows of a block that is not whole, and of more than one.
void products_by_taller_blocks() {
    std::vector<std::pair<Width, bool>> all;
    for (const Width& width : TALL_WIDTHS) all.push_back({width, false}), all.push_back({width, true});
    for (auto [width, gated] : all) {
        int around = ((few ? 1 : 2) * width.stages + 3) * 2 * DEPTH;
        for (auto [rows, depth] : {std::pair{1, 64}, {65, around}, {150, 64 * 3}, {103, 128}}) {
            if (few && (rows != 65 || width.outputs != 32)) continue;
            int outputs = width.outputs * (rows == 150 ? 2 : 3) / (gated ? 2 : 1);
            std::vector<bf16> x = halves(rows * depth, 0.3f), w = halves(outputs * (gated ? 2 : 1) * depth, 0.3f);
            std::string name = "product " + std::to_string(width.outputs) + " of " + std::to_string(width.rows) + " of " + std::to_string(rows) + " x " + std::to_string(depth);
            for (int into : {INTO_ROWS, INTO_WIDE, INTO_SUM}) {
                if (into != INTO_ROWS && (gated || (few && into != INTO_SUM))) continue;
                Trial trial{x, w, into, rows, outputs, depth};
                std::vector<float> found = trial.of_few(width, gated);
                if (!gated) compare_product(name, trial, found);
                if (few) continue;
                equal(name + " as by 64", trial.of_few(WIDTHS[gated ? 1 : 0], gated) == found);
                equal(name + " by a short ring", trial.of_few(width, gated, stages_of(110 << 10, width.stage)) == found);
            }
        }
    }
}

// Fewer tiles than warpgroups, many for each; depths of less than a ring, of more, and not of whole stages.
void products_of_many_rows() {
    for (auto [width, rows, outputs, depth, clusters] :
         {std::tuple{128, 257, 256, 200, 1u}, {128, 130, 128, 64, 2u}, {128, 300, 384, 64 * 7, 2u}, {128, 64, 128, 64 * 13, 3u},
          {64, 257, 192, 64 * 11, 1u}, {64, 300, 128, 72, 3u}, {256, 257, 512, 64 * 9, 1u}, {256, 300, 256, 72, 2u},
          {256, 64, 256, 64 * 3, 1u}, {256, 600, 512, 64 * 5, 2u}, {192, 257, 384, 64 * 9, 1u}, {192, 300, 384, 72, 2u},
          {192, 64, 768, 64 * 6, 1u}}) {
        // One of each width, with more tiles than blocks and more depth than a ring.
        if (few && (clusters != 1 || rows != 257)) continue;
        std::vector<bf16> x = halves(rows * depth, 0.3f), w = halves(outputs * depth, 0.3f);
        std::string name = "product " + std::to_string(width) + " of " + std::to_string(rows) + " x " + std::to_string(depth);
        for (int into : {INTO_ROWS, INTO_WIDE, INTO_SUM}) {
            if (few && into != INTO_ROWS) continue;
            Trial trial{x, w, into, rows, outputs, depth};
            // Of 192 there are gates alone.
            std::vector<float> found = trial.of_many(width == 192 ? 128 : width, clusters);
            compare_product(name, trial, found);
            if (!few && depth % DEPTH == 0) equal(name + " as of few rows", trial.of_few(WIDTHS[1]) == found);
            if (into != INTO_ROWS) continue;
            std::vector<float> once = Trial{x, w, into, rows, outputs / 2, depth}.of_many(width, clusters, true);
            equal(name + ", gated at once", once == gated_apart(found, rows, outputs / 2));
        }
    }
}

using MultiplyTurned = void (*)(const TensorMap, const TensorMap, bf16*, Product, Turned);

// What attention makes of queries, `heads` of them in rows of `stride`, in place.
void turn_by_attention(const Batch& batch, const Turn& turn, bf16* rows, int count, int stride, int heads) {
    shim::launch({static_cast<unsigned>((count + 15) / 16), static_cast<unsigned>(heads)}, {32}, 0, [&] {
        Rows<HEAD> held = {};
        Angles<HEAD / 16> angles;
        for (int half = 0; half < 2; ++half) {
            int row = std::min(static_cast<int>(blockIdx.x * 16 + threadIdx.x / 4) + 8 * half, count - 1), head = blockIdx.y;
            bf16* at = rows + static_cast<size_t>(row) * stride + head * HEAD;
            read_queries<HEAD>(held, half, at);
            read_angles_of<HEAD>(angles, turn, batch.positions[row]);
            turn_queries<HEAD>(held, half, turn, angles, head);
            // Who does as the last row must not write it twice.
            if (static_cast<int>(blockIdx.x * 16 + threadIdx.x / 4) + 8 * half >= count) continue;
            for (int p = 0; p < HEAD / 8; ++p) memcpy(at + p * 8 + threadIdx.x % 4 * 2, &held.queries[p / 2][half + p % 2 * 2], 4);
        }
    });
}

// Queries, keys and values as their product turns them, and as `rotate` and attention do: the same bits, there and in the
// cache. Fewer rows in the plan than in the product, as in a graph for more.
void turned_products() {
    constexpr int LAYER = 1, LAYERS = 2, SLOTS_THERE = 48;
    for (auto [query_heads, kv_heads, rows, spare, depth, biased, normed] :
         {std::tuple{2, 1, 20, 3, 64 * 17, false, true}, {4, 1, 1, 15, 64, true, true}, {0, 2, 130, 0, 64 * 4, true, false}, {2, 3, 300, 20, 64 * 3, false, true},
          {2, 2, 290, 9, 64 * 16, false, true}, {2, 1, 300, 5, 64 * 16, false, true}, {2, 1, 150, 0, 64 * 18, false, false}, {2, 1, 140, 0, 64 * 16, true, true}}) {
        if (few && rows != 20) continue;
        int heads = query_heads + 2 * kv_heads, outputs = heads * HEAD, all = rows + spare;
        Batch batch;
        batch.past = 7;
        batch.add(-1, rows);
        for (int i = 1; i < std::min(rows, SLOTS_THERE); i += 2) batch.slots[i] = SLOTS_THERE - 1 - i;
        batch.plan(1);
        Turning turning(HEAD, heads, rows + 8, biased, normed), of_keys(HEAD, 0, rows + 8, false, normed);
        of_keys.angles = turning.angles;
        Turn turn = turning.turn();
        std::vector<bf16> x = halves(all * depth, 0.3f), w = halves(outputs * depth, 0.3f);
        size_t cached = static_cast<size_t>(SLOTS_THERE) * LAYERS * 2 * kv_heads * HEAD;

        Trial trial{x, w, INTO_ROWS, all, outputs, depth};
        std::vector<bf16> apart, cache_apart(cached, 0);
        for (float value : trial.of_few(WIDTHS[4])) apart.push_back(to_bf16(value));
        std::vector<bf16> product = apart;
        turn_by_attention(batch, turn, apart.data(), rows, outputs, query_heads);
        Rotation shape{outputs, kv_heads, LAYER, LAYERS, turn.epsilon};
        const float *bias = biased ? turn.bias + query_heads * HEAD : nullptr, *key_norm = of_keys.turn().norm;
        shim::launch({static_cast<unsigned>(rows), static_cast<unsigned>((2 * kv_heads * HEAD + 2047) / 2048)}, {256}, 0, [&] {
            rotate_128(batch.words.data(), shape, apart.data() + query_heads * HEAD, bias, key_norm, turn.angles, cache_apart.data());
        }, 1, true);
        apart.resize(static_cast<size_t>(rows) * outputs);

        std::string name = "turned product of " + std::to_string(rows) + " x " + std::to_string(depth);
        Turned turned{batch.words.data(), turn.bias, turn.norm, key_norm, turn.angles, nullptr, query_heads, kv_heads, LAYER, LAYERS, turn.epsilon};
        auto check = [&](const std::string& how, MultiplyTurned kernel, Dim grid, unsigned threads, size_t shared, int stages, int x_tile, int w_tile, unsigned cluster, bool by_panels) {
            std::vector<bf16> y(static_cast<size_t>(all) * outputs, 0x7fc0), cache(cached, 0);
            TensorMap x_map, w_map;
            equal("the matrices can be mapped",
                  by_panels ? shim::encode_panels(x_map, x.data(), all, depth, x_tile, 1, 0, 1) && shim::encode_panels(w_map, w.data(), outputs, depth, w_tile, 2, HEAD / 2, 1)
                            : shim::encode(x_map, x.data(), depth, all, depth * 2, DEPTH, x_tile) && shim::encode(w_map, w.data(), depth, outputs, depth * 2, DEPTH, w_tile));
            Turned here = turned;
            here.cache = cache.data();
            shim::launch(grid, {threads}, 1024 + shared, [&] { kernel(x_map, w_map, y.data(), {INTO_ROWS, all, outputs, depth, stages, x_tile}, here); }, cluster, true);
            y.resize(apart.size());
            equal(name + how, y == apart);
            equal(name + how + ", what is kept", cache == cache_apart);
        };
        unsigned row_tiles = (all + X_ROWS - 1) / X_ROWS;
        auto by_few = [&](const std::string& how, MultiplyTurned kernel, int width, int stage) {
            for (int bytes : {110 << 10, 200 << 10}) {
                int stages = stages_of(bytes, stage);
                size_t shared = stages * (stage + 2 * sizeof(Barrier)) + X_ROWS * sizeof(float);
                check(how, kernel, {static_cast<unsigned>(outputs / width), row_tiles}, 160, shared, stages, X_ROWS, width / 2, width == HEAD ? 1 : CLUSTER, true);
            }
        };
        by_few(" by halves of heads", few_rows_turned_64, 64, STAGE_BYTES<64>);
        by_few(" by heads", few_rows_turned_128, 128, STAGE_BYTES<128>);
        auto by_many = [&](const std::string& how, MultiplyTurned kernel, int width, unsigned clusters) {
            const Width& of = MANY_WIDTHS[width / HEAD];
            size_t shared = of.stages * (of.stage + 2 * sizeof(Barrier)) + GROUPS * sizeof(Barrier) + 2 * HEAD * sizeof(float);
            check(how, kernel, {clusters * CLUSTER}, MANY_THREADS, shared, 0, TILE, width / CLUSTER, CLUSTER, false);
        };
        for (unsigned clusters : {1u, 2u}) {
            by_many(" by tiles", many_rows_turned_128, HEAD, clusters);
            by_many(" by tiles of two heads", many_rows_turned_256, 2 * HEAD, clusters);
        }

        // And they are what they should be.
        std::vector<double> ours, expected;
        for (int row = 0; row < rows; ++row)
            for (int head = 0; head < heads; ++head) {
                const bf16 *was = &product[static_cast<size_t>(row) * outputs + head * HEAD], *is = &apart[static_cast<size_t>(row) * outputs + head * HEAD];
                Turning of = turning;
                if (head >= query_heads) of.norm = of_keys.norm;
                for (double value : of.of(was, head, batch.positions[row], head >= query_heads + kv_heads)) expected.push_back(value);
                for (int i = 0; i < HEAD; ++i) ours.push_back(wide(is[i]));
            }
        compare(name, ours, expected, 0.03);
    }
}

}  // namespace
