// Products of many rows, for Hopper (sm_90a): y = x · wᵀ, or silu(x · gateᵀ) · (x · upᵀ) at once, or queries, keys and
// values turned.
//
// There the tensor cores are to be kept busy. A block stays on its multiprocessor and works on tiles of 128
// rows by 256 rows of w, or by fewer where that takes less time, one after another; a warp keeps the ring of
// stages full. Of a tile of 256, or of 192, two warpgroups take half the rows each: it moves the fewest bytes for each product, which
// bounds products of thousands of rows; what becomes of gates, and of heads that are turned, is computed while the next tile
// is multiplied (`results_held.cuh`), for which they take registers that who copies does not need. Of narrower ones they take
// every other tile: one multiplies while the other writes what it has. The blocks of a cluster work on the same rows of w, and
// bring half of them each, to both. A sum is of its products in order, as it is for few rows.
#pragma once
#include "few_rows.cuh"
#include "results_held.cuh"

constexpr int TILE = 128;   // rows of x to a tile
constexpr int PART = 64;    // of which a product takes so many
constexpr int GROUPS = 2;   // of four warps, that multiply
constexpr int MANY_THREADS = 128 * (GROUPS + 1);  // one thread of the last group copies
constexpr int RING_BYTES = 200 << 10;  // most of all stages

// By rows of w to a tile.
template <int OUTPUTS>
struct Wheel {
    static constexpr int HALF = OUTPUTS / CLUSTER;                // rows of w that a block brings
    static constexpr int BYTES = (TILE + OUTPUTS) * DEPTH * 2;    // of a stage: x's rows, then w's
    static constexpr int STAGES = RING_BYTES / BYTES;
    static constexpr bool SHARED_TILES = OUTPUTS > 128;           // by the warpgroups: their sums would not fit one
    static constexpr int PARTS = SHARED_TILES ? 1 : TILE / PART;  // that one works on
    static constexpr int READERS = 4 * (SHARED_TILES ? GROUPS : 1);
};

#ifdef HOPPER
// Tiles in order: of GROUP pairs of row tiles, a cluster's each, all rows of w, and then of the next ones; so those under way
// share both. The row is of a cluster's first block.
constexpr int GROUP = 8;
template <int OUTPUTS, Kind KIND>
DEVICE Place place_of(int tile, const Product& product) {
    constexpr int WIDTH = KIND == GATED ? OUTPUTS / 2 : OUTPUTS;
    int pairs = (product.rows + CLUSTER * TILE - 1) / (CLUSTER * TILE), of_group = GROUP * (product.outputs / WIDTH);
    int first = tile / of_group * GROUP, in_group = tile % of_group, there = pairs - first < GROUP ? pairs - first : GROUP;
    return {(first + in_group % there) * CLUSTER * TILE, in_group / there * WIDTH};
}

// The copying thread: of every tile, of every stage.
template <int OUTPUTS, Kind KIND>
DEVICE void bring_tiles(const TensorMap& x, const TensorMap& w, const Product& product, int tiles, int pieces,
                        u32 rank, bf16* stages, Barrier* full, Barrier* empty) {
    constexpr int STAGES = Wheel<OUTPUTS>::STAGES, STAGE = Wheel<OUTPUTS>::BYTES / 2, HALF = Wheel<OUTPUTS>::HALF;
    ask_for_map(x);
    int cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
    // The second half of w's rows: the next of them, or the ups of the first.
    int second = KIND == GATED ? product.outputs : HALF;
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
    int first = early > 0 ? place_of<OUTPUTS, KIND>(cluster, product).output : 0;
    // Of registers it has few.
#pragma unroll 1
    for (int piece = 0; piece < early; ++piece) bring_w(first, piece, piece);
    after_the_kernel_before();
    Stop at = {0, 0};
    for (int tile = cluster; tile < tiles; tile += clusters) {
        Place place = place_of<OUTPUTS, KIND>(tile, product);
#pragma unroll 1
        for (int piece = 0; piece < pieces; ++piece, advance(at, STAGES)) {
            bool asked = tile == cluster && piece < early;
            if (at.round > 0) barrier_wait(empty + at.stage, (at.round - 1) & 1);
            if (!asked) bring_w(place.output, piece, at.stage);
            bring_x(place.row, piece, at.stage);
        }
    }
}

