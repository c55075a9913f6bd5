// What the kernels share: bf16 as bits, warp sums, tensor core products, asynchronous
// copies, and the plan of a batch. With VERDICT_SHIM the same sources compile for the CPU
// (tests/cuda/shim.h).
#pragma once

// A place in a product whose time scripts/trace/limits.cu takes; nothing elsewhere.
#ifndef MARK
#define MARK(product, place)
#endif

typedef unsigned short bf16;
typedef unsigned int u32;

#ifdef VERDICT_SHIM
#include "shim.h"
#else
#define KERNEL extern "C" __global__
#define DEVICE __device__ __forceinline__
#define SHARED(type, name) type* name = reinterpret_cast<type*>(shared_bytes)

// A launch says how much there is.
extern __shared__ __align__(16) unsigned char shared_bytes[];

DEVICE float from_bf16(bf16 x) { return __uint_as_float(static_cast<u32>(x) << 16); }

// Two floats, each rounded to nearest even; `low` in the low half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

DEVICE float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// c += a · b over 16 columns: a is 16 x 16 by row, b 16 x 8 by column, c 16 x 8.
DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices; lane i gives the address of row i % 8 of matrix i / 8.
DEVICE void load_matrices(u32 (&to)[4], const bf16* row) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

DEVICE void load_matrices_transposed(u32 (&to)[4], const bf16* row) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// 16 bytes to shared memory; zeros where there is nothing to read.
DEVICE void copy_async(bf16* to, const bf16* from, bool valid) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(to));
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}

// 16 bytes to global memory at once: of a struct the compiler makes four stores where its words come from shuffles.
DEVICE void put_four(void* to, const u32 (&words)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// Brings a line of 128 bytes to L2, which will be read.
DEVICE void ask_for(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Lets the kernel behind this one begin as soon as every block of this one has, and waits until the kernel before is
// done and what it wrote is seen. Every kernel begins with it: what it reads and writes before is
// only what no kernel of a pass writes. (Programmatic dependent launch; nothing to wait for where a launch
// does not ask for it.)
DEVICE void after_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `N` of this thread's groups are on their way.
template <int N>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// What this thread's copies brought is what products of warpgroups see, which reach shared memory by a way of their own.
DEVICE void copies_shown() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
#endif

// A batch's plan: 32-bit words that the host copies in once. First this header: counts, and
// where each list begins.
enum Plan {
    ROWS,            // tokens
    ANSWERS,         // rows that are read
    TILES,           // query tiles over all rows
    WIDE,            // answers for which the whole vocabulary is read
    TOKENS,          // at: token by row
    POSITIONS,       // at: absolute position by row
    SLOTS,           // at: KV cache slot by row, or -1
    ANSWER_ROWS,     // at: row by answer
    ALL_TILES,       // at: query tiles over all rows
    ANSWER_TILES,    // at: query tiles of the answers, one each
    WIDE_ANSWERS,    // at: answers for which the whole vocabulary is read
    RUNS,            // at: runs of keys
    BLOCKS,          // at: KV blocks that runs point into
    HEADER
};

// Consecutive queries of one segment.
struct Tile {
    int query;      // first row of the queries' buffer
    int count;      // queries
    int position;   // absolute position of the first
    int first_run;  // of RUNS
    int runs;
    int reserved[3];
};

// Consecutive positions whose keys lie together.
struct Run {
    int position;
    int length;
    int source;  // first batch row; or, below 0, ~source is the place in BLOCKS
    int start;   // of a cached run: its first token in the blocks
};

// Read and written in one access.
struct alignas(16) Floats {
    float of[4];
};
struct alignas(8) Pairs {
    u32 of[2];  // of bf16
};
struct alignas(16) Quads {
    u32 of[4];  // of two bf16 each
};

constexpr int BLOCK_TOKENS = 16;
constexpr u32 FULL = 0xffffffffu;

template <class T>
DEVICE const T* list(const int* plan, int at) { return reinterpret_cast<const T*>(plan + plan[at]); }

// A plan's header, a word to a lane: one access brings all of it.
struct Header {
    const int* plan;
    int word;
};
DEVICE Header header_of(const int* plan) {
    int lane = threadIdx.x % 32;
    return {plan, lane < HEADER ? plan[lane] : 0};
}
DEVICE int word_of(const Header& header, int at) { return __shfl_sync(FULL, header.word, at); }

template <class T>
DEVICE const T* list(const Header& header, int at) { return reinterpret_cast<const T*>(header.plan + word_of(header, at)); }

DEVICE float low(u32 pair) { return from_bf16(static_cast<bf16>(pair & 0xffffu)); }
DEVICE float high(u32 pair) { return from_bf16(static_cast<bf16>(pair >> 16)); }

// Two floats, rounded; and, if asked for, what they lost in rounding.
DEVICE void put_pair(u32* to, u32* rest, float x, float y) {
    u32 rounded = pack_bf16(x, y);
    *to = rounded;
    if (rest != nullptr) *rest = pack_bf16(x - low(rounded), y - high(rounded));
}

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

// Four blocks of eight columns that were transposed, from `to` on: 16 bytes a lane.
DEVICE void put_blocks(const u32 (&pairs)[4], bf16* to) { put_four(to + threadIdx.x % 4 * 8, pairs); }

DEVICE bf16 to_bf16(float x) { return static_cast<bf16>(pack_bf16(x, 0.0f) & 0xffffu); }

// silu(gate) · up. The divisor is one or more, and of an infinite one nothing is left, as should be.
DEVICE float gated(float gate, float up) {
    return up * __fdividef(gate, 1.0f + power_of_two(-1.4426950408889634f * gate));
}

DEVICE float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL, x, step);
    return x;
}

// Sum over a block of 256 threads, the same for every thread.
DEVICE float block_sum(float x, float* parts) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < 8; ++i) sum += parts[i];
    return sum;
}

// A cached vector: `slot` counts tokens over all blocks; `head` the key heads, then the value heads.
DEVICE size_t cache_at(int slot, int layer, int layers, int kv_heads, int head, int dim) {
    size_t block = slot / BLOCK_TOKENS;
    size_t place = (block * layers + layer) * 2 * kv_heads + head;
    return (place * BLOCK_TOKENS + slot % BLOCK_TOKENS) * dim;
}
