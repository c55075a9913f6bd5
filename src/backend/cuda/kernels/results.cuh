// What becomes of a product's sums, for Hopper: rows of bf16 or f32, or gates put together with ups.
#pragma once
#include "hopper.cuh"

// As the host's `Output`.
enum Into { INTO_ROWS, INTO_WIDE, INTO_SUM };

// What is computed: `outputs` columns of y from as many rows of w, or, gated, from as many gates and then ups.
struct Product {
    int into;  // for gates: INTO_ROWS
    int rows;
    int outputs;
    int depth;
    int stages;  // of few rows: in a block's ring,
    int x_rows;  // and how many rows of x are brought to it; those behind are nobody's
};

// What is done to sums before they are written: nothing; two of them, a gate and an up, make one; or they are queries, keys
// and values (`results_turned.cuh`).
enum Kind { PLAIN, GATED, TURNED };

#ifdef HOPPER
// Two outputs, a gate and an up each, put together: both are rounded first, as they are where a kernel of its own
// does it.
DEVICE u32 gated_pair(const float* gates, const float* ups) {
    u32 gate = pack_bf16(gates[0], gates[1]), up = pack_bf16(ups[0], ups[1]);
    return pack_bf16(gated(low(gate), low(up)), gated(high(gate), high(up)));
}

// This thread's sums of 16 rows of a warp, rows `row` and 8 further, as rows of bf16; or of half as many outputs that gates,
// which lie in the first half, and ups make. Four blocks of eight columns at once are whole lines.
template <int OUTPUTS, bool GATED>
DEVICE void put_narrow(const float (&sums)[OUTPUTS / 8][4], bf16* y, int row, int rows, int output, int outputs) {
    constexpr int BLOCKS = OUTPUTS / (GATED ? 16 : 8), WHOLE = BLOCKS / 4 * 4;
    auto pair_of = [&](int half, int n) {
        const float* of = sums[n] + 2 * half;
        if constexpr (GATED) return gated_pair(of, sums[n + OUTPUTS / 16] + 2 * half);
        else return pack_bf16(of[0], of[1]);
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int at = row + 8 * half;
        bf16* to = y + static_cast<size_t>(at) * outputs + output;
#pragma unroll
        for (int n = 0; n < WHOLE; n += 4) {
            u32 pairs[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) pairs[i] = pair_of(half, n + i);
            transpose(pairs);
            if (at < rows) put_blocks(pairs, to + n * 8);
        }
#pragma unroll
        for (int n = WHOLE; n < BLOCKS; ++n) {
            u32 pair = pair_of(half, n);
            if (at < rows) *reinterpret_cast<u32*>(to + n * 8 + threadIdx.x % 4 * 2) = pair;
        }
    }
}

// Two lanes side by side hold pairs of the same row, of a block of eight columns and of the next one; after this four columns
// of one of them each. So both halves of a block, a sector of memory, are written at once.
DEVICE Floats join_pairs(const float* block, const float* next) {
    bool odd = threadIdx.x % 2;
    float x = __shfl_xor_sync(FULL, odd ? block[0] : next[0], 1), y = __shfl_xor_sync(FULL, odd ? block[1] : next[1], 1);
    return odd ? Floats{{x, y, next[0], next[1]}} : Floats{{block[0], block[1], x, y}};
}

// The same as rows of f32, or added to them. What is added to is read for 64 columns before any is written: one by one each
// read would wait for memory.
template <int OUTPUTS>
DEVICE void put_wide(const float (&sums)[OUTPUTS / 8][4], float* y, bool adds, int row, int rows, int output, int outputs) {
    constexpr int BLOCKS = OUTPUTS / 8, AT_ONCE = BLOCKS < 8 ? BLOCKS / 2 : 4;
    int lane = threadIdx.x % 4;
    if constexpr (BLOCKS == 1) {
        for (int half = 0; half < 2; ++half) {
            if (row + 8 * half >= rows) continue;
            float2* to = reinterpret_cast<float2*>(y + static_cast<size_t>(row + 8 * half) * outputs + output + lane * 2);
            float a = sums[0][2 * half], b = sums[0][2 * half + 1];
            *to = adds ? make_float2(to->x + a, to->y + b) : make_float2(a, b);
        }
    } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            bool there = row + 8 * half < rows;
            // An odd lane has the second block of two, from the column before its own on.
            Floats* to = reinterpret_cast<Floats*>(y + static_cast<size_t>(row + 8 * half) * outputs + output + lane % 2 * 8 + lane / 2 * 4);
#pragma unroll
            for (int first = 0; first < BLOCKS / 2; first += AT_ONCE) {
                Floats before[AT_ONCE] = {};
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i)
                    if (first + i < BLOCKS / 2 && adds && there) before[i] = to[4 * (first + i)];
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) {
                    int n = 2 * (first + i);
                    if (n >= BLOCKS) break;
                    Floats sum = join_pairs(sums[n] + 2 * half, sums[n + 1] + 2 * half);
                    for (int j = 0; j < 4 && adds; ++j) sum.of[j] += before[i].of[j];
                    if (there) to[4 * (first + i)] = sum;
                }
            }
        }
    }
}

// The same as `into` says, of 16 rows from `first` on.
template <int OUTPUTS>
DEVICE void put_sums(const float (&sums)[OUTPUTS / 8][4], void* y, int into, int first, int rows, int output, int outputs) {
    int row = first + static_cast<int>(threadIdx.x) % 32 / 4;
    if (into == INTO_ROWS) put_narrow<OUTPUTS, false>(sums, static_cast<bf16*>(y), row, rows, output, outputs);
    else put_wide<OUTPUTS>(sums, static_cast<float*>(y), into == INTO_SUM, row, rows, output, outputs);
}

// What there is already of such sums.
template <int OUTPUTS>
DEVICE void read_sums(float (&sums)[OUTPUTS / 8][4], const float* y, int first, int rows, int output, int outputs) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = first + lane / 4 + 8 * half;
        if (row >= rows) continue;
        const float* from = y + static_cast<size_t>(row) * outputs + output + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < OUTPUTS / 8; ++n) {
            float2 was = *reinterpret_cast<const float2*>(from + n * 8);
            sums[n][2 * half] = was.x, sums[n][2 * half + 1] = was.y;
        }
    }
}

template <int OUTPUTS>
DEVICE void add_sums(float (&sums)[OUTPUTS / 8][4], const float (&more)[OUTPUTS / 8][4]) {
#pragma unroll
    for (int n = 0; n < OUTPUTS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] += more[n][i];
    }
}
#endif
