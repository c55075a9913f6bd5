// The head: what is read at the answers. `readings` has a row an answer: the log-sum-exp of
// the vocabulary, the bits of the most probable token, then a logit a grade.
#pragma once
#include "device.cuh"

// The grades' logits, of activations that are the sum of two parts. A block of 256 an answer, a warp a
// grade at a time.
KERNEL void grade_logits(const int* plan, const bf16* normed, const bf16* rest, const bf16* matrix, const int* grades,
                         int count, float* readings, int hidden) {
    after_the_kernel_before();
    int answer = blockIdx.x;
    if (answer >= plan[ANSWERS]) return;
    const Quads* x = reinterpret_cast<const Quads*>(normed + static_cast<size_t>(answer) * hidden);
    const Quads* y = reinterpret_cast<const Quads*>(rest + static_cast<size_t>(answer) * hidden);
    for (int grade = threadIdx.x / 32; grade < count; grade += 8) {
        const Quads* w = reinterpret_cast<const Quads*>(matrix + static_cast<size_t>(grades[grade]) * hidden);
        float sum = 0.0f;
#pragma unroll 4
        for (int i = threadIdx.x % 32; i < hidden / 8; i += 32) {
            Quads a = x[i], b = y[i], c = w[i];
            for (int j = 0; j < 4; ++j) {
                sum = fmaf(low(a.of[j]) + low(b.of[j]), low(c.of[j]), sum);
                sum = fmaf(high(a.of[j]) + high(b.of[j]), high(c.of[j]), sum);
            }
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) readings[static_cast<size_t>(answer) * (2 + count) + 2 + grade] = sum;
    }
}

// What a pass over some tokens found for one answer.
struct Partial {
    float most;
    float sum;  // of exp(logit - most)
    int best;   // lowest token on ties
};

DEVICE Partial join(Partial a, Partial b) {
    bool second = b.most > a.most || (b.most == a.most && b.best < a.best);
    Partial one = second ? b : a, other = second ? a : b;
    // A number that is not finite must reach the sum, whichever side it is on.
    one.sum += other.sum == 0.0f ? 0.0f : other.sum * expf(other.most - one.most);
    return one;
}

constexpr int VOCABULARY_TOKENS = 64;   // a chunk: a warp has 16
constexpr int VOCABULARY_ANSWERS = 32;
constexpr int VOCABULARY_STAGES = 3;
constexpr int COLUMNS = 64;             // of a stage: a chunk's tokens, then activations, then their rest
constexpr int COLUMNS_STRIDE = COLUMNS + 8;
constexpr int COLUMNS_STAGE = (VOCABULARY_TOKENS + 2 * VOCABULARY_ANSWERS) * COLUMNS_STRIDE;
constexpr int NO_TOKEN = 0x7fffffff;

// The logits' share of a stage: 16 tokens against both parts of 16 answers, or of 32 if there are `more`.
DEVICE void multiply_columns(float (&sums)[VOCABULARY_ANSWERS / 8][4], const bf16* stage, bool more) {
    int lane = threadIdx.x % 32;
    const bf16* weights = stage + (threadIdx.x / 32 * 16 + lane % 16) * COLUMNS_STRIDE + lane / 16 * 8;
    const bf16* activations = stage + (VOCABULARY_TOKENS + lane % 8 + lane / 16 * 8) * COLUMNS_STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < COLUMNS; k += 16) {
        u32 a[4];
        load_matrices(a, weights + k);
#pragma unroll
        for (int n = 0; n < VOCABULARY_ANSWERS / 8; n += 2) {
            if (n > 0 && !more) break;
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                u32 b[4];
                load_matrices(b, activations + (part * VOCABULARY_ANSWERS + n * 8) * COLUMNS_STRIDE + k);
                mma(sums[n], a, b[0], b[1]);
                mma(sums[n + 1], a, b[2], b[3]);
            }
        }
    }
}

