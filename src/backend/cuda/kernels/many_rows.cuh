// Products of many rows, for Hopper (sm_90a): y = x · wᵀ, or silu(x · gateᵀ) · (x · upᵀ) at once.
//
// There the tensor cores are to be kept busy. A block stays on its multiprocessor and works on tiles of 128
// rows by 256 rows of w, or by 128 or 64 where that keeps more blocks busy, one after another; a warp keeps the ring of
// stages full. Of a tile of 256 two warpgroups take half the rows each: it moves the fewest bytes for each product, which
// bounds products of thousands of rows. Of narrower ones they take every other tile, so that one multiplies while
// the other writes what it has. The blocks of a cluster work on the
// same rows of w, and bring half of them each, to both. A sum is of its products in order, as it is for few rows.
#pragma once
#include "few_rows.cuh"

constexpr int TILE = 128;   // rows of x to a tile
constexpr int GROUPS = 2;   // of four warps, that multiply

// By rows of w to a tile.
template <int OUTPUTS>
struct Wheel {
    static constexpr int HALF = OUTPUTS / CLUSTER;                // rows of w that a block brings
    static constexpr int BYTES = (TILE + OUTPUTS) * DEPTH * 2;    // of a stage: x's rows, then w's
    static constexpr int STAGES = RING_BYTES / BYTES;
    static constexpr bool SHARED_TILES = OUTPUTS > 128;           // by the warpgroups: their sums would not fit one
    static constexpr int PARTS = SHARED_TILES ? 1 : TILE / 64;    // of 64 rows, that one works on
    static constexpr int READERS = 4 * (SHARED_TILES ? GROUPS : 1);
};

#ifdef HOPPER
// Four lanes that hold pairs of the same row: of blocks 0 to 3 before, of one block each after.
DEVICE void transpose(u32 (&pairs)[4]) {
    int lane = threadIdx.x % 4;
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        bool upper = lane & step;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & step) continue;
            u32 sent = upper ? pairs[i] : pairs[i + step];
            u32 got = __shfl_xor_sync(FULL, sent, step);
            if (upper) pairs[i] = got;
            else pairs[i + step] = got;
        }
    }
}

// Four blocks of eight columns, from `to` on: 16 bytes a lane.
DEVICE void put_blocks(u32 (&pairs)[4], bf16* to, bool valid) {
    transpose(pairs);
    if (valid) *reinterpret_cast<Quads*>(to + threadIdx.x % 4 * 8) = {{pairs[0], pairs[1], pairs[2], pairs[3]}};
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
            put_blocks(pairs, to + n * 8, at < rows);
        }
    }
}

// Tiles in order of a cluster: pairs of row tiles first, so that those under way share rows of w.
struct Place {
    int row;     // first of x, of the cluster's first block
    int output;  // first of y
};
template <int OUTPUTS, bool GATED>
DEVICE Place place_of(int tile, int rows) {
    int pairs = (rows + CLUSTER * TILE - 1) / (CLUSTER * TILE);
    return {tile % pairs * CLUSTER * TILE, tile / pairs * (GATED ? OUTPUTS / 2 : OUTPUTS)};
}

// A place in the ring, and how often it was passed.
struct Stop {
    int stage, round;
};
template <int STAGES>
DEVICE void advance(Stop& at) {
    if (++at.stage == STAGES) at.stage = 0, ++at.round;
}

// The copying thread: of every tile, of every stage.
template <int OUTPUTS, bool GATED>
DEVICE void bring_tiles(const TensorMap& x, const TensorMap& w, const Product& product, int tiles, int pieces,
                        u32 rank, bf16* stages, Barrier* full, Barrier* empty) {
    constexpr int STAGES = Wheel<OUTPUTS>::STAGES, STAGE = Wheel<OUTPUTS>::BYTES / 2, HALF = Wheel<OUTPUTS>::HALF;
    int cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
    // The second half of w's rows: the next of them, or the ups of the first.
    int second = GATED ? product.outputs : HALF;
    auto bring_w = [&](int output, int piece, int stage) {
        barrier_expect(full + stage, Wheel<OUTPUTS>::BYTES);
        bf16* to = stages + stage * STAGE + (TILE + rank * HALF) * DEPTH;
        bring_tile_to_both(w, piece * DEPTH, output + static_cast<int>(rank) * second, to, full + stage);
    };
    auto bring_x = [&](int row, int piece, int stage) {
        bring_tile(x, piece * DEPTH, row + static_cast<int>(rank) * TILE, stages + stage * STAGE, full + stage);
    };
    // Of the first tile w's rows are asked for before the kernel before this one is done.
    int early = cluster < tiles ? (pieces < STAGES ? pieces : STAGES) : 0;
    for (int piece = 0; piece < early; ++piece) bring_w(place_of<OUTPUTS, GATED>(cluster, product.rows).output, piece, piece);
    after_the_kernel_before();
    Stop at = {0, 0};
    for (int tile = cluster; tile < tiles; tile += clusters) {
        Place place = place_of<OUTPUTS, GATED>(tile, product.rows);
        for (int piece = 0; piece < pieces; ++piece, advance<STAGES>(at)) {
            bool asked = tile == cluster && piece < early;
            if (at.round > 0) barrier_wait(empty + at.stage, (at.round - 1) & 1);
            if (!asked) bring_w(place.output, piece, at.stage);
            bring_x(place.row, piece, at.stage);
        }
    }
}

