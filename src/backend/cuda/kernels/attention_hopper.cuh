// Attention's tiles for Hopper (sm_90a): the four warps of a block multiply together, a tile of keys at a time. Each
// key is read from shared memory once for all 64 rows, not once a warp, and no warp brings operands to registers.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

#ifdef HOPPER
// In units of 16 bytes: a panel.
constexpr u32 NEXT_PANEL = PANEL * 2 / 16;

// Begins a tile's scores.
template <int DIM>
DEVICE void score_together(float (&scores)[TILE_KEYS / 8][4], const Rows<DIM>& rows, const bf16* keys) {
    constexpr u32 COLUMNS = 2;  // 16 of a row
    unsigned long long from = SWIZZLED | tile_descriptor(keys);
    products_begin();
#pragma unroll
    for (int d = 0; d < DIM / 16; ++d)
        multiply_held<TILE_KEYS, false>(scores, rows.queries[d], from + d / 4 * NEXT_PANEL + d % 4 * COLUMNS, d);
    products_commit();
}

// Adds a tile's values by their weights. Values are read by column: the next 64 of them are a panel further.
template <int DIM>
DEVICE void sum_together(Rows<DIM>& rows, const u32 (&weights)[TILE_KEYS / 16][4], const bf16* values) {
    constexpr u32 KEYS = 16 * 128 / 16;  // 16 rows
    unsigned long long from = SWIZZLED | tile_descriptor(values, NEXT_PANEL);
    products_begin();
#pragma unroll
    for (int k = 0; k < TILE_KEYS / 16; ++k) multiply_held<DIM, true>(rows.sums, weights[k], from + k * KEYS, 1);
    products_commit();
    products_wait<0>();
}

// As `attend`: scores, weights, weighted sum of values; of all four warps, whether they have rows or not. The next tile
// is asked for while scores are computed.
template <int DIM, class Bring>
DEVICE void attend_together(Rows<DIM>& rows, Bring bring_next, const bf16* keys, const bf16* values, int first, float scale) {
    float scores[TILE_KEYS / 8][4];
    score_together<DIM>(scores, rows, keys);
    bring_next();
    products_wait<0>();
    weigh<DIM, TILE_KEYS>(rows, scores, first, scale);
    u32 weights[TILE_KEYS / 16][4];
#pragma unroll
    for (int k = 0; k < TILE_KEYS / 16; ++k) pack_weights<TILE_KEYS>(weights[k], scores, k);
    sum_together<DIM>(rows, weights, values);
}

KERNEL void __launch_bounds__(128, 3) attention_hopper_128(const int* plan, Attention shape, Turn turn, const bf16* q,
                                                           const bf16* k, const bf16* cache, bf16* out) {
    SHARED(unsigned char, shared);
    tree_attention<128, PANELS>(plan, shape, turn, q, k, cache, out, first_stage(shared),
                                [](Rows<128>& rows, bool, auto... tile) { attend_together<128>(rows, tile...); });
}
#endif