// What this warp's 16 tokens, from `first` on, are for each answer.
DEVICE void find_best(const float (&sums)[VOCABULARY_ANSWERS / 8][4], int first, int tokens, bool more, Partial* found) {
    int lane = threadIdx.x % 32, token = first + lane / 4;
    bool one = token < tokens, other = token + 8 < tokens;
#pragma unroll
    for (int n = 0; n < VOCABULARY_ANSWERS / 8; ++n) {
        if (n > 1 && !more) break;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float x = one ? sums[n][i] : -INFINITY, y = other ? sums[n][2 + i] : -INFINITY;
            // Eight lanes have tokens of the same answer.
            float most = fmaxf(x, y);
            for (int step = 4; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(FULL, most, step));
            u32 best = one && x == most ? token : other && y == most ? token + 8 : NO_TOKEN;
            float sum = (one ? expf(x - most) : 0.0f) + (other ? expf(y - most) : 0.0f);
            for (int step = 4; step < 32; step *= 2) {
                u32 theirs = __shfl_xor_sync(FULL, best, step);
                best = theirs < best ? theirs : best;
                sum += __shfl_xor_sync(FULL, sum, step);
            }
            if (lane < 4) found[n * 8 + lane * 2 + i] = {most, sum, static_cast<int>(best)};
        }
    }
}

// What a thread brings of every stage: 16 bytes of every sixteenth row.
struct Reader {
    const bf16 *normed, *rest, *matrix;
    int tokens, hidden;
    int answers;            // from this block's first on
    bool more;              // than half of what a block has
    int row, column;        // its first
    size_t from_answer[2];  // where the activations of `row` and of that in the other half begin
    bf16* to;               // its place in the first stage
};
constexpr int READER_ROWS = 128 / (COLUMNS / 8);
static_assert(2 * READER_ROWS == VOCABULARY_ANSWERS, "a thread brings of each half of the answers");

DEVICE void bring_weights(const Reader& reader, int chunk, int piece, int stage) {
    int first = chunk * VOCABULARY_TOKENS + reader.row, depth = piece * COLUMNS + reader.column;
    const bf16* from = reader.matrix + static_cast<size_t>(first) * reader.hidden + depth;
    bf16* to = reader.to + stage * COLUMNS_STAGE;
#pragma unroll
    for (int j = 0; j < VOCABULARY_TOKENS; j += READER_ROWS) {
        bool valid = first + j < reader.tokens && depth < reader.hidden;
        copy_async(to + j * COLUMNS_STRIDE, valid ? from + static_cast<size_t>(j) * reader.hidden : reader.matrix, valid);
    }
}

DEVICE void bring_activations(const Reader& reader, int piece, int stage) {
    int depth = piece * COLUMNS + reader.column;
    bf16* to = reader.to + stage * COLUMNS_STAGE + VOCABULARY_TOKENS * COLUMNS_STRIDE;
#pragma unroll
    for (int half = 0; half < 2; ++half, to += READER_ROWS * COLUMNS_STRIDE) {
        if (half > 0 && !reader.more) break;
        bool valid = reader.row + half * READER_ROWS < reader.answers && depth < reader.hidden;
        size_t at = valid ? reader.from_answer[half] + depth : 0;
        copy_async(to, reader.normed + at, valid);
        copy_async(to + VOCABULARY_ANSWERS * COLUMNS_STRIDE, reader.rest + at, valid);
    }
}