// This warp's sums of 16 rows of each part of a tile.
template <int OUTPUTS, Kind KIND>
DEVICE void put_tile(const float (&sums)[Wheel<OUTPUTS>::PARTS][OUTPUTS / 8][4], void* y, const Place& place, const Product& product) {
#pragma unroll
    for (int part = 0; part < Wheel<OUTPUTS>::PARTS; ++part) {
        Place of_part = {place.row + part * PART, place.output};
        if constexpr (KIND == GATED) put_narrow<OUTPUTS, true>(sums[part], static_cast<bf16*>(y), of_part, product);
        else put_sums<OUTPUTS>(sums[part], y, of_part, product);
    }
}

// The same of a head that is turned. `angles` are those of the first row.
template <int PARTS>
DEVICE void put_tile_turned(const float (&sums)[PARTS][HEAD / 8][4], const TwoRows (&rows)[PARTS], Angles<HEAD / 16> angles, bf16* y,
                            const Place& place, const Product& product, const Turned& turned, const float* gains) {
    constexpr int BLOCKS = HEAD / 16, ROWS = 2 * PARTS;
    u32 pairs[ROWS][2 * BLOCKS];
    int position[ROWS], slot[ROWS];
#pragma unroll
    for (int i = 0; i < PARTS; ++i) round_sums<BLOCKS>(pairs + 2 * i, sums[i]);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) position[i] = rows[i / 2].position[i % 2], slot[i] = rows[i / 2].slot[i % 2];
    Head head = head_at(place.output);
    const float* norm = gains + (head.number < turned.query_heads ? 0 : HEAD);
    int first = place.row + static_cast<int>(threadIdx.x) % 32 / 4;
    // Row by row, and the next ones move up: all at once would need more registers than there are. The next one's angles are
    // asked for before they are needed.
#pragma unroll 1
    for (int i = 0; i < ROWS; ++i) {
        Angles<BLOCKS> next = angles;
        if (i + 1 < ROWS) next = angles_of_row<BLOCKS>(turned, head, position[1]);
        Seat seat = {first + i / 2 * PART + i % 2 * 8, position[0], slot[0], position[0] >= 0};
        float x[2 * BLOCKS][2];
        read_row<BLOCKS>(x, pairs[0], turned, head);
        put_row<BLOCKS>(x, whole_squares<BLOCKS>(x), seat, turned, head, y, product.outputs, [&](int p) { return gain_of(norm, head, p); },
                        [&](int p) { return angles.of[p]; });
        angles = next;
#pragma unroll
        for (int row = 1; row < ROWS; ++row) {
            position[row - 1] = position[row], slot[row - 1] = slot[row];
#pragma unroll
            for (int n = 0; n < 2 * BLOCKS; ++n) pairs[row - 1][n] = pairs[row][n];
        }
    }
}

// What a warpgroup's tile is added to, of `rows` rows from one on, while it is computed.
template <int OUTPUTS>
DEVICE void ask_for_rows(const float* y, int first, int rows, int output, const Product& product) {
    constexpr int LINES = OUTPUTS / 32;
    for (int i = threadIdx.x % 128; i < rows * LINES; i += 128) {
        int row = first + i / LINES;
        if (row < product.rows) ask_for(y + static_cast<size_t>(row) * product.outputs + output + i % LINES * 32);
    }
}

