// The kernels on the CPU against plain references in double precision.
#define VERDICT_SHIM
#include "kernels.cu"

#include <algorithm>
#include <map>
#include <random>
#include <string>

namespace {

std::mt19937 generator(7);
int failures = 0, checks = 0;
bool few;  // checks: for sanitizers, under which each takes ten times as long

float draw(float deviation = 1.0f) { return std::normal_distribution<float>(0.0f, deviation)(generator); }
int between(int from, int to) { return std::uniform_int_distribution<int>(from, to)(generator); }
double wide(bf16 x) { return from_bf16(x); }

std::vector<bf16> halves(size_t count, float deviation = 1.0f) {
    std::vector<bf16> values(count);
    for (auto& value : values) value = to_bf16(draw(deviation));
    return values;
}

std::vector<float> floats(size_t count, float mean = 0.0f) {
    std::vector<float> values(count);
    for (auto& value : values) value = mean + draw(0.5f);
    return values;
}

std::vector<double> doubles(const std::vector<bf16>& values) {
    std::vector<double> wider;
    for (bf16 value : values) wider.push_back(wide(value));
    return wider;
}

// Largest difference, in units of the reference's root mean square.
void compare(const std::string& what, const std::vector<double>& ours, const std::vector<double>& expected, double most) {
    double squares = 0, difference = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        squares += expected[i] * expected[i];
        difference = std::max(difference, std::isfinite(ours[i]) ? std::fabs(ours[i] - expected[i]) : INFINITY);
    }
    difference /= std::sqrt(squares / expected.size()) + 1e-30;
    ++checks;
    if (ours.size() != expected.size() || !(difference <= most)) {
        ++failures;
        printf("FAILED %s: off by %.3g, at most %.3g\n", what.c_str(), difference, most);
    }
}

void equal(const std::string& what, bool same) {
    ++checks;
    if (!same) {
        ++failures;
        printf("FAILED %s: not the same bits\n", what.c_str());
    }
}

// A segment of a tree of tokens, or of what is cached (then it has no rows).
struct Segment {
    int parent, row, count, position;
};

// A batch as the host plans it.
struct Batch {
    std::vector<Segment> segments;
    std::vector<int> tokens, positions, slots, answers, answer_segments, wide, blocks;
    std::vector<Run> runs;
    std::vector<Tile> tiles, answer_tiles;
    std::vector<std::pair<int, int>> segment_runs;
    std::vector<int> words;
    int past = 0;  // cached tokens before every root

    int add(int parent, int count) {
        int position = parent < 0 ? past : segments[parent].position + segments[parent].count;
        segments.push_back({parent, static_cast<int>(tokens.size()), count, position});
        for (int i = 0; i < count; ++i) {
            tokens.push_back(between(0, 9));
            positions.push_back(position + i);
            slots.push_back(-1);
        }
        return static_cast<int>(segments.size()) - 1;
    }

    std::vector<int> path(int segment) const {
        std::vector<int> found;
        for (; segment >= 0; segment = segments[segment].parent) found.insert(found.begin(), segment);
        return found;
    }

    template <class T>
    void put(int at, const std::vector<T>& list) {
        while (words.size() % 4 != 0) words.push_back(0);
        words[at] = static_cast<int>(words.size());
        size_t begin = words.size();
        words.resize(begin + list.size() * sizeof(T) / 4);
        if (!list.empty()) memcpy(&words[begin], list.data(), list.size() * sizeof(T));
    }

    void plan(int group) {
        int most = TILE_ROWS / group;
        for (size_t s = 0; s < segments.size(); ++s) {
            int first_run = static_cast<int>(runs.size());
            if (past > 0) {
                // Two runs, the second from the middle of a block.
                int cut = past / 2;
                runs.push_back({0, cut, ~0, 0});
                runs.push_back({cut, past - cut, ~(cut / BLOCK_TOKENS), cut % BLOCK_TOKENS});
                if (cut == 0) runs.erase(runs.end() - 2);
            }
            for (int part : path(static_cast<int>(s)))
                runs.push_back({segments[part].position, segments[part].count, segments[part].row, 0});
            int count = static_cast<int>(runs.size()) - first_run;
            segment_runs.push_back({first_run, count});
            const Segment& own = segments[s];
            for (int from = 0; from < own.count; from += most)
                tiles.push_back({own.row + from, std::min(most, own.count - from), own.position + from, first_run, count, {}});
        }
        for (size_t i = 0; i < answers.size(); ++i) {
            auto [first_run, count] = segment_runs[answer_segments[i]];
            answer_tiles.push_back({static_cast<int>(i), 1, positions[answers[i]], first_run, count, {}});
        }
        words.assign(HEADER, 0);
        words[ROWS] = static_cast<int>(tokens.size());
        words[ANSWERS] = static_cast<int>(answers.size());
        words[TILES] = static_cast<int>(tiles.size());
        words[WIDE] = static_cast<int>(wide.size());
        put(TOKENS, tokens), put(POSITIONS, positions), put(SLOTS, slots), put(ANSWER_ROWS, answers);
        put(ALL_TILES, tiles), put(ANSWER_TILES, answer_tiles), put(WIDE_ANSWERS, wide);
        put(RUNS, runs), put(BLOCKS, blocks);
    }

