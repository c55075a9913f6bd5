// Attention, by every kernel of it, against double precision, and against itself.
#pragma once

#include "batch.h"

namespace {

using RowKernel = void (*)(const int*, Attention, Turn, const bf16*, const bf16*, const bf16*, bf16*, bf16*);
using AttentionKernel = void (*)(const int*, Attention, Turn, const bf16*, const bf16*, const bf16*, bf16*);

// What is done to heads before attention.
struct Turning {
    int dim;
    std::vector<float> bias, norm;
    std::vector<TwoAngles> angles;

    Turning(int dim, int heads, int positions, bool biased, bool normed) : dim(dim), angles(positions * dim / 4) {
        if (biased) bias = floats(heads * dim);
        if (normed) norm = floats(dim, 1.0f);
        for (TwoAngles& two : angles) {
            float first = draw(3.0f), second = draw(3.0f);
            two = {{std::cos(first), std::cos(second)}, {std::sin(first), std::sin(second)}};
        }
    }

    Turn turn() const {
        return {bias.empty() ? nullptr : bias.data(), norm.empty() ? nullptr : norm.data(), angles.data(), 1e-6f};
    }

    // A head's vector; with its bias alone if it is a value.
    std::vector<double> of(const bf16* from, int head, int position, bool value = false) const {
        std::vector<double> x(dim), turned(dim);
        double squares = 0;
        for (int i = 0; i < dim; ++i) {
            x[i] = wide(from[i]) + (bias.empty() ? 0.0 : bias[head * dim + i]);
            squares += x[i] * x[i];
        }
        if (value) return x;
        for (int i = 0; i < dim && !norm.empty(); ++i) x[i] *= norm[i] / std::sqrt(squares / dim + 1e-6);
        for (int i = 0; i < dim; ++i) {
            const TwoAngles& two = angles[(static_cast<size_t>(position) * (dim / 2) + i % (dim / 2)) / 2];
            double cosine = i % 2 ? two.cosine.y : two.cosine.x, sine = i % 2 ? two.sine.y : two.sine.x;
            turned[i] = i < dim / 2 ? x[i] * cosine - x[i + dim / 2] * sine : x[i] * cosine + x[i - dim / 2] * sine;
        }
        return turned;
    }
};

static int stages;        // of attention: how many depends on the GPU
static bool hopper;       // whether by the kernels that only Hopper has

size_t attention_shared(int dim) {
    int row = hopper ? dim : dim + 8;
    return (hopper ? 1024 : 0) + stages * 2 * TILE_KEYS * row * sizeof(bf16) + FOUND_TILES * TILE_KEYS * sizeof(Source);
}

AttentionKernel attention_of(int dim) {
    if (hopper) return attention_hopper_128;
    return dim == 32 ? attention_32 : dim == 64 ? attention_64 : attention_128;
}

struct Case {
    std::string name;
    int dim, heads, kv_heads;
    Batch batch;
};

void attention(Case& test) {
    Batch& batch = test.batch;
    int dim = test.dim, heads = test.heads, kv_heads = test.kv_heads, group = heads / kv_heads;
    int rows = static_cast<int>(batch.tokens.size()), layers = 3, layer = 1;
    int spare = (batch.past + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    for (int i = 0; i < spare; ++i) batch.blocks.push_back((i * 5 + 2) % spare);
    std::sort(batch.blocks.begin(), batch.blocks.end());
    std::shuffle(batch.blocks.begin(), batch.blocks.end(), generator);
    // Where the second run's block table begins is a whole block in.
    batch.plan(group);
    int stride = (heads + 2 * kv_heads) * dim;
    std::vector<bf16> qkv = halves(static_cast<size_t>(rows) * stride);
    std::vector<bf16> cache = halves(static_cast<size_t>(spare + 1) * layers * 2 * kv_heads * BLOCK_TOKENS * dim);
    std::vector<bf16> out(static_cast<size_t>(rows) * heads * dim, 0x7fc0);
    Attention shape{TILES, ALL_TILES, stride, stride, kv_heads * dim, heads, kv_heads, layer, layers,
                    1.4426950408889634f / std::sqrt(static_cast<float>(dim)), stages};
    AttentionKernel kernel = attention_of(dim);
    int positions = 1 + *std::max_element(batch.positions.begin(), batch.positions.end());
    Turning turning(dim, heads, positions, heads % 2 == 0, dim != 64);
    size_t shared = attention_shared(dim);
    unsigned tiles = static_cast<unsigned>(batch.tiles.size());
    // Blocks behind the last tile do nothing, as in a graph that was captured for more.
    shim::launch({tiles + 3, static_cast<unsigned>(kv_heads)}, {128}, shared, [&] {
        kernel(batch.words.data(), shape, turning.turn(), qkv.data(), qkv.data() + heads * dim, cache.data(), out.data());
    }, 1, true);
    std::vector<double> expected(out.size());
    for (size_t s = 0; s < batch.segments.size(); ++s) {
        std::vector<const bf16*> keys, values;
        for (int h = 0; h < kv_heads; ++h) {
            keys.clear(), values.clear();
            for (int i = 0; i < batch.past; ++i) {
                int slot = batch.blocks[i / BLOCK_TOKENS] * BLOCK_TOKENS + i % BLOCK_TOKENS;
                size_t place = (static_cast<size_t>(slot / BLOCK_TOKENS) * layers + layer) * 2 * kv_heads;
                keys.push_back(&cache[((place + h) * BLOCK_TOKENS + slot % BLOCK_TOKENS) * dim]);
                values.push_back(&cache[((place + kv_heads + h) * BLOCK_TOKENS + slot % BLOCK_TOKENS) * dim]);
            }
            for (int part : batch.path(static_cast<int>(s)))
                for (int i = 0; i < batch.segments[part].count; ++i) {
                    const bf16* row = &qkv[static_cast<size_t>(batch.segments[part].row + i) * stride];
                    keys.push_back(row + (heads + h) * dim);
                    values.push_back(row + (heads + kv_heads + h) * dim);
                }
            for (int i = 0; i < batch.segments[s].count; ++i)
                for (int g = 0; g < group; ++g) {
                    size_t row = batch.segments[s].row + i;
                    int seen = batch.segments[s].position + i + 1;
                    std::vector<double> query = turning.of(&qkv[row * stride + (h * group + g) * dim], h * group + g, seen - 1);
                    for (double& x : query) x = wide(to_bf16(static_cast<float>(x)));
                    std::vector<double> weights(seen), sums(dim, 0.0);
                    double total = 0;
                    for (int k = 0; k < seen; ++k) {
                        double dot = 0;
                        for (int d = 0; d < dim; ++d) dot += query[d] * wide(keys[k][d]);
                        total += weights[k] = std::exp(dot / std::sqrt(static_cast<double>(dim)));
                    }
                    for (int k = 0; k < seen; ++k)
                        for (int d = 0; d < dim; ++d) sums[d] += weights[k] / total * wide(values[k][d]);
                    std::copy(sums.begin(), sums.end(), &expected[(row * heads + h * group + g) * dim]);
                }
        }
    }
    compare("attention " + test.name, doubles(out), expected, 0.05);

    if (batch.answers.empty()) return;
    // The answers alone, their queries packed.
    std::vector<bf16> queries, alone(batch.answers.size() * heads * dim, 0x7fc0);
    for (int row : batch.answers)
        queries.insert(queries.end(), &qkv[static_cast<size_t>(row) * stride], &qkv[static_cast<size_t>(row) * stride] + heads * dim);
    shape.count_at = ANSWERS, shape.tiles_at = ANSWER_TILES, shape.q_stride = heads * dim;
    std::vector<bf16> rest(alone.size(), 0x7fc0);
    RowKernel row_kernel = dim == 32 ? attention_row_32 : dim == 64 ? attention_row_64 : attention_row_128;
    unsigned parts = static_cast<unsigned>(kv_heads) * ((group + 15) / 16);
    shim::launch({static_cast<unsigned>(batch.answers.size()) + 2, parts}, {128}, shared, [&] {
        row_kernel(batch.words.data(), shape, turning.turn(), queries.data(), qkv.data() + heads * dim, cache.data(), alone.data(), rest.data());
    }, 1, true);
    std::vector<double> of_answers;
    for (int row : batch.answers)
        of_answers.insert(of_answers.end(), &expected[row * heads * dim], &expected[row * heads * dim] + heads * dim);
    std::vector<double> whole = doubles(alone);
    bool small = true;
    for (size_t i = 0; i < whole.size(); ++i) {
        small &= std::fabs(wide(rest[i])) <= std::fabs(whole[i]) / 256;
        whole[i] += wide(rest[i]);
    }
    equal("what is lost in rounding is under half a unit", small);
    compare("attention of answers " + test.name, whole, of_answers, 0.05);
}

void attentions() {
    const int shapes[][3] = {{64, 4, 4}, {128, 4, 2}, {32, 4, 2}, {128, 7, 1}, {64, 2, 1}, {64, 3, 1}, {32, 64, 1}};
    for (auto [dim, heads, kv_heads] : shapes) {
        bool among_few = (dim == 128 && heads == 4) || (dim == 64 && heads == 3);
        if ((hopper && dim != 128) || (few && !among_few)) continue;
        std::string shape = std::to_string(dim) + "/" + std::to_string(heads) + "/" + std::to_string(kv_heads);
        Case one{shape + " one token", dim, heads, kv_heads, {}};
        one.batch.answer(one.batch.add(-1, 1));
        attention(one);
        Case ragged{shape + " ragged", dim, heads, kv_heads, {}};
        for (int count : few ? std::vector<int>{1, 17, 65} : std::vector<int>{1, 2, 15, 16, 17, 63, 64, 65, 130})
            ragged.batch.answer(ragged.batch.add(-1, count));
        attention(ragged);
        // More tiles of keys than are under way at once, and than are found before the first.
        Case far{shape + " far", dim, heads, kv_heads, {}};
        far.batch.past = 70;
        far.batch.answer(far.batch.add(far.batch.add(-1, few ? 150 : 520), few ? 30 : 90));
        attention(far);
        if (few) continue;
        Case deep{shape + " deep", dim, heads, kv_heads, {}};
        int at = -1;
        for (int i = 0; i < 40; ++i) at = deep.batch.add(at, 1 + i % 7);
        deep.batch.answer(at);
        attention(deep);
        Case wide{shape + " wide", dim, heads, kv_heads, {}};
        int root = wide.batch.add(-1, 37);
        for (int i = 0; i < 20; ++i) wide.batch.answer(wide.batch.add(root, 1 + i));
        attention(wide);
        for (int past : {1, 16, 33, 64, 100}) {
            Case cached{shape + " cached " + std::to_string(past), dim, heads, kv_heads, {}};
            cached.batch.past = past;
            int stem = cached.batch.add(-1, 5);
            cached.batch.answer(cached.batch.add(stem, 30));
            cached.batch.answer(cached.batch.add(stem, 1));
            cached.batch.answer(cached.batch.add(-1, 70));
            attention(cached);
        }
    }
}

// Numbers that are none stay with those that see them: tiles end within what others left.
void strangers() {
    for (int dim : {64, 128}) {
        if (hopper && dim != 128) continue;
        Batch batch;
        for (int count : {3, 40, 65}) batch.answer(batch.add(-1, count));
        batch.plan(2);
        int rows = static_cast<int>(batch.tokens.size()), stride = 4 * dim;
        std::vector<bf16> qkv = halves(rows * stride);
        Turning turning(dim, 2, 65, false, true);
        Attention shape{TILES, ALL_TILES, stride, stride, dim, 2, 1, 0, 1, 0.1f, stages};
        auto run = [&] {
            std::vector<bf16> out(rows * 2 * dim, 0);
            shim::launch({static_cast<unsigned>(batch.tiles.size()), 1}, {128}, attention_shared(dim), [&] {
                attention_of(dim)(batch.words.data(), shape, turning.turn(), qkv.data(), qkv.data() + 2 * dim, nullptr, out.data());
            });
            return out;
        };
        std::vector<bf16> before = run();
        std::fill(qkv.begin(), qkv.begin() + 3 * stride, 0x7fc0);
        std::vector<bf16> after = run();
        equal("sequences beside one that is no number", std::equal(before.begin() + 3 * 2 * dim, before.end(), after.begin() + 3 * 2 * dim));
        equal("one that is no number", after[0] == 0x7fff || std::isnan(from_bf16(after[0])));
    }
}

// The same sequence in one piece and cut anywhere has the same bits; so has a row by itself.
void cuts() {
    constexpr int DIM = 128, HEADS = 4, KV = 2, COUNT = 350, STRIDE = (HEADS + 2 * KV) * DIM;
    std::vector<bf16> qkv = halves(COUNT * STRIDE);
    Attention shape{TILES, ALL_TILES, STRIDE, STRIDE, KV * DIM, HEADS, KV, 0, 1, 0.18f, stages};
    Attention of_answers = shape;
    of_answers.count_at = ANSWERS, of_answers.tiles_at = ANSWER_TILES;
    Turning turning(DIM, HEADS, COUNT, true, true);
    auto run = [&](std::vector<int> lengths, std::vector<int> others) {
        Batch batch;
        int at = -1;
        for (int length : lengths) at = batch.add(at, length);
        // The packed queries begin with the last row's.
        batch.answer(at);
        for (int row : others) batch.answers.push_back(row), batch.answer_segments.push_back(at);
        batch.plan(HEADS / KV);
        std::vector<bf16> out((COUNT + 1) * HEADS * DIM, 0);
        shim::launch({static_cast<unsigned>(batch.tiles.size()), KV}, {128}, attention_shared(DIM), [&] {
            attention_of(DIM)(batch.words.data(), shape, turning.turn(), qkv.data(), qkv.data() + HEADS * DIM, nullptr, out.data());
        });
        const bf16* last = &qkv[(COUNT - 1) * STRIDE];
        std::vector<bf16> queries(last, last + STRIDE), rows(batch.answers.size() * HEADS * DIM);
        for (int row : others) queries.insert(queries.end(), &qkv[row * STRIDE], &qkv[row * STRIDE] + STRIDE);
        shim::launch({static_cast<unsigned>(batch.answers.size()), KV}, {128}, attention_shared(DIM), [&] {
            attention_row_128(batch.words.data(), of_answers, turning.turn(), queries.data(), qkv.data() + HEADS * DIM, nullptr, rows.data(), nullptr);
        });
        std::copy(rows.begin(), rows.begin() + HEADS * DIM, out.end() - HEADS * DIM);
        return out;
    };
    std::vector<bf16> whole = run({COUNT}, {});
    for (std::vector<int> lengths : {std::vector<int>{1, 349}, {64, 286}, {63, 1, 1, 285}, {32, 33, 285}, {349, 1}})
        equal("a sequence cut after " + std::to_string(lengths[0]), run(lengths, {349, 349}) == whole);
}

}  // namespace