// A warpgroup: every other tile of the block, or half the rows of each. `turns[g]` ends a phase when the stages of the
// tile before one of group g's are all full: who waited for a stage sooner could take an earlier round's for its own.
template <int OUTPUTS, Kind KIND>
DEVICE void multiply_tiles(void* y, const Product& product, const Turned& turned, int tiles, int pieces, u32 rank,
                           const bf16* stages, Barrier* full, Barrier* empty, Barrier* turns, const float* gains) {
    using Of = Wheel<OUTPUTS>;
    constexpr int STAGES = Of::STAGES, STAGE = Of::BYTES / 2;
    constexpr bool TOGETHER = Of::SHARED_TILES, LATER = TOGETHER && KIND != PLAIN;
    int group = warpgroup(), clusters = gridDim.x / CLUSTER;
    int begin = TOGETHER ? 0 : group, step_tiles = TOGETHER ? 1 : GROUPS, first_part = TOGETHER ? group : 0;
    u32 first_x = tile_descriptor(stages + first_part * PART * DEPTH), first_w = tile_descriptor(stages + TILE * DEPTH);
    compute_once(first_x), compute_once(first_w), compute_once(full), compute_once(empty);
    // Stages of all tiles of this cluster.
    int most = (tiles - static_cast<int>(blockIdx.x) / CLUSTER + clusters - 1) / clusters * pieces;
    Held<OUTPUTS, LATER ? KIND : PLAIN> held;
    bool holds = false;
    for (int turn = begin, tile = blockIdx.x / CLUSTER + begin * clusters; tile < tiles; turn += step_tiles, tile += step_tiles * clusters) {
        float sums[Of::PARTS][OUTPUTS / 8][4];
        Place place = place_of<OUTPUTS, KIND>(tile, product);
        place.row += static_cast<int>(rank) * TILE + first_part * PART;
        if (KIND == PLAIN && product.into == INTO_SUM)
            ask_for_rows<OUTPUTS>(static_cast<const float*>(y), place.row, Of::PARTS * PART, place.output, product);
        TwoRows rows[Of::PARTS] = {};
        Angles<HEAD / 16> angles = {};
        int of_warp = static_cast<int>(threadIdx.x) % 128 / 32 * 16;
#pragma unroll
        for (int part = 0; part < Of::PARTS && KIND == TURNED; ++part)
            rows[part] = rows_of(turned.plan, product, {place.row + part * PART + of_warp, 0});
        // The first product of a tile does not read them. But the compiler cannot know, and would keep the last tile's for
        // it while they are written, which needs their registers.
#pragma unroll
        for (int part = 0; part < Of::PARTS; ++part) {
#pragma unroll
            for (int n = 0; n < OUTPUTS / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[part][n][i] = 0.0f;
            }
        }
        Stop at = {turn * pieces % STAGES, turn * pieces / STAGES};
        int last = 0;
        if (!TOGETHER && turn > 0) barrier_wait(turns + group, (turn - 1) / GROUPS & 1);
#pragma unroll 1
        for (int piece = 0; piece < pieces; ++piece, advance(at, STAGES)) {
            barrier_wait(full + at.stage, at.round & 1);
            if (!TOGETHER && piece == pieces - 1 && threadIdx.x % 32 == 0) barrier_arrive(turns + (group ^ 1), rank);
            u32 from_x = first_x + at.stage * (STAGE * 2 / 16), from_w = first_w + at.stage * (STAGE * 2 / 16);
            products_begin();
#pragma unroll
            for (int step = 0; step < DEPTH / 16; ++step) {
#pragma unroll
                for (int part = 0; part < Of::PARTS; ++part)
                    multiply<OUTPUTS>(sums[part], from_x + part * (PART * DEPTH * 2 / 16) + step * 2, from_w + step * 2, step > 0 ? 1 : piece);
            }
            products_commit();
            // They come while the tile is multiplied.
            if (KIND == TURNED && !LATER && piece == 0) angles = angles_of_row<HEAD / 16>(turned, head_at(place.output), rows[0].position[0]);
            if (LATER && holds) put_held(held, piece, static_cast<bf16*>(y), product, turned, gains);
            products_wait<1>();
            if (piece > 0 && turn * pieces + piece - 1 + STAGES < most) release(empty + last);
            last = at.stage;
        }
        // Behind the last tile nothing is multiplied; nor are there stages enough of one that is not deep. For a bias there are
        // no registers.
        holds = LATER && tile + clusters < tiles && pieces >= held.PARTS && (KIND != TURNED || turned.bias == nullptr);
#pragma unroll
        for (int part = 0; part < Of::PARTS; ++part) products_done(sums[part]);
        if ((turn + 1) * pieces - 1 + STAGES < most) release(empty + last);
        place.row += of_warp;
        if constexpr (LATER) {
            take_sums(held, sums[0]);
            held.place = place;
        }
        if constexpr (LATER && KIND == TURNED) {
            held.rows = rows[0];
            if (holds) held.next = angles_of(held, 0, turned);
            else put_heads(held, static_cast<bf16*>(y), product, turned, gains);
        } else if constexpr (LATER) {
#pragma unroll 1
            for (int part = 0; !holds && part < held.PARTS; ++part) put_held(held, part, static_cast<bf16*>(y), product, turned, gains);
        } else if constexpr (KIND == TURNED) {
            put_tile_turned(sums, rows, angles, static_cast<bf16*>(y), place, product, turned, gains);
        } else {
            put_tile<OUTPUTS, KIND>(sums, y, place, product);
        }
    }
}

