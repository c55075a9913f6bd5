// Products of few rows, for Hopper (sm_90a): y = x · wᵀ, x [rows, depth], w [outputs, depth].
//
// What such a product takes is bringing w from memory. So every multiprocessor gets its share of the
// outputs, w is asked for before the kernel before this one has ended (x is not: that one writes it), and
// the two blocks of a cluster, which multiply the same 64 rows of x, bring half of them each, to both.
// A warp copies, a warpgroup multiplies; a ring of stages lies between them. A sum is of its products
// in order, so its bits depend neither on how many rows there are nor on how outputs are shared out.
#pragma once
#include "device.cuh"

// How a matrix lies in global memory, and which tiles are brought of it: the driver encodes it.
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

typedef unsigned long long Barrier;

constexpr int X_ROWS = 64;                     // rows of x to a block
constexpr int DEPTH = 64;                      // of a stage: 128 bytes, as the swizzle has it
constexpr int X_BYTES = X_ROWS * DEPTH * 2;    // of a stage
constexpr int CLUSTER = 2;
constexpr int RING_BYTES = 200 << 10;          // most of all stages
constexpr int MOST_RING = 16;

template <int OUTPUTS>
struct Ring {
    static constexpr int BYTES = X_BYTES + OUTPUTS * DEPTH * 2;  // of a stage: x's rows, then w's
    static constexpr int STAGES = RING_BYTES / BYTES < MOST_RING ? RING_BYTES / BYTES : MOST_RING;
};

// The upper word of what tensor cores are told of a tile: eight rows 1,024 bytes further, 128-byte swizzle
// (PTX ISA, matrix descriptor of wgmma).
constexpr unsigned long long SWIZZLED = 1ull << 62 | 64ull << 32;

#if defined(VERDICT_SHIM)
#define HOPPER
#include "hopper.h"
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER

DEVICE u32 shared_at(const void* place) { return static_cast<u32>(__cvta_generic_to_shared(place)); }

DEVICE u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Every thread of both blocks has come here, and sees what the others wrote.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

DEVICE void barrier_init(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(barrier)), "r"(arrivals) : "memory");
}

// The other block and copies see the barriers that were set up.
DEVICE void barriers_set_up() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives; the phase ends when `bytes` more have been copied.
DEVICE void barrier_expect(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(barrier)), "r"(bytes) : "memory");
}

// Arrives at the barrier in the same place of a block of the cluster. Only copies write what the barriers
// guard, and only tensor cores read it: neither this nor the wait needs a fence of the whole cluster.
DEVICE void barrier_arrive(Barrier* barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_at(barrier)), "r"(rank)
        : "memory");
}

// Waits for the end of the phase with this parity.
DEVICE void barrier_wait(Barrier* barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(shared_at(barrier)), "r"(parity)
        : "memory");
}

// A tile from `column` and `row` on, to this block; `barrier` counts its bytes.
DEVICE void bring_tile(const TensorMap& map, int column, int row, bf16* to, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_at(to)),
        "l"(&map), "r"(shared_at(barrier)), "r"(column), "r"(row)
        : "memory");
}

// To the same place of both blocks; each one's barrier counts.
DEVICE void bring_tile_to_both(const TensorMap& map, int column, int row, bf16* to, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_at(to)),
        "l"(&map), "r"(shared_at(barrier)), "r"(column), "r"(row), "h"(static_cast<unsigned short>(3))
        : "memory");
}

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define SUMS_4(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])
#define SUMS_8(c) SUMS_4((c)[0]), SUMS_4((c)[1])
#define SUMS_16(c) SUMS_8(c), SUMS_8((c) + 2)
#define SUMS_32(c) SUMS_16(c), SUMS_16((c) + 4)

// sums (+)= x · wᵀ over 16 columns, by a warpgroup: 64 rows, N outputs. `more`: to what is there.
template <int N>
DEVICE void multiply(float (*sums)[4], u32 x_tile, u32 w_tile, int more) {
    static_assert(N == 8 || N == 16 || N == 32 || N == 64, "an instruction that is written here");
    unsigned long long x = SWIZZLED | x_tile, w = SWIZZLED | w_tile;
    if constexpr (N == 8) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, p, 1, 1, 0, 0;\n}"
            : SUMS_4(sums[0]) : "l"(x), "l"(w), "r"(more));
    } else if constexpr (N == 16) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, p, 1, 1, 0, 0;\n}"
            : SUMS_8(sums) : "l"(x), "l"(w), "r"(more));
    } else if constexpr (N == 32) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, p, 1, 1, 0, 0;\n}"
            : SUMS_16(sums) : "l"(x), "l"(w), "r"(more));
    } else {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, 0, 0;\n}"
            : SUMS_32(sums) : "l"(x), "l"(w), "r"(more));
    }
}
#endif

