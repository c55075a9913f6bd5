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
    const u32* x = reinterpret_cast<const u32*>(normed + static_cast<size_t>(answer) * hidden);
    const u32* y = reinterpret_cast<const u32*>(rest + static_cast<size_t>(answer) * hidden);
    for (int grade = threadIdx.x / 32; grade < count; grade += 8) {
        const u32* w = reinterpret_cast<const u32*>(matrix + static_cast<size_t>(grades[grade]) * hidden);
        float sum = 0.0f;
        for (int i = threadIdx.x % 32; i < hidden / 2; i += 32) {
            sum = fmaf(low(x[i]) + low(y[i]), low(w[i]), sum);
            sum = fmaf(high(x[i]) + high(y[i]), high(w[i]), sum);
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

constexpr int VOCABULARY_TOKENS = 64;
constexpr int VOCABULARY_ANSWERS = 32;

// One partial a block of tokens and an answer that is read. Four warps, each 16 tokens against both
// parts of 32 answers.
KERNEL void __launch_bounds__(128) vocabulary(const int* plan, const bf16* normed, const bf16* rest, const bf16* matrix,
                                              int tokens, Partial* partials, int hidden) {
    after_the_kernel_before();
    constexpr int DEPTH = 64, STRIDE = DEPTH + 8, ROWS_OF_TILE = VOCABULARY_TOKENS + 2 * VOCABULARY_ANSWERS;
    constexpr int TILE = ROWS_OF_TILE * STRIDE;
    SHARED(bf16, buffers);  // two of weights, then activations, then their rest; after them the logits
    float* logits = reinterpret_cast<float*>(buffers + 2 * TILE);
    int first = blockIdx.x * VOCABULARY_TOKENS, answer = blockIdx.y * VOCABULARY_ANSWERS;
    int answers = plan[WIDE];
    if (answer >= answers) return;
    const int* read = list<int>(plan, WIDE_ANSWERS);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sums[VOCABULARY_ANSWERS / 8][4] = {};

    auto bring = [&](int depth, bf16* to) {
        constexpr int PIECES = DEPTH / 8;
        for (int i = threadIdx.x; i < ROWS_OF_TILE * PIECES; i += 128) {
            int row = i / PIECES, column = depth + i % PIECES * 8;
            bool weights = row < VOCABULARY_TOKENS;
            int place = row - VOCABULARY_TOKENS;
            int at = weights ? first + row : answer + place % VOCABULARY_ANSWERS;
            bool valid = column < hidden && at < (weights ? tokens : answers);
            const bf16* from = weights ? matrix : place < VOCABULARY_ANSWERS ? normed : rest;
            if (valid) from += static_cast<size_t>(weights ? at : read[at]) * hidden + column;
            copy_async(to + row * STRIDE + i % PIECES * 8, from, valid);
        }
        copies_commit();
    };

    bring(0, buffers);
    for (int depth = 0, at = 0; depth < hidden; depth += DEPTH, at ^= 1) {
        if (depth + DEPTH < hidden) {
            bring(depth + DEPTH, buffers + (at ^ 1) * TILE);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        const bf16* weights = buffers + at * TILE + warp * 16 * STRIDE;
        const bf16* activations = buffers + at * TILE + VOCABULARY_TOKENS * STRIDE;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            u32 a[4];
            load_matrices(a, weights + lane % 16 * STRIDE + k + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < VOCABULARY_ANSWERS / 8; n += 2) {
                u32 b[4];
                int row = n * 8 + lane % 8 + lane / 16 * 8;
                load_matrices(b, activations + row * STRIDE + k + lane / 8 % 2 * 8);
                mma(sums[n], a, b[0], b[1]);
                mma(sums[n + 1], a, b[2], b[3]);
                load_matrices(b, activations + (VOCABULARY_ANSWERS + row) * STRIDE + k + lane / 8 % 2 * 8);
                mma(sums[n], a, b[0], b[1]);
                mma(sums[n + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int n = 0; n < VOCABULARY_ANSWERS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int token = warp * 16 + lane / 4 + i / 2 * 8;
            logits[(n * 8 + lane % 4 * 2 + i % 2) * (VOCABULARY_TOKENS + 1) + token] = sums[n][i];
        }
    }
    __syncthreads();
    int mine = threadIdx.x;
    if (mine >= VOCABULARY_ANSWERS || answer + mine >= answers) return;
    const float* row = logits + mine * (VOCABULARY_TOKENS + 1);
    int count = min(VOCABULARY_TOKENS, tokens - first), best = 0;
    for (int i = 1; i < count; ++i) {
        if (row[i] > row[best]) best = i;
    }
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += expf(row[i] - row[best]);
    partials[static_cast<size_t>(answer + mine) * gridDim.x + blockIdx.x] = {row[best], sum, first + best};
}

// Combines `count` partials of each answer that is read, in an order that the vocabulary alone fixes. A block of 256.
KERNEL void combine(const int* plan, const Partial* partials, int count, float* readings, int grades) {
    after_the_kernel_before();
    SHARED(Partial, found);
    int place = blockIdx.x;
    if (place >= plan[WIDE]) return;
    const Partial* mine = partials + static_cast<size_t>(place) * count;
    auto join = [](Partial a, Partial b) {
        bool second = b.most > a.most || (b.most == a.most && b.best < a.best);
        Partial one = second ? b : a, other = second ? a : b;
        // A number that is not finite must reach the sum, whichever side it is on.
        one.sum += other.sum == 0.0f ? 0.0f : other.sum * expf(other.most - one.most);
        return one;
    };
    Partial sum = {-INFINITY, 0.0f, 0x7fffffff};
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
