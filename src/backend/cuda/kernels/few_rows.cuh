// Products of few rows, for Hopper (sm_90a): y = x · wᵀ, x [rows, depth], w [outputs, depth]; or
// silu(x · gateᵀ) · (x · upᵀ) at once; or queries, keys and values turned.
//
// What such a product takes is bringing w from memory. So every multiprocessor gets its share of the
// outputs, and w is asked for before the kernel before this one has ended (x is not: that one writes it).
// A warp copies, a warpgroup multiplies 64 rows, or two 128, so that w is read once for twice as many; a ring of stages
// lies between them. (That blocks share what they bring of x, by multicast, made it 3 % slower on an H100, 27 November 2026,
// when a copy took longer than now.) A short ring leaves room on the multiprocessor for a block of the kernel
// behind this one, which then has its first weights, or knows where its keys lie, when this one is done. A sum is of its
// products in order, so its bits depend neither on how many rows there are nor on how outputs are shared out.
#pragma once
#include "results_turned.cuh"

constexpr int X_ROWS = 64;  // of x to a block and a warpgroup

// Panels of DEPTH columns to a stage: of narrow blocks two, whose copies and products are few and small, at the same cost each.
template <int OUTPUTS>
constexpr int PANELS_AT_ONCE = OUTPUTS <= 32 ? 2 : 1;

template <int OUTPUTS, int ROWS = X_ROWS>
constexpr int STAGE_BYTES = PANELS_AT_ONCE<OUTPUTS> * (ROWS + OUTPUTS) * DEPTH * 2;  // x's panels, then w's

#ifdef HOPPER
// One step of 16 columns for OUTPUTS outputs, in as few instructions as there are.
template <int OUTPUTS>
DEVICE void multiply_outputs(float (*sums)[4], u32 x, u32 w, int more) {
    constexpr int N = OUTPUTS >= 64 ? 64 : OUTPUTS >= 32 ? 32 : OUTPUTS >= 16 ? 16 : 8;
    multiply<N>(sums, x, w, more);
    if constexpr (OUTPUTS > N) multiply_outputs<OUTPUTS - N>(sums + N / 8, x, w + N * DEPTH * 2 / 16, more);
}

// The first row of w of a block. Of a block for gates, as many ups follow; of one for half a head, every column is
// followed, half a head further, by the one that it turns with.
template <int OUTPUTS, Kind KIND>
DEVICE int first_output() {
    constexpr int BLOCKS = KIND == TURNED ? HEAD / OUTPUTS : 1;  // to a head
    int block = static_cast<int>(blockIdx.x);
    if (KIND == TURNED) return block / BLOCKS * HEAD + block % BLOCKS * (OUTPUTS / 2);
    return block * (KIND == GATED ? OUTPUTS / 2 : OUTPUTS);
}

// A block's stages, and what lies behind them in its shared memory.
struct Ring {
    bf16* stages;
    Barrier *full, *empty;
    float* theirs;  // squares of half a head, by row
};
template <int STAGE>
DEVICE Ring set_up_ring(unsigned char* unaligned, int stages, int readers) {
    bf16* first = first_stage(unaligned);
    Barrier* full = reinterpret_cast<Barrier*>(reinterpret_cast<unsigned char*>(first) + stages * STAGE);
    set_up_barriers(full, full + stages, stages, readers);
    __syncthreads();
    return {first, full, full + stages, reinterpret_cast<float*>(full + 2 * stages)};
}

template <int OUTPUTS>
DEVICE int pieces_of(const Product& product) {
    constexpr int COLUMNS = PANELS_AT_ONCE<OUTPUTS> * DEPTH;
    return (product.depth + COLUMNS - 1) / COLUMNS;
}

// The copying thread: w's and x's panels of every stage. Each is brought by one copy, ups behind their gates: on an H100 a
// thread needs 48 cycles to ask for one, however small.
template <int OUTPUTS, Kind KIND, int ROWS = X_ROWS>
DEVICE void bring_stages(const TensorMap& x, const TensorMap& w, int row, const Product& product, const Ring& ring) {
    constexpr int STAGE = STAGE_BYTES<OUTPUTS, ROWS> / 2, ABREAST = PANELS_AT_ONCE<OUTPUTS>;
    int output = first_output<OUTPUTS, KIND>(), bytes = ABREAST * (product.x_rows + OUTPUTS) * DEPTH * 2;
    auto bring_w = [&](int piece, int stage) {
        barrier_expect(ring.full + stage, bytes);
        bring_panels(w, piece * ABREAST, output, ring.stages + stage * STAGE + ABREAST * ROWS * DEPTH, ring.full + stage);
    };
    auto bring_x = [&](int piece, int stage) { bring_panels(x, piece * ABREAST, row, ring.stages + stage * STAGE, ring.full + stage); };
    ask_for_map(x);
    int pieces = pieces_of<OUTPUTS>(product), first = pieces < product.stages ? pieces : product.stages;
    for (int piece = 0; piece < first; ++piece) bring_w(piece, piece);
    after_the_kernel_before();
    for (int piece = 0; piece < first; ++piece) bring_x(piece, piece);
    Stop at = {0, 0};
    for (int piece = first; piece < pieces; ++piece, advance(at, product.stages)) {
        // Who multiplies is done with what lay here.
        barrier_wait(ring.empty + at.stage, at.round & 1);
        bring_w(piece, at.stage);
        bring_x(piece, at.stage);
    }
}