#ifdef HOPPER
// The lower word: where it begins, in units of 16 bytes, and 1 in the bits that this swizzle has no use for.
DEVICE u32 tile_descriptor(const bf16* tile) { return (shared_at(tile) & 0x3ffff) >> 4 | 1u << 16; }

// One step of 16 columns for OUTPUTS outputs, in as few instructions as there are.
template <int OUTPUTS>
DEVICE void multiply_outputs(float (*sums)[4], u32 x, u32 w, int more) {
    constexpr int N = OUTPUTS >= 64 ? 64 : OUTPUTS >= 32 ? 32 : OUTPUTS >= 16 ? 16 : 8;
    multiply<N>(sums, x, w, more);
    if constexpr (OUTPUTS > N) multiply_outputs<OUTPUTS - N>(sums + N / 8, x, w + N * DEPTH * 2 / 16, more);
}

// As the host's `Output`.
enum Into { INTO_ROWS, INTO_WIDE, INTO_SUM };

// This thread's sums of a block, to rows `first` and behind, outputs `output` and behind.
template <int OUTPUTS>
DEVICE void put_sums(const float (&sums)[OUTPUTS / 8][4], void* y, int into, int first, int rows, int output, int outputs) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int row = first + static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4 + 8 * half;
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

// The copying thread: w's and x's tiles of every stage.
template <int OUTPUTS>
DEVICE void bring_stages(const TensorMap& x, const TensorMap& w, int row, int output, int pieces, u32 rank, bf16* stages,
                         Barrier* full, Barrier* empty) {
    constexpr int RING = Ring<OUTPUTS>::STAGES, STAGE = Ring<OUTPUTS>::BYTES / 2, HALF = X_ROWS / CLUSTER;
    auto bring_w = [&](int piece, int stage) {
        barrier_expect(full + stage, Ring<OUTPUTS>::BYTES);
        bring_tile(w, piece * DEPTH, output, stages + stage * STAGE + X_BYTES / 2, full + stage);
    };
    auto bring_x = [&](int piece, int stage) {
        bf16* to = stages + stage * STAGE + rank * HALF * DEPTH;
        bring_tile_to_both(x, piece * DEPTH, row + rank * HALF, to, full + stage);
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
    // A warp's first two lanes tell one block each.
    auto release = [&](int stage) {
        if (threadIdx.x % 32 < CLUSTER) barrier_arrive(empty + stage, threadIdx.x % 32);
    };
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
        if (piece > 0) release(last);
        last = stage;
        stage = stage + 1 == RING ? 0 : stage + 1;
    }
    products_wait<0>();
}

template <int OUTPUTS>
DEVICE void few_rows(const TensorMap& x, const TensorMap& w, void* y, int into, int rows, int outputs, int depth) {
    constexpr int RING = Ring<OUTPUTS>::STAGES;
    SHARED(unsigned char, unaligned);
    bf16* stages = reinterpret_cast<bf16*>(unaligned + (1024 - shared_at(unaligned) % 1024) % 1024);
    Barrier* full = reinterpret_cast<Barrier*>(reinterpret_cast<unsigned char*>(stages) + RING * Ring<OUTPUTS>::BYTES);
    Barrier* empty = full + RING;
    int row = blockIdx.y * X_ROWS, output = blockIdx.x * OUTPUTS, pieces = (depth + DEPTH - 1) / DEPTH;
    u32 rank = cluster_rank();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < RING; ++stage) {
            barrier_init(full + stage, 1);
            barrier_init(empty + stage, 4 * CLUSTER);
        }
        barriers_set_up();
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        float sums[OUTPUTS / 8][4];
        after_the_kernel_before();
        multiply_stages<OUTPUTS>(sums, pieces, stages, full, empty);
        put_sums<OUTPUTS>(sums, y, into, row, rows, output, outputs);
    } else if (threadIdx.x == 128) {
        bring_stages<OUTPUTS>(x, w, row, output, pieces, rank, stages, full, empty);
    }
    // The other block's last copies and arrivals find this one's memory.
    cluster_sync();
}

#define FEW_ROWS(OUTPUTS) \
    KERNEL void __launch_bounds__(160, 1) few_rows_##OUTPUTS(const __grid_constant__ TensorMap x, \
                                                             const __grid_constant__ TensorMap w, void* y, int into, \
                                                             int rows, int outputs, int depth) { \
        few_rows<OUTPUTS>(x, w, y, into, rows, outputs, depth); \
    }
FEW_ROWS(8)
FEW_ROWS(16)
FEW_ROWS(32)
FEW_ROWS(48)
FEW_ROWS(64)
FEW_ROWS(96)
FEW_ROWS(128)
FEW_ROWS(192)
#endif