    void answer(int segment) {
        answers.push_back(segments[segment].row + segments[segment].count - 1);
        answer_segments.push_back(segment);
    }
};

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

void embeddings_and_norms() {
    for (int hidden : {64, 96, 1024, 2080}) {
        Batch batch;
        batch.add(-1, 9);
        batch.answers = {2, 8}, batch.answer_segments = {0, 0};
        batch.plan(1);
        const int* plan = batch.words.data();
        std::vector<bf16> table = halves(10 * hidden), normed(9 * hidden), rest(9 * hidden);
        std::vector<float> residual(9 * hidden, NAN), bias = floats(hidden), weight = floats(hidden, 1.0f);
        shim::launch({12}, {256}, 0, [&] { embed(plan, table.data(), residual.data(), hidden); });
        std::vector<double> expected, ours(residual.begin(), residual.end());
        for (int token : batch.tokens)
            for (int i = 0; i < hidden; ++i) expected.push_back(wide(table[token * hidden + i]));
        compare("embed", ours, expected, 0);
        for (int variant = 0; variant < 6; ++variant) {
            int kind = variant % 4;
            const float* with = kind == 1 || kind == 2 ? bias.data() : nullptr;
            bf16* rest_to = kind > 1 ? rest.data() : nullptr;
            bool held = variant > 3;
            if (held && hidden > HELD_FLOATS * 128) break;
            // The halves lie a row further apart than there are rows.
            std::vector<float> halves_of = kind > 1 ? floats(20 * hidden) : std::vector<float>();
            Halves added = {kind > 1 ? halves_of.data() : nullptr, 10};
            std::vector<double> sums;
            for (int i = 0; i < 9 * hidden; ++i) {
                double more = kind > 1 ? static_cast<double>(halves_of[i]) + halves_of[i + 10 * hidden] : 0.0;
                sums.push_back(residual[i] + more + (with ? with[i % hidden] : 0.0));
            }
            shim::launch({held ? 3u : 9u}, {held ? 128u : 256u}, 64, [&] {
                if (held) add_norm_held(plan, ROWS, residual.data(), with, weight.data(), normed.data(), hidden, 1e-6f);
                else add_norm(plan, ROWS, residual.data(), added, with, weight.data(), normed.data(), rest_to, hidden, 1e-6f);
            });
            std::vector<double> found(normed.size()), right(normed.size());
            for (int row = 0; row < 9; ++row) {
                double squares = 0;
                for (int i = 0; i < hidden; ++i) squares += sums[row * hidden + i] * sums[row * hidden + i];
                double scale = 1.0 / std::sqrt(squares / hidden + 1e-6);
                for (int i = 0; i < hidden; ++i) right[row * hidden + i] = sums[row * hidden + i] * scale * weight[i];
            }
            for (size_t i = 0; i < normed.size(); ++i) found[i] = wide(normed[i]) + (rest_to ? wide(rest[i]) : 0.0);
            compare("add_norm", found, right, rest_to ? 1e-4 : 0.03);
            compare("residual", {residual.begin(), residual.end()}, sums, 1e-6);
        }
        std::vector<float> few(2 * hidden);
        std::vector<bf16> few_normed(2 * hidden);
        shim::launch({4}, {256}, 0, [&] {
            select_answers(plan, residual.data(), normed.data(), few.data(), few_normed.data(), hidden);
        });
        bool same = true;
        for (int i = 0; i < 2; ++i) {
            same &= memcmp(&few[i * hidden], &residual[batch.answers[i] * hidden], hidden * 4) == 0;
            same &= memcmp(&few_normed[i * hidden], &normed[batch.answers[i] * hidden], hidden * 2) == 0;
        }
        equal("select_answers", same);
    }
}

using RotateKernel = void (*)(const int*, Rotation, bf16*, const float*, const float*, const TwoAngles*, bf16*);