template <int OUTPUTS, Kind KIND>
DEVICE void many_rows(const TensorMap& x, const TensorMap& w, void* y, const Product& product, const Turned& turned) {
    constexpr int STAGES = Wheel<OUTPUTS>::STAGES;
    SHARED(unsigned char, unaligned);
    bf16* stages = first_stage(unaligned);
    Barrier* full = reinterpret_cast<Barrier*>(reinterpret_cast<unsigned char*>(stages) + STAGES * Wheel<OUTPUTS>::BYTES);
    Barrier *empty = full + STAGES, *turns = empty + STAGES;
    float* gains = reinterpret_cast<float*>(turns + GROUPS);
    // Weights: no kernel writes them.
    if (KIND == TURNED && threadIdx.x < 2 * HEAD) {
        const float* norm = threadIdx.x < HEAD ? turned.query_norm : turned.key_norm;
        if (norm != nullptr) gains[threadIdx.x] = norm[threadIdx.x % HEAD];
    }
    int pairs = (product.rows + CLUSTER * TILE - 1) / (CLUSTER * TILE);
    int tiles = pairs * (product.outputs / (KIND == GATED ? OUTPUTS / 2 : OUTPUTS)), pieces = (product.depth + DEPTH - 1) / DEPTH;
    u32 rank = cluster_rank();
    for (int group = 0; group < GROUPS && threadIdx.x == 0; ++group) barrier_init(turns + group, 4);
    set_up_barriers(full, empty, STAGES, Wheel<OUTPUTS>::READERS * CLUSTER);
    cluster_sync();
    if (threadIdx.x < 128 * GROUPS) {
        registers_more<240>();
        after_the_kernel_before();
        multiply_tiles<OUTPUTS, KIND>(y, product, turned, tiles, pieces, rank, stages, full, empty, turns, gains);
    } else {
        registers_fewer<24>();
        if (threadIdx.x >= 128 * GROUPS + 32) after_the_kernel_before();
        else if (is_elected()) bring_tiles<OUTPUTS, KIND>(x, w, product, tiles, pieces, rank, stages, full, empty);
    }
    cluster_sync();
}

#define MANY_ROWS(NAME, OUTPUTS, KIND) \
    KERNEL void __launch_bounds__(MANY_THREADS, 1) NAME(const __grid_constant__ TensorMap x, \
                                                        const __grid_constant__ TensorMap w, void* y, Product product) { \
        many_rows<OUTPUTS, KIND>(x, w, y, product, {}); \
    }
MANY_ROWS(many_rows_64, 64, PLAIN)
MANY_ROWS(many_rows_128, 128, PLAIN)
MANY_ROWS(many_rows_256, 256, PLAIN)
MANY_ROWS(many_rows_gated_64, 64, GATED)
MANY_ROWS(many_rows_gated_128, 128, GATED)
MANY_ROWS(many_rows_gated_192, 192, GATED)
MANY_ROWS(many_rows_gated_256, 256, GATED)

#define MANY_ROWS_TURNED(OUTPUTS) \
    KERNEL void __launch_bounds__(MANY_THREADS, 1) many_rows_turned_##OUTPUTS(const __grid_constant__ TensorMap x, \
                                                                              const __grid_constant__ TensorMap w, bf16* y, \
                                                                              Product product, Turned turned) { \
        many_rows<OUTPUTS, TURNED>(x, w, y, product, turned); \
    }
MANY_ROWS_TURNED(128)
MANY_ROWS_TURNED(256)
#endif
