// What Hopper has beside (sm_90a): barriers in shared memory, copies of tiles that they count, blocks of a cluster
// that reach each other's shared memory, and products of tiles by warpgroups. HOPPER is defined where it is there.
#pragma once
#include "device.cuh"

// How a matrix lies in global memory, and which tiles are brought of it: the driver encodes it.
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

typedef unsigned long long Barrier;

constexpr int DEPTH = 64;    // columns of a tile: 128 bytes, as the swizzle has it
constexpr int CLUSTER = 2;   // blocks

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

// Every thread of the cluster's blocks has come here, and what it did before is done.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

DEVICE void barrier_init(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(barrier)), "r"(arrivals) : "memory");
}

// The other blocks and copies see the barriers that were set up.
DEVICE void barriers_set_up() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Whether this lane is the one of a warp that does what one thread is to do. Chosen so, the compiler knows that there is but
// one; else it has every copy in a loop over those there could be, about 50 cycles each by its own count.
DEVICE bool is_elected() {
    u32 elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
    return elected != 0;
}

// Arrives; the phase ends when `bytes` more have been copied.
DEVICE void barrier_expect(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(barrier)), "r"(bytes) : "memory");
}

// Arrives.
DEVICE void barrier_arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(barrier)) : "memory");
}

// Arrives at the barrier in the same place of a block of the cluster. Only copies write what the barriers
// guard, and only tensor cores read it: neither this nor the wait needs a fence of the whole cluster.
DEVICE void barrier_arrive(Barrier* barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_at(barrier)), "r"(rank)
        : "memory");
}

// A number, to the same place of another block of the cluster; it is there behind `cluster_sync`.
DEVICE void tell_block(float* place, u32 rank, float value) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nst.shared::cluster.f32 [there], %2;\n}" ::"r"(shared_at(place)),
        "r"(rank), "f"(value)
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

// How a matrix lies will be looked up soon.
DEVICE void ask_for_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// A tile from `column` and `row` on, to this block; `barrier` counts its bytes.
DEVICE void bring_tile(const TensorMap& map, int column, int row, bf16* to, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_at(to)),
        "l"(&map), "r"(shared_at(barrier)), "r"(column), "r"(row)
        : "memory");
}

// Of a matrix that is mapped by panels of DEPTH columns: from `panel` on as many as the map has, one after the other, and of each
// the rows from `row` on, and others that the map has as far apart; to this block.
DEVICE void bring_panels(const TensorMap& map, int panel, int row, bf16* to, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %3, %5}], [%2];" ::"r"(
            shared_at(to)),
        "l"(&map), "r"(shared_at(barrier)), "r"(0), "r"(row), "r"(panel)
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

// From here on a thread of this warpgroup has so many registers: fewer, and others can have more.
template <int N>
DEVICE void registers_more() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
DEVICE void registers_fewer() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// The compiler would compute these anew, from the beginning of shared memory on, each time that they are used.
DEVICE void compute_once(u32& value) { asm volatile("" : "+r"(value)); }
DEVICE void compute_once(int& value) { asm volatile("" : "+r"(value)); }
template <class T>
DEVICE void compute_once(T*& value) { asm volatile("" : "+l"(value)); }

// What is done with a sum stays behind this: before it, the compiler would have products wait for each other.
DEVICE void stay_behind(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }

#define SUMS_4(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])
#define SUMS_8(c) SUMS_4((c)[0]), SUMS_4((c)[1])
#define SUMS_16(c) SUMS_8(c), SUMS_8((c) + 2)
#define SUMS_32(c) SUMS_16(c), SUMS_16((c) + 4)
#define SUMS_64(c) SUMS_32(c), SUMS_32((c) + 8)
#define SUMS_96(c) SUMS_64(c), SUMS_32((c) + 16)
#define SUMS_128(c) SUMS_64(c), SUMS_64((c) + 16)