// A warpgroup: sums of its rows of every stage in order.
template <int OUTPUTS, int ROWS = X_ROWS>
DEVICE void multiply_stages(float (&sums)[OUTPUTS / 8][4], const Product& product, const Ring& ring) {
    constexpr int STAGE = STAGE_BYTES<OUTPUTS, ROWS> / 2, ABREAST = PANELS_AT_ONCE<OUTPUTS>;
    int mine = ROWS == X_ROWS ? 0 : warpgroup() * X_ROWS * DEPTH;
    int pieces = pieces_of<OUTPUTS>(product);
    u32 first_x = tile_descriptor(ring.stages + mine), first_w = tile_descriptor(ring.stages + ABREAST * ROWS * DEPTH);
    u32 x_panel = product.x_rows * DEPTH * 2 / 16, w_panel = OUTPUTS * DEPTH * 2 / 16;
    Barrier *full = ring.full, *empty = ring.empty, *last = empty;
    compute_once(first_x), compute_once(first_w), compute_once(full), compute_once(empty);
    Stop at = {0, 0};
#pragma unroll 1
    for (int piece = 0; piece < pieces; ++piece, advance(at, product.stages)) {
        barrier_wait(full + at.stage, at.round & 1);
        if (piece == 0) {
            MARK(product, 2);
        }
        u32 from_x = first_x + at.stage * (STAGE * 2 / 16), from_w = first_w + at.stage * (STAGE * 2 / 16);
        products_begin();
#pragma unroll
        for (int step = 0; step < ABREAST * (DEPTH / 16); ++step) {
            int panel = step / (DEPTH / 16), at_step = step % (DEPTH / 16) * 2;
            multiply_outputs<OUTPUTS>(sums, from_x + panel * x_panel + at_step, from_w + panel * w_panel + at_step, step > 0 ? 1 : piece);
        }
        products_commit();
        // The stage before is read.
        products_wait<1>();
        if (piece > 0 && threadIdx.x % 32 == 0) barrier_arrive(last);
        last = empty + at.stage;
    }
    products_done(sums);
}

template <int OUTPUTS, Kind KIND, int ROWS = X_ROWS>
DEVICE void few_rows(const TensorMap& x, const TensorMap& w, void* y, const Product& product) {
    constexpr int WARPS = ROWS / 16;
    SHARED(unsigned char, unaligned);
    Ring ring = set_up_ring<STAGE_BYTES<OUTPUTS, ROWS>>(unaligned, product.stages, WARPS);
    int row = blockIdx.y * ROWS, output = first_output<OUTPUTS, KIND>();
    MARK(product, 0);
    if (threadIdx.x < 32 * WARPS) {
        float sums[OUTPUTS / 8][4];
        Place place = {row + static_cast<int>(threadIdx.x) / 32 * 16, output};
        after_the_kernel_before();
        MARK(product, 1);
        Before<OUTPUTS> before;
        if constexpr (KIND == PLAIN) before = before_sums<OUTPUTS>(y, place, product);
        multiply_stages<OUTPUTS, ROWS>(sums, product, ring);
        MARK(product, 3);
        if constexpr (KIND == GATED) put_narrow<OUTPUTS, true>(sums, static_cast<bf16*>(y), place, product);
        else put_after<OUTPUTS>(sums, before, y, place, product);
        MARK(product, 4);
    } else if (is_elected()) {
        bring_stages<OUTPUTS, KIND, ROWS>(x, w, row, product, ring);
    }
}