// A warpgroup: every other tile of the block, or half the rows of each. `turns[g]` ends a phase when the stages of the
// tile before one of group g's are all full: who waited for a stage sooner could take an earlier round's for its own.
template <int OUTPUTS, bool GATED>
DEVICE void multiply_tiles(void* y, const Product& product, int tiles, int pieces, u32 rank, const bf16* stages,
                           Barrier* full, Barrier* empty, Barrier* turns) {
    using Of = Wheel<OUTPUTS>;
    constexpr int STAGES = Of::STAGES, STAGE = Of::BYTES / 2, PART = 64;
    constexpr bool TOGETHER = Of::SHARED_TILES;
    int group = threadIdx.x / 128, clusters = gridDim.x / CLUSTER;
    int begin = TOGETHER ? 0 : group, step_tiles = TOGETHER ? 1 : GROUPS, first_part = TOGETHER ? group : 0;
    // Stages of all tiles of this cluster.
    int most = (tiles - static_cast<int>(blockIdx.x) / CLUSTER + clusters - 1) / clusters * pieces;
    for (int turn = begin, tile = blockIdx.x / CLUSTER + begin * clusters; tile < tiles; turn += step_tiles, tile += step_tiles * clusters) {
        float sums[Of::PARTS][OUTPUTS / 8][4];
        Stop at = {turn * pieces % STAGES, turn * pieces / STAGES};
        int last = 0;
        if (!TOGETHER && turn > 0) barrier_wait(turns + group, (turn - 1) / GROUPS & 1);
        for (int piece = 0; piece < pieces; ++piece, advance<STAGES>(at)) {
            barrier_wait(full + at.stage, at.round & 1);
            if (!TOGETHER && piece == pieces - 1 && threadIdx.x % 32 == 0) barrier_arrive(turns + (group ^ 1), rank);
            u32 from_x = tile_descriptor(stages + at.stage * STAGE + first_part * PART * DEPTH);
            u32 from_w = tile_descriptor(stages + at.stage * STAGE + TILE * DEPTH);
            products_begin();
#pragma unroll
            for (int step = 0; step < DEPTH / 16; ++step) {
#pragma unroll
                for (int part = 0; part < Of::PARTS; ++part)
                    multiply<OUTPUTS>(sums[part], from_x + part * (PART * DEPTH * 2 / 16) + step * 2, from_w + step * 2, piece + step);
            }
            products_commit();
            products_wait<1>();
            if (piece > 0 && turn * pieces + piece - 1 + STAGES < most) release(empty + last);
            last = at.stage;
        }
        products_wait<0>();
        if ((turn + 1) * pieces - 1 + STAGES < most) release(empty + last);
        Place place = place_of<OUTPUTS, GATED>(tile, product.rows);
        int first = place.row + static_cast<int>(rank) * TILE + first_part * PART + static_cast<int>(threadIdx.x) % 128 / 32 * 16;
#pragma unroll
        for (int part = 0; part < Of::PARTS; ++part) {
            int row = first + part * PART;
            if (GATED || product.into == INTO_ROWS)
                put_narrow<OUTPUTS, GATED>(sums[part], static_cast<bf16*>(y), row + static_cast<int>(threadIdx.x) % 32 / 4, product.rows, place.output, product.outputs);
            else
                put_sums<OUTPUTS>(sums[part], y, product.into, row, product.rows, place.output, product.outputs);
        }
    }
}

template <int OUTPUTS, bool GATED>
DEVICE void many_rows(const TensorMap& x, const TensorMap& w, void* y, const Product& product) {
    constexpr int STAGES = Wheel<OUTPUTS>::STAGES;
    SHARED(unsigned char, unaligned);
    bf16* stages = first_stage(unaligned);
    Barrier* full = reinterpret_cast<Barrier*>(reinterpret_cast<unsigned char*>(stages) + STAGES * Wheel<OUTPUTS>::BYTES);
    Barrier *empty = full + STAGES, *turns = empty + STAGES;
    int pairs = (product.rows + CLUSTER * TILE - 1) / (CLUSTER * TILE);
    int tiles = pairs * (product.outputs / (GATED ? OUTPUTS / 2 : OUTPUTS)), pieces = (product.depth + DEPTH - 1) / DEPTH;
    u32 rank = cluster_rank();
    for (int group = 0; group < GROUPS && threadIdx.x == 0; ++group) barrier_init(turns + group, 4);
    set_up_barriers(full, empty, STAGES, Wheel<OUTPUTS>::READERS);
    if (threadIdx.x < 128 * GROUPS) {
        after_the_kernel_before();
        multiply_tiles<OUTPUTS, GATED>(y, product, tiles, pieces, rank, stages, full, empty, turns);
    } else if (threadIdx.x == 128 * GROUPS) {
        bring_tiles<OUTPUTS, GATED>(x, w, product, tiles, pieces, rank, stages, full, empty);
    }
    cluster_sync();
}

#define MANY_ROWS(NAME, OUTPUTS, GATED) \
    KERNEL void __launch_bounds__(128 * GROUPS + 32, 1) NAME(const __grid_constant__ TensorMap x, \
                                                             const __grid_constant__ TensorMap w, void* y, Product product) { \
        many_rows<OUTPUTS, GATED>(x, w, y, product); \
    }
MANY_ROWS(many_rows_64, 64, false)
MANY_ROWS(many_rows_128, 128, false)
MANY_ROWS(many_rows_256, 256, false)
MANY_ROWS(many_rows_gated_64, 64, true)
MANY_ROWS(many_rows_gated_128, 128, true)
MANY_ROWS(many_rows_gated_256, 256, true)
#endif