// sums (+)= x · wᵀ over 16 columns, by a warpgroup: 64 rows, N outputs. `more`: to what is there.
template <int N>
DEVICE void multiply(float (*sums)[4], u32 x_tile, u32 w_tile, int more) {
    static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 192 || N == 256, "an instruction that is written here");
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
    } else if constexpr (N == 64) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, 0, 0;\n}"
            : SUMS_32(sums) : "l"(x), "l"(w), "r"(more));
    } else if constexpr (N == 128) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
            "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, p, 1, 1, 0, 0;\n}"
            : SUMS_64(sums) : "l"(x), "l"(w), "r"(more));
    } else if constexpr (N == 192) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
            "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
            "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
            "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95}, %96, %97, p, 1, 1, 0, 0;\n}"
            : SUMS_96(sums) : "l"(x), "l"(w), "r"(more));
    } else {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
            "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
            "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
            "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
            "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
            "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, %128, %129, p, 1, 1, 0, 0;\n}"
            : SUMS_128(sums) : "l"(x), "l"(w), "r"(more));
    }
}

#define FACTORS(a) "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3])

// The same with rows from registers, as `mma` has them for each warp's 16: sums (+)= x · wᵀ, or · w of 16 rows if it is
// TRANSPOSED.
template <int N, bool TRANSPOSED>
DEVICE void multiply_held(float (*sums)[4], const u32 (&x)[4], unsigned long long w, int more) {
    static_assert(N == 64 || N == 128, "an instruction that is written here");
    if constexpr (N == 64) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
            : SUMS_32(sums) : FACTORS(x), "l"(w), "r"(more), "n"(TRANSPOSED));
    } else {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
            "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}"
            : SUMS_64(sums) : FACTORS(x), "l"(w), "r"(more), "n"(TRANSPOSED));
    }
}
#endif

#ifdef HOPPER
// Which of a block's warpgroups this is. Said so, the compiler knows that a whole warp has the same number, and computes with
// it once a warp what products are told.
DEVICE int warpgroup() { return __shfl_sync(FULL, static_cast<int>(threadIdx.x) / 128, 0); }

template <int BLOCKS>
DEVICE void products_done(float (&sums)[BLOCKS][4]) {
    products_wait<0>();
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) stay_behind(sums[n][i]);
    }
}

// Of every stage: full when the copying thread has said how much is to come, and it has; empty when so many warps have
// read it. Who waits for the first thread behind this knows of them, and of what that one set up before.
DEVICE void set_up_barriers(Barrier* full, Barrier* empty, int stages, int readers) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < stages; ++stage) {
            barrier_init(full + stage, 1);
            barrier_init(empty + stage, readers);
        }
        barriers_set_up();
    }
}

// A place in the ring of stages, and how often it was passed.
struct Stop {
    int stage, round;
};
DEVICE void advance(Stop& at, int stages) {
    if (++at.stage == stages) at.stage = 0, ++at.round;
}

// Where stages begin in a block's shared memory: the swizzle repeats after 1,024 bytes.
DEVICE bf16* first_stage(unsigned char* shared) {
    return reinterpret_cast<bf16*>(shared + (1024 - shared_at(shared) % 1024) % 1024);
}

// This warp has read a stage: its first lanes tell one block of the cluster each. Only of a stage that is brought again:
// who waits for that is still there to be told, and one that has ended must not be reached.
DEVICE void release(Barrier* empty) {
    if (threadIdx.x % 32 < CLUSTER) barrier_arrive(empty, threadIdx.x % 32);
}

// The lower word: where it begins, and where its next 64 columns do if it is transposed, in units of 16 bytes. Of
// others all 16 columns lie in the swizzle's 128 bytes, and there is no use for it.
DEVICE u32 tile_descriptor(const bf16* tile, u32 next_panel = 1) {
    return (shared_at(tile) & 0x3ffff) >> 4 | next_panel << 16;
}
#endif
