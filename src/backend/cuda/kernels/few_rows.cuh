// Products of few rows, for Hopper (sm_90a): y = x · wᵀ, x [rows, depth], w [outputs, depth]; or
// silu(x · gateᵀ) · (x · upᵀ) at once.
//
// What such a product takes is bringing w from memory. So every multiprocessor gets its share of the
// outputs, w is asked for before the kernel before this one has ended (x is not: that one writes it), and
// the two blocks of a cluster, which multiply the same 64 rows of x, bring half of them each, to both.
// A warp copies, a warpgroup multiplies; a ring of stages lies between them. A sum is of its products
// in order, so its bits depend neither on how many rows there are nor on how outputs are shared out.
#pragma once
#include "hopper.cuh"

constexpr int X_ROWS = 64;                     // rows of x to a block
constexpr int X_BYTES = X_ROWS * DEPTH * 2;    // of a stage
constexpr int RING_BYTES = 200 << 10;          // most of all stages
constexpr int MOST_RING = 16;

template <int OUTPUTS>
struct Ring {
    static constexpr int BYTES = X_BYTES + OUTPUTS * DEPTH * 2;  // of a stage: x's rows, then w's
    static constexpr int STAGES = RING_BYTES / BYTES < MOST_RING ? RING_BYTES / BYTES : MOST_RING;
};

// As the host's `Output`.
enum Into { INTO_ROWS, INTO_WIDE, INTO_SUM };

// What is computed: `outputs` columns of y from as many rows of w, or, gated, from as many gates and then ups.
struct Product {
    int into;  // for gates: INTO_ROWS
    int rows;
    int outputs;
    int depth;
};

#ifdef HOPPER
// One step of 16 columns for OUTPUTS outputs, in as few instructions as there are.
template <int OUTPUTS>
DEVICE void multiply_outputs(float (*sums)[4], u32 x, u32 w, int more) {
    constexpr int N = OUTPUTS >= 64 ? 64 : OUTPUTS >= 32 ? 32 : OUTPUTS >= 16 ? 16 : 8;
    multiply<N>(sums, x, w, more);
    if constexpr (OUTPUTS > N) multiply_outputs<OUTPUTS - N>(sums + N / 8, x, w + N * DEPTH * 2 / 16, more);
}

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

// The copying thread: w's and x's tiles of every stage.
template <int OUTPUTS, bool GATED>
DEVICE void bring_stages(const TensorMap& x, const TensorMap& w, int row, int output, int outputs, int pieces, u32 rank,
                         bf16* stages, Barrier* full, Barrier* empty) {
    constexpr int RING = Ring<OUTPUTS>::STAGES, STAGE = Ring<OUTPUTS>::BYTES / 2, PART = X_ROWS / CLUSTER;
    auto bring_w = [&](int piece, int stage) {
        barrier_expect(full + stage, Ring<OUTPUTS>::BYTES);
        bf16* to = stages + stage * STAGE + X_BYTES / 2;
        bring_tile(w, piece * DEPTH, output, to, full + stage);
        // The tiles of w are half as high then.
        if (GATED) bring_tile(w, piece * DEPTH, outputs + output, to + OUTPUTS / 2 * DEPTH, full + stage);
    };
    auto bring_x = [&](int piece, int stage) {
        bf16* to = stages + stage * STAGE + rank * PART * DEPTH;
        bring_tile_to_both(x, piece * DEPTH, row + rank * PART, to, full + stage);
    };
    int first = pieces < RING ? pieces : RING;
    for (int piece = 0; piece < first; ++piece) bring_w(piece, piece);
    after_the_kernel_before();
    for (int piece = 0; piece < first; ++piece) bring_x(piece, piece);
    for (int piece = first, stage = 0; piece < pieces; ++piece) {
        // Both blocks are done with what lay here.
        barrier_wait(empty + stage, (piece / RING - 1) & 1);
        bring_w(piece, stage);
        bring_x(piece, stage);
        stage = stage + 1 == RING ? 0 : stage + 1;
    }
}