// A block has a head; or the two of a cluster have one, each the columns that turn with each other, and tell each other
// their squares.
template <int OUTPUTS>
DEVICE void few_rows_turned(const TensorMap& x_map, const TensorMap& w, bf16* y, const Product& product, const Turned& turned) {
    constexpr int BLOCKS = OUTPUTS / 16;
    constexpr bool HALVES = OUTPUTS < HEAD;
    SHARED(unsigned char, unaligned);
    Ring ring = set_up_ring<STAGE_BYTES<OUTPUTS>>(unaligned, product.stages, 4);
    MARK(product, 0);
    // The other block is there to be told something.
    if (HALVES) cluster_sync();
    int row = blockIdx.y * X_ROWS, output = first_output<OUTPUTS, TURNED>();
    int lane = threadIdx.x % 32, mine = static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;  // of the block's rows
    bool multiplies = threadIdx.x < 128;
    Head head = {output / HEAD, output % HEAD + lane % 4 * 2};
    float x[2][2 * BLOCKS][2] = {}, squares[2] = {};
    Seat seats[2] = {};
    // Of weights and the plan all is read before it is waited for what other kernels write.
    Angles<BLOCKS> angles[2] = {};
    Gains<BLOCKS> gains = {};
    if (multiplies) {
        const float* norm = norm_of(turned, head);
#pragma unroll
        for (int p = 0; p < BLOCKS && norm != nullptr; ++p) gains.of[p] = gain_of(norm, head, p);
        Seats all = seats_of(turned.plan, product.rows);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            seats[half] = seat_of(all, row + mine + 8 * half);
            angles[half] = angles_of_row<BLOCKS>(turned, head, seats[half].position);
        }
        float sums[OUTPUTS / 8][4];
        u32 pairs[2][2 * BLOCKS];
        after_the_kernel_before();
        MARK(product, 1);
        multiply_stages<OUTPUTS>(sums, product, ring);
        MARK(product, 3);
        round_sums<BLOCKS>(pairs, sums);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            read_row<BLOCKS>(x[half], pairs[half], turned, head);
            if constexpr (HALVES) {
                squares[half] = half_squares<BLOCKS>(x[half], x[half] + BLOCKS);
                if (lane % 4 == 0) tell_block(ring.theirs + mine + 8 * half, cluster_rank() ^ 1, squares[half]);
            } else {
                squares[half] = whole_squares<BLOCKS>(x[half]);
            }
        }
    } else if (is_elected()) {
        bring_stages<OUTPUTS, TURNED>(x_map, w, row, product, ring);
    }
    // Behind this the other block's squares are here.
    if (HALVES) cluster_sync();
    if (!multiplies) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (HALVES) squares[half] += ring.theirs[mine + 8 * half];
        put_row<BLOCKS>(x[half], squares[half], seats[half], turned, head, y, product.outputs, [&](int p) { return gains.of[p]; },
                        [&](int p) { return angles[half].of[p]; });
    }
    MARK(product, 4);
}

#define FEW_ROWS_OF(NAME, OUTPUTS, KIND, ROWS) \
    KERNEL void __launch_bounds__(ROWS * 2 + 32, 1) NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, \
                                                         void* y, Product product) { \
        few_rows<OUTPUTS, KIND, ROWS>(x, w, y, product); \
    }
#define FEW_ROWS(NAME, OUTPUTS, KIND) FEW_ROWS_OF(NAME, OUTPUTS, KIND, X_ROWS)
#define TALL_ROWS(OUTPUTS) \
    FEW_ROWS_OF(tall_rows_##OUTPUTS, OUTPUTS, PLAIN, 2 * X_ROWS) \
    FEW_ROWS_OF(tall_rows_gated_##OUTPUTS, OUTPUTS, GATED, 2 * X_ROWS)
#define FEW_ROWS_PLAIN_AND_GATED(OUTPUTS) \
    FEW_ROWS(few_rows_##OUTPUTS, OUTPUTS, PLAIN) \
    FEW_ROWS(few_rows_gated_##OUTPUTS, OUTPUTS, GATED)
#define FEW_ROWS_TURNED(OUTPUTS) \
    KERNEL void __launch_bounds__(160, 1) few_rows_turned_##OUTPUTS(const __grid_constant__ TensorMap x, \
                                                                    const __grid_constant__ TensorMap w, bf16* y, \
                                                                    Product product, Turned turned) { \
        few_rows_turned<OUTPUTS>(x, w, y, product, turned); \
    }
FEW_ROWS(few_rows_8, 8, PLAIN)
FEW_ROWS_PLAIN_AND_GATED(16)
FEW_ROWS_PLAIN_AND_GATED(32)
FEW_ROWS_PLAIN_AND_GATED(48)
FEW_ROWS_PLAIN_AND_GATED(64)
FEW_ROWS_PLAIN_AND_GATED(96)
FEW_ROWS_PLAIN_AND_GATED(128)
FEW_ROWS_PLAIN_AND_GATED(192)
TALL_ROWS(32)
TALL_ROWS(48)
TALL_ROWS(64)
TALL_ROWS(96)
FEW_ROWS_TURNED(64)
FEW_ROWS_TURNED(128)
#endif
