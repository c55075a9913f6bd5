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
// This warp's sums of 16 rows, to rows `first` and behind, outputs `output` and behind.
template <int OUTPUTS>
DEVICE void put_sums(const float (&sums)[OUTPUTS / 8][4], void* y, int into, int first, int rows, int output, int outputs) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = first + lane / 4 + 8 * half;
        if (row >= rows) continue;
        size_t at = static_cast<size_t>(row) * outputs + output + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < OUTPUTS / 8; ++n) {
            float a = sums[n][2 * half], b = sums[n][2 * half + 1];
            if (into == INTO_ROWS) {
                *reinterpret_cast<u32*>(static_cast<bf16*>(y) + at + n * 8) = pack_bf16(a, b);
                continue;
            }
            float2* to = reinterpret_cast<float2*>(static_cast<float*>(y) + at + n * 8);
            float2 before = into == INTO_SUM ? *to : make_float2(0.0f, 0.0f);
            *to = into == INTO_SUM ? make_float2(before.x + a, before.y + b) : make_float2(a, b);
        }
    }
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

// Two outputs, a gate and an up each, put together: both are rounded first, as they are where a kernel of its own
// does it.
DEVICE u32 gated_pair(const float* gates, const float* ups) {
    u32 gate = pack_bf16(gates[0], gates[1]), up = pack_bf16(ups[0], ups[1]);
    return pack_bf16(gated(low(gate), low(up)), gated(high(gate), high(up)));
}

// The same of gates, which lie in the first half, and ups.
template <int OUTPUTS>
DEVICE void put_gated(const float (&sums)[OUTPUTS / 8][4], bf16* y, int first, int rows, int output, int outputs) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = first + lane / 4 + 8 * half;
        if (row >= rows) continue;
        bf16* to = y + static_cast<size_t>(row) * outputs + output + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < OUTPUTS / 16; ++n)
            *reinterpret_cast<u32*>(to + n * 8) = gated_pair(sums[n] + 2 * half, sums[n + OUTPUTS / 16] + 2 * half);
    }
}

// Rows of bf16, of this thread's blocks of eight columns; or of half as many that gates and ups make.
template <int OUTPUTS, bool GATED>
DEVICE void put_narrow(const float (&sums)[OUTPUTS / 8][4], bf16* y, int row, int rows, int output, int outputs) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int at = row + 8 * half;
        bf16* to = y + static_cast<size_t>(at) * outputs + output;
#pragma unroll
        for (int n = 0; n < OUTPUTS / 8 / (GATED ? 2 : 1); n += 4) {
            u32 pairs[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* of = sums[n + i] + 2 * half;
                if constexpr (GATED) pairs[i] = gated_pair(of, sums[n + i + OUTPUTS / 16] + 2 * half);
                else pairs[i] = pack_bf16(of[0], of[1]);
            }
            transpose(pairs);
            if (at < rows) put_blocks(pairs, to + n * 8);
        }
    }
}
#endif