// One partial a chunk of tokens and an answer that is read. A block takes chunk after chunk, the stages of which follow
// one another: it never waits for the first of a chunk. Blocks of the same chunks and other answers are neighbours, so
// that the cache may have their weights.
KERNEL void __launch_bounds__(128, 4) vocabulary(const int* plan, const bf16* normed, const bf16* rest, const bf16* matrix,
                                                 int tokens, Partial* partials, int hidden) {
    constexpr int AHEAD = VOCABULARY_STAGES - 1;
    SHARED(bf16, stages);  // behind them, what each warp found
    Partial* found = reinterpret_cast<Partial*>(stages + VOCABULARY_STAGES * COLUMNS_STAGE);
    int chunks = (tokens + VOCABULARY_TOKENS - 1) / VOCABULARY_TOKENS, pieces = (hidden + COLUMNS - 1) / COLUMNS;
    int begin = blockIdx.y, warp = threadIdx.x / 32;
    int answer = blockIdx.x * VOCABULARY_ANSWERS, answers = plan[WIDE] - answer;
    if (answers <= 0 || begin >= chunks) return after_the_kernel_before();
    bool more = answers > READER_ROWS;
    int row = threadIdx.x / (COLUMNS / 8), column = threadIdx.x % (COLUMNS / 8) * 8;
    Reader reader = {normed, rest, matrix, tokens, hidden, answers, more, row, column, {}, stages + row * COLUMNS_STRIDE + column};
    for (int half = 0; half < 2; ++half) {
        int of = row + half * READER_ROWS;
        if (of < answers) reader.from_answer[half] = static_cast<size_t>(list<int>(plan, WIDE_ANSWERS)[answer + of]) * hidden;
    }
    auto advance = [&](int& chunk, int& piece) {
        if (++piece == pieces) piece = 0, chunk += static_cast<int>(gridDim.y);
    };

    // Weights do not wait for the kernel before.
    int next = begin, next_piece = 0;
    for (int stage = 0; stage < AHEAD; ++stage, advance(next, next_piece))
        if (next < chunks) bring_weights(reader, next, next_piece, stage);
    after_the_kernel_before();
    next = begin, next_piece = 0;
    for (int stage = 0; stage < AHEAD; ++stage, advance(next, next_piece)) {
        if (next < chunks) bring_activations(reader, next_piece, stage);
        copies_commit();
    }
    float sums[VOCABULARY_ANSWERS / 8][4] = {};
    for (int chunk = begin, piece = 0, stage = 0; chunk < chunks; advance(chunk, piece)) {
        copies_wait<AHEAD - 1>();
        // Everybody has this stage, and has done with the one before it, into which the next is brought.
        __syncthreads();
        if (next < chunks) {
            int free = stage == 0 ? AHEAD : stage - 1;
            bring_weights(reader, next, next_piece, free);
            bring_activations(reader, next_piece, free);
            advance(next, next_piece);
        }
        copies_commit();
        multiply_columns(sums, stages + stage * COLUMNS_STAGE, more);
        stage = stage == AHEAD ? 0 : stage + 1;
        if (piece + 1 < pieces) continue;
        find_best(sums, chunk * VOCABULARY_TOKENS + warp * 16, tokens, more, found + warp * VOCABULARY_ANSWERS);
        __syncthreads();
        int mine = threadIdx.x;
        if (mine < VOCABULARY_ANSWERS && mine < answers) {
            Partial all = found[mine];
            for (int other = 1; other < 4; ++other) all = join(all, found[other * VOCABULARY_ANSWERS + mine]);
            partials[static_cast<size_t>(answer + mine) * chunks + chunk] = all;
        }
        for (auto& of : sums) of[0] = of[1] = of[2] = of[3] = 0.0f;
    }
}

// Combines `count` partials of each answer that is read, in an order that the vocabulary alone fixes. A block of 256.
KERNEL void combine(const int* plan, const Partial* partials, int count, float* readings, int grades) {
    after_the_kernel_before();
    SHARED(Partial, found);
    int place = blockIdx.x;
    if (place >= plan[WIDE]) return;
    const Partial* mine = partials + static_cast<size_t>(place) * count;
    Partial sum = {-INFINITY, 0.0f, NO_TOKEN};
    for (int i = threadIdx.x; i < count; i += 256) sum = join(sum, mine[i]);
    found[threadIdx.x] = sum;
    __syncthreads();
    for (int step = 128; step > 0; step /= 2) {
        if (static_cast<int>(threadIdx.x) < step) {
            found[threadIdx.x] = join(found[threadIdx.x], found[threadIdx.x + step]);
        }
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    float* reading = readings + static_cast<size_t>(list<int>(plan, WIDE_ANSWERS)[place]) * (2 + grades);
    reading[0] = found[0].most + logf(found[0].sum);
    reading[1] = __uint_as_float(static_cast<u32>(found[0].best));
}