void rotations() {
    // Keys and values behind two heads of queries, which stay as they are.
    for (auto [dim, kv_heads, biased, normed] : {std::tuple{32, 2, true, false}, {64, 1, false, true}, {128, 3, true, true}, {128, 1, false, false}}) {
        Batch batch;
        batch.past = 5;
        batch.add(-1, 11);
        for (int i = 2; i < 7; ++i) batch.slots[i] = 30 - i;
        batch.plan(1);
        constexpr int ROWS_THERE = 11, QUERIES = 2;
        int total = QUERIES + 2 * kv_heads, stride = total * dim;
        std::vector<bf16> before = halves(ROWS_THERE * stride), buffer = before, cache(2 * 2 * 2 * kv_heads * 16 * dim, 0);
        Turning turning(dim, 2 * kv_heads, 20, biased, normed);
        auto [bias, norm, angles, epsilon] = turning.turn();
        Rotation shape{stride, kv_heads, 1, 2, epsilon};
        RotateKernel kernel = dim == 32 ? rotate_32 : dim == 64 ? rotate_64 : rotate_128;
        auto run = [&, bias = bias, norm = norm, angles = angles] {
            kernel(batch.words.data(), shape, buffer.data() + QUERIES * dim, bias, norm, angles, cache.data());
        };
        shim::launch({ROWS_THERE + 1, static_cast<unsigned>((2 * kv_heads * dim + 2047) / 2048)}, {256}, 0, run, 1, true);
        std::vector<double> ours, expected;
        bool kept = true;
        for (int row = 0; row < ROWS_THERE; ++row) {
            const bf16 *was = &before[row * stride], *is = &buffer[row * stride];
            kept &= memcmp(was, is, QUERIES * dim * 2) == 0;
            for (int head = 0; head < 2 * kv_heads; ++head) {
                int at = (QUERIES + head) * dim;
                for (double x : turning.of(was + at, head, batch.positions[row], head >= kv_heads)) expected.push_back(x);
                for (int i = 0; i < dim; ++i) ours.push_back(wide(is[at + i]));
                int slot = batch.slots[row];
                if (slot < 0) continue;
                size_t place = (static_cast<size_t>(slot / 16) * 2 + 1) * 2 * kv_heads + head;
                kept &= memcmp(&cache[(place * 16 + slot % 16) * dim], is + at, dim * 2) == 0;
            }
        }
        compare("rotate " + std::to_string(dim), ours, expected, 0.02);
        equal("queries, and kept keys and values", kept);
    }
}

// Rows that repeat the first three, of less than a thread's turn and of more than a block's; then some words are others.
void trials() {
    for (int words : {1, 300}) {
        std::vector<bf16> numbers = halves(3 * words * 8), repeated(7 * words * 8, 0);
        auto quads = [](std::vector<bf16>& of) { return reinterpret_cast<Quads*>(of.data()); };
        shim::launch({7}, {256}, 0, [&] { repeat_rows(quads(repeated), quads(numbers), words, 3); }, 1, true);
        bool same = true;
        for (int row = 0; row < 7; ++row) same &= memcmp(&repeated[row * words * 8], &numbers[row % 3 * words * 8], words * 16) == 0;
        equal("repeat_rows", same);
        repeated[4 * words * 8] ^= 1, repeated[6 * words * 8 - 1] ^= 1 << 15, repeated[5 * words * 8] ^= 4;
        std::vector<float> differences(7, -1.0f), expected = {0, 0, 0, 0, 1, words == 1 ? 1.0f : 2.0f, 0};
        shim::launch({7}, {256}, 8 * 4, [&] { count_differences(quads(repeated), quads(numbers), words, 3, differences.data()); }, 1, true);
        equal("count_differences", differences == expected);
    }
}

void gates() {
    for (auto [biased, f32] : {std::pair{false, 0}, {true, 0}, {false, 1}, {true, 1}}) {
        constexpr int INNER = 544;
        Batch batch;
        batch.add(-1, 3);
        batch.plan(1);
        std::vector<bf16> both = halves(3 * 2 * INNER), activated(3 * INNER), rest(3 * INNER, 0);
        std::vector<float> bias = floats(2 * INNER), wider;
        for (bf16 value : both) wider.push_back(from_bf16(value) * (f32 ? 1.001f : 1.0f));
        // What they lost in rounding, four rows further.
        wider.resize(7 * 2 * INNER);
        for (int i = 0; i < 3 * 2 * INNER; ++i) wider[i + 4 * 2 * INNER] = f32 ? wider[i] * 0.001f : 0.0f;
        const void* from = f32 ? static_cast<const void*>(wider.data()) : both.data();
        shim::launch({4, 2}, {128}, 0, [&] {
            silu_mul(batch.words.data(), ROWS, from, f32 * 4, biased ? bias.data() : nullptr, activated.data(), f32 ? rest.data() : nullptr, INNER);
        });
        std::vector<double> ours, expected;
        for (int i = 0; i < 3 * INNER; ++i) {
            int row = i / INNER, column = i % INNER;
            auto whole_of = [&](int at) { return static_cast<double>(wider[at]) + wider[at + 4 * 2 * INNER]; };
            double gate = whole_of(row * 2 * INNER + column) + (biased ? bias[column] : 0.0);
            double up = whole_of(row * 2 * INNER + INNER + column) + (biased ? bias[INNER + column] : 0.0);
            expected.push_back(up * gate / (1 + std::exp(-gate)));
            ours.push_back(wide(activated[i]) + wide(rest[i]));
        }
        compare("silu_mul", ours, expected, f32 ? 1e-4 : 0.05);
    }
}

