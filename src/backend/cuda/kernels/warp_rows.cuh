// Products of few rows with few outputs to a block, for Hopper: y = x · wᵀ, multiplied by single warps.
//
// A sum is of its products in order, so each waits for the one before, and 16 columns of x later the next one is there; in
// products as deep as these nothing else may be left to wait for (docs/gpu.md). A warp's own product (`mma`) has less to do at
// once than a warpgroup's. The ring and who fills it are those of few rows.
#pragma once
#include "few_rows.cuh"

constexpr int WARP_ROWS = 32;     // of x to a block, and to each of its warps
constexpr int WARP_OUTPUTS = 16;  // to a warp

#ifdef HOPPER
// What a warp multiplies of 16 columns: twice 16 rows of x, twice 8 of w.
struct Factors {
    u32 x[WARP_ROWS / 16][4];
    u32 w[4];
};

// Where a lane finds its share of them in a block's first stage, by step of 16 columns.
struct Places {
    const bf16 *x[DEPTH / 16], *w[DEPTH / 16];
};
DEVICE Places places_of(const bf16* stages, int output) {
    int lane = threadIdx.x % 32, row = output + lane / 16 * 8 + lane % 8;
    Places places;
#pragma unroll
    for (int step = 0; step < DEPTH / 16; ++step) {
        // Eight columns of a row, at the place that the swizzle has them.
        places.x[step] = stages + lane % 16 * DEPTH + ((step * 2 + lane / 16) ^ lane % 8) * 8;
        places.w[step] = stages + (WARP_ROWS + row) * DEPTH + ((step * 2 + lane / 8 % 2) ^ lane % 8) * 8;
        compute_once(places.x[step]), compute_once(places.w[step]);
    }
    return places;
}

// The factors of a step, `stage` further than in the first stage.
DEVICE void read_factors(Factors& to, const Places& places, int step, int stage) {
#pragma unroll
    for (int half = 0; half < WARP_ROWS / 16; ++half) load_matrices(to.x[half], places.x[step] + stage + half * 16 * DEPTH);
    load_matrices(to.w, places.w[step] + stage);
}

DEVICE void multiply_factors(float (&sums)[WARP_ROWS / 16][WARP_OUTPUTS / 8][4], const Factors& of) {
#pragma unroll
    for (int half = 0; half < WARP_ROWS / 16; ++half) {
#pragma unroll
        for (int n = 0; n < WARP_OUTPUTS / 8; ++n) mma(sums[half][n], of.x[half], of.w[2 * n], of.w[2 * n + 1]);
    }
}

// A warp: its sums of every stage in order. Factors are read two products before they are needed, and whether the next stage
// is full is asked two before that: nothing is waited for between two products if it is. Behind the last stage it is read
// once more, for nothing: to leave that out would take longer by the compiler's own waits, for a product that is under way is
// waited for at a branch.
template <int OUTPUTS>
DEVICE void multiply_by_warp(float (&sums)[WARP_ROWS / 16][WARP_OUTPUTS / 8][4], const Product& product, const Ring& ring, int output) {
    constexpr int STAGE = STAGE_BYTES<OUTPUTS, WARP_ROWS> / 2, STEPS = DEPTH / 16, AHEAD = 2;
    int pieces = pieces_of(product);
    Barrier *full = ring.full, *empty = ring.empty;
    compute_once(full), compute_once(empty);
    Places places = places_of(ring.stages, output);
    Stop at = {0, 0};
    Factors factors[STEPS];
    barrier_wait(full, 0);
    MARK(product, 2);
#pragma unroll
    for (int step = 0; step < AHEAD; ++step) read_factors(factors[step], places, step, 0);
#pragma unroll 1
    for (int piece = 0; piece < pieces; ++piece) {
        Stop next = at;
        if (piece + 1 < pieces) advance(next, product.stages);
        bool there = barrier_is_over(full + next.stage, next.round & 1);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            int ahead = step + AHEAD;
            if (ahead == STEPS && !there) barrier_wait(full + next.stage, next.round & 1);
            read_factors(factors[ahead % STEPS], places, ahead % STEPS, (ahead < STEPS ? at : next).stage * STAGE);
            multiply_factors(sums, factors[step]);
        }
        // Its factors are in registers.
        if (threadIdx.x % 32 == 0) barrier_arrive(empty + at.stage);
        at = next;
    }
}

template <int OUTPUTS>
DEVICE void warp_rows(const TensorMap& x, const TensorMap& w, void* y, const Product& product) {
    constexpr int WARPS = OUTPUTS / WARP_OUTPUTS;
    SHARED(unsigned char, unaligned);
    Ring ring = set_up_ring<STAGE_BYTES<OUTPUTS, WARP_ROWS>>(unaligned, product.stages, WARPS);
    int row = blockIdx.y * WARP_ROWS, output = blockIdx.x * OUTPUTS, mine = static_cast<int>(threadIdx.x) / 32 * WARP_OUTPUTS;
    MARK(product, 0);
    if (threadIdx.x < 32 * WARPS) {
        float sums[WARP_ROWS / 16][WARP_OUTPUTS / 8][4] = {};
        Before<WARP_OUTPUTS> before[WARP_ROWS / 16];
        after_the_kernel_before();
        MARK(product, 1);
        auto place = [&](int half) { return Place{row + half * 16, output + mine}; };
#pragma unroll
        for (int half = 0; half < WARP_ROWS / 16; ++half) before[half] = before_sums<WARP_OUTPUTS>(y, place(half), product);
        multiply_by_warp<OUTPUTS>(sums, product, ring, mine);
        MARK(product, 3);
#pragma unroll
        for (int half = 0; half < WARP_ROWS / 16; ++half) put_after<WARP_OUTPUTS>(sums[half], before[half], y, place(half), product);
        MARK(product, 4);
    } else if (is_elected()) {
        bring_stages<OUTPUTS, PLAIN, WARP_ROWS>(x, w, row, product, ring);
    }
}

#define WARP_ROWS_OF(OUTPUTS) \
    KERNEL void __launch_bounds__(OUTPUTS * 2 + 32, 1) warp_rows_##OUTPUTS(const __grid_constant__ TensorMap x, \
                                                                         const __grid_constant__ TensorMap w, void* y, \
                                                                         Product product) { \
        warp_rows<OUTPUTS>(x, w, y, product); \
    }
WARP_ROWS_OF(16)
WARP_ROWS_OF(32)
#endif
