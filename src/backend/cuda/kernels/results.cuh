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
DEVICE u32 gated_pair(u32 gate, u32 up) { return pack_bf16(gated(low(gate), low(up)), gated(high(gate), high(up))); }
DEVICE u32 gated_pair(const float* gates, const float* ups) {
    return gated_pair(pack_bf16(gates[0], gates[1]), pack_bf16(ups[0], ups[1]));
}

// Where a warp's sums lie: 16 rows from one on, outputs from one on.
struct Place {
    int row;
    int output;
};

// Sums as rows of bf16; or of half as many outputs that gates, which lie in the first half, and ups make. Four blocks of eight
// columns at once are whole lines.
template <int OUTPUTS, bool GATED>
DEVICE void put_narrow(const float (&sums)[OUTPUTS / 8][4], bf16* y, const Place& place, const Product& product) {
    constexpr int BLOCKS = OUTPUTS / (GATED ? 16 : 8), WHOLE = BLOCKS / 4 * 4;
    auto pair_of = [&](int half, int n) {
        const float* of = sums[n] + 2 * half;
        if constexpr (GATED) return gated_pair(of, sums[n + OUTPUTS / 16] + 2 * half);
        else return pack_bf16(of[0], of[1]);
    };
    int row = place.row + static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        bool there = row + 8 * half < product.rows;
        bf16* to = y + static_cast<size_t>(row + 8 * half) * product.outputs + place.output;
#pragma unroll
        for (int n = 0; n < WHOLE; n += 4) {
            u32 pairs[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) pairs[i] = pair_of(half, n + i);
            transpose(pairs);
            if (there) put_blocks(pairs, to + n * 8);
        }
#pragma unroll
        for (int n = WHOLE; n < BLOCKS; ++n) {
            u32 pair = pair_of(half, n);
            if (there) *reinterpret_cast<u32*>(to + n * 8 + threadIdx.x % 4 * 2) = pair;
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

// Sums as rows of f32, or added to them. What is added to is read for 64 columns before any is written: one by one each
// read would wait for memory.
template <int OUTPUTS>
DEVICE void put_wide(const float (&sums)[OUTPUTS / 8][4], float* y, bool adds, const Place& place, const Product& product) {
    constexpr int BLOCKS = OUTPUTS / 8, AT_ONCE = BLOCKS < 8 ? BLOCKS / 2 : 4;
    static_assert(BLOCKS % 2 == 0, "two blocks at once");
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = place.row + lane / 4 + 8 * half;
        bool there = row < product.rows;
        // An odd lane has the second block of two, from the column before its own on.
        Floats* to = reinterpret_cast<Floats*>(y + static_cast<size_t>(row) * product.outputs + place.output + lane % 2 * 8 + lane % 4 / 2 * 4);
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

// Sums as the product says.
template <int OUTPUTS>
DEVICE void put_sums(const float (&sums)[OUTPUTS / 8][4], void* y, const Place& place, const Product& product) {
    if (product.into == INTO_ROWS) put_narrow<OUTPUTS, false>(sums, static_cast<bf16*>(y), place, product);
    else put_wide<OUTPUTS>(sums, static_cast<float*>(y), product.into == INTO_SUM, place, product);
}

// Of few sums what they are added to is read before they are computed: it comes while they do.
template <int OUTPUTS>
struct Before {
    float2 of[2][OUTPUTS / 8];  // by halves of the rows
};
template <int OUTPUTS>
DEVICE Before<OUTPUTS> before_sums(const void* y, const Place& place, const Product& product) {
    Before<OUTPUTS> before = {};
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = place.row + lane / 4 + 8 * half;
        if (product.into != INTO_SUM || row >= product.rows) continue;
        const float* from = static_cast<const float*>(y) + static_cast<size_t>(row) * product.outputs + place.output + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < OUTPUTS / 8; ++n) before.of[half][n] = *reinterpret_cast<const float2*>(from + n * 8);
    }
    return before;
}
template <int OUTPUTS>
DEVICE void put_after(float (&sums)[OUTPUTS / 8][4], const Before<OUTPUTS>& before, void* y, const Place& place, const Product& product) {
    if (product.into == INTO_ROWS) return put_narrow<OUTPUTS, false>(sums, static_cast<bf16*>(y), place, product);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < OUTPUTS / 8; ++n) {
            float2 was = before.of[half][n];
            // Otherwise it is nothing, and even a sum of -0 stays as it is.
            if (product.into == INTO_SUM) sums[n][2 * half] += was.x, sums[n][2 * half + 1] += was.y;
        }
    }
    if constexpr (OUTPUTS > 8) {
        put_wide<OUTPUTS>(sums, static_cast<float*>(y), false, place, product);
    } else {
        for (int half = 0; half < 2; ++half) {
            int row = place.row + threadIdx.x % 32 / 4 + 8 * half;
            float* to = static_cast<float*>(y) + static_cast<size_t>(row) * product.outputs + place.output + threadIdx.x % 4 * 2;
            if (row < product.rows) *reinterpret_cast<float2*>(to) = make_float2(sums[0][2 * half], sums[0][2 * half + 1]);
        }
    }
}
#endif