void heads() {
    for (auto [tokens, hidden, count] : {std::tuple{304, 96, 5}, {64, 64, 1}, {1000, 160, 33}, {200, 64, 60}, {70, 72, 25}}) {
        Batch batch;
        batch.add(-1, count);
        for (int i = 0; i < count; ++i) batch.answers.push_back(i), batch.answer_segments.push_back(0);
        // The vocabulary is read for some of them, in an order of its own.
        for (int i = count - 1; i >= 0; --i)
            if (i % 3 != 1) batch.wide.push_back(i);
        int read = static_cast<int>(batch.wide.size());
        batch.plan(1);
        std::vector<bf16> normed = halves(count * hidden), rest = halves(count * hidden, 1e-3f), matrix = halves(tokens * hidden, 0.2f);
        // Equal rows: the lower token wins. The last answer has a number that is none.
        std::copy(&matrix[7 * hidden], &matrix[8 * hidden], &matrix[std::min(70, tokens - 1) * hidden]);
        if (count > 1) normed[(count - 1) * hidden + 3] = 0x7fc0;
        std::vector<int> grades = {0, 17, tokens - 1};
        std::vector<float> readings(count * 5, NAN);
        unsigned chunks = (tokens + VOCABULARY_TOKENS - 1) / VOCABULARY_TOKENS;
        std::vector<Partial> partials(read * chunks);
        size_t shared = VOCABULARY_STAGES * COLUMNS_STAGE * sizeof(bf16) + 4 * VOCABULARY_ANSWERS * sizeof(Partial);
        const int* plan = batch.words.data();
        shim::launch({static_cast<unsigned>(count) + 1}, {256}, 0, [&] {
            grade_logits(plan, normed.data(), rest.data(), matrix.data(), grades.data(), 3, readings.data(), hidden);
        });
        // Fewer blocks than chunks, which take several each, and more.
        shim::launch({3, chunks > 8 ? 3u : chunks + 1}, {128}, shared, [&] {
            vocabulary(plan, normed.data(), rest.data(), matrix.data(), tokens, partials.data(), hidden);
        }, 1, true);
        shim::launch({static_cast<unsigned>(count) + 1}, {256}, 256 * sizeof(Partial), [&] {
            combine(plan, partials.data(), static_cast<int>(chunks), readings.data(), 3);
        });
        std::vector<double> ours, expected;
        bool best = true;
        for (int i = 0; i < count; ++i) {
            bool wide_read = i % 3 != 1;
            if (!wide_read) {
                equal("what is not read is not written", std::isnan(readings[i * 5]) && std::isnan(readings[i * 5 + 1]));
            }
            if (count > 1 && i == count - 1) {
                equal("a number that is none stays one",
                      !(wide_read && std::isfinite(readings[i * 5])) && !std::isfinite(readings[i * 5 + 2]));
                continue;
            }
            std::vector<double> logits(tokens, 0.0);
            double sum = 0;
            for (int t = 0; t < tokens; ++t) {
                for (int d = 0; d < hidden; ++d) {
                    logits[t] += (wide(normed[i * hidden + d]) + wide(rest[i * hidden + d])) * wide(matrix[t * hidden + d]);
                }
                sum += std::exp(logits[t]);
            }
            if (wide_read) expected.push_back(std::log(sum)), ours.push_back(readings[i * 5]);
            for (int g = 0; g < 3; ++g) expected.push_back(logits[grades[g]]), ours.push_back(readings[i * 5 + 2 + g]);
            if (!wide_read) continue;
            uint32_t found = shim::bits_of(readings[i * 5 + 1]);
            double most = *std::max_element(logits.begin(), logits.end());
            best &= found < logits.size() && logits[found] > most - 1e-4 && (found <= 7 || logits[found] > logits[7]);
        }
        compare("readings", ours, expected, 1e-5);
        equal("most probable token", best);
    }
}

}  // namespace

#include "products.h"

// FEW, if said, for some of the checks of each kind.
int main(int count, char**) {
    few = count > 1;
    for (bool by_warpgroup : {false, true}) {
        hopper = by_warpgroup;
        for (stages = few ? MOST_STAGES : 2; stages <= MOST_STAGES; ++stages) {
            if (!few) cuts(), strangers();
            attentions();
        }
    }
    embeddings_and_norms();
    rotations();
    gates();
    trials();
    heads();
    // Last: what orders threads costs more, the more there have been.
    products_of_few_rows();
    products_by_taller_blocks();
    products_of_many_rows();
    turned_products();
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0 || checks < (few ? 50 : 100);
}