// The warpgroup: sums of every stage in order.
template <int OUTPUTS>
DEVICE void multiply_stages(float (&sums)[OUTPUTS / 8][4], int pieces, const bf16* stages, Barrier* full, Barrier* empty) {
    constexpr int RING = Ring<OUTPUTS>::STAGES, STAGE = Ring<OUTPUTS>::BYTES / 2;
    for (int piece = 0, stage = 0, last = 0; piece < pieces; ++piece) {
        barrier_wait(full + stage, piece / RING & 1);
        u32 from_x = tile_descriptor(stages + stage * STAGE);
        u32 from_w = tile_descriptor(stages + stage * STAGE + X_BYTES / 2);
        products_begin();
#pragma unroll
        for (int step = 0; step < DEPTH / 16; ++step)
            multiply_outputs<OUTPUTS>(sums, from_x + step * 2, from_w + step * 2, piece + step);
        products_commit();
        // The stage before is read.
        products_wait<1>();
        if (piece > 0 && piece - 1 + RING < pieces) release(empty + last);
        last = stage;
        stage = stage + 1 == RING ? 0 : stage + 1;
    }
    products_wait<0>();
}

template <int OUTPUTS, bool GATED>
DEVICE void few_rows(const TensorMap& x, const TensorMap& w, void* y, const Product& product) {
    constexpr int RING = Ring<OUTPUTS>::STAGES;
    SHARED(unsigned char, unaligned);
    bf16* stages = first_stage(unaligned);
    Barrier* full = reinterpret_cast<Barrier*>(reinterpret_cast<unsigned char*>(stages) + RING * Ring<OUTPUTS>::BYTES);
    Barrier* empty = full + RING;
    int row = blockIdx.y * X_ROWS, output = blockIdx.x * (GATED ? OUTPUTS / 2 : OUTPUTS);
    int pieces = (product.depth + DEPTH - 1) / DEPTH;
    set_up_barriers(full, empty, RING, 4);
    if (threadIdx.x < 128) {
        float sums[OUTPUTS / 8][4];
        after_the_kernel_before();
        multiply_stages<OUTPUTS>(sums, pieces, stages, full, empty);
        int first = row + static_cast<int>(threadIdx.x) / 32 * 16;
        if constexpr (GATED) put_gated<OUTPUTS>(sums, static_cast<bf16*>(y), first, product.rows, output, product.outputs);
        else put_sums<OUTPUTS>(sums, y, product.into, first, product.rows, output, product.outputs);
    } else if (threadIdx.x == 128) {
        bring_stages<OUTPUTS, GATED>(x, w, row, output, product.outputs, pieces, cluster_rank(), stages, full, empty);
    }
    // The other block's last copies find this one's memory.
    cluster_sync();
}

#define FEW_ROWS(NAME, OUTPUTS, GATED) \
    KERNEL void __launch_bounds__(160, 1) NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, \
                                               void* y, Product product) { \
        few_rows<OUTPUTS, GATED>(x, w, y, product); \
    }
#define FEW_ROWS_PLAIN_AND_GATED(OUTPUTS) \
    FEW_ROWS(few_rows_##OUTPUTS, OUTPUTS, false) \
    FEW_ROWS(few_rows_gated_##OUTPUTS, OUTPUTS, true)
FEW_ROWS(few_rows_8, 8, false)
FEW_ROWS_PLAIN_AND_GATED(16)
FEW_ROWS_PLAIN_AND_GATED(32)
FEW_ROWS_PLAIN_AND_GATED(48)
FEW_ROWS_PLAIN_AND_GATED(64)
FEW_ROWS_PLAIN_AND_GATED(96)
FEW_ROWS_PLAIN_AND_GATED(128)
FEW_ROWS_PLAIN_AND_GATED(192)
#endif
