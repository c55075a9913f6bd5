// The kernels on the CPU against plain references in double precision.
#define VERDICT_SHIM
#include "kernels.cu"

#include "attention.h"
#include "batch.h"
#include "products.h"

namespace {

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
