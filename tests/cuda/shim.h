// CUDA on the CPU, for tests: one fibre a thread, blocks one after another, warp operations
// computed by the last lane that arrives. It finds faults of indices, masks, reductions and
// layouts; not races, and copies are done at once.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define KERNEL static
#define DEVICE static inline
#define __launch_bounds__(...)
#define SHARED(type, name) type* name = reinterpret_cast<type*>(shim::shared.data())

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
struct float2 {
    float x, y;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static Dim threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr size_t STACK = 128 << 10;
enum State { RUNS, WAITS_FOR_WARP, WAITS_FOR_BLOCK, DONE };

struct Fibre {
    std::vector<char> stack;
    jmp_buf at;
    ucontext_t start;
    bool started;
    State state;
};

// What a lane brings to a warp operation, and takes from it.
struct Lane {
    uint32_t in[6];
    float c[4];
    const void* address;
    uint32_t out[4];
    int source;
};

static std::vector<Fibre> fibres;
static std::vector<Lane> lanes;
static std::vector<int> arrived;  // by warp
static std::vector<char> shared;
static std::function<void()> body;
static jmp_buf loop;
static ucontext_t home;
static int current;

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "shim: %s (block %u %u, thread %d)\n", what, blockIdx.x, blockIdx.y, current);
    abort();
}

static void leave(State state) {
    fibres[current].state = state;
    if (_setjmp(fibres[current].at) == 0) _longjmp(loop, 1);
}

static void begin() {
    body();
    fibres[current].state = DONE;
    _longjmp(loop, 1);
}

// Runs `current` until it waits or is done.
static void resume() {
    Fibre& fibre = fibres[current];
    threadIdx.x = current;
    if (_setjmp(loop) != 0) return;
    if (fibre.started) _longjmp(fibre.at, 1);
    fibre.started = true;
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = fibre.stack.data();
    fibre.start.uc_stack.ss_size = fibre.stack.size();
    fibre.start.uc_link = &home;
    makecontext(&fibre.start, begin, 0);
    setcontext(&fibre.start);
}

static void run_block(int threads) {
    for (int i = 0; i < threads; ++i) fibres[i].started = false, fibres[i].state = RUNS;
    arrived.assign(threads / 32, 0);
    for (;;) {
        bool moved = false;
        int waiting = 0, done = 0;
        for (int i = 0; i < threads; ++i) {
            current = i;
            if (fibres[i].state == RUNS) resume(), moved = true;
            // A warp operation that this lane ended lets its warp's lanes go on at once.
            if (i % 32 == 31) {
                for (int lane = i - 31; lane <= i; ++lane) {
                    if (fibres[lane].state == RUNS) {
                        i -= 32;
                        break;
                    }
                }
            }
        }
        for (int i = 0; i < threads; ++i) {
            waiting += fibres[i].state == WAITS_FOR_BLOCK;
            done += fibres[i].state == DONE;
        }
        if (done == threads) return;
        if (waiting > 0 && waiting + done == threads) {
            for (int i = 0; i < threads; ++i) {
                if (fibres[i].state == WAITS_FOR_BLOCK) fibres[i].state = RUNS;
            }
        } else if (!moved) {
            fail("threads wait for each other");
        }
    }
}

// Runs `kernel` for every block, shared memory filled with what is no number.
static void launch(Dim grid, Dim block, size_t shared_bytes, std::function<void()> kernel) {
    if (block.y != 1 || block.z != 1 || block.x % 32 != 0) fail("blocks are whole warps along x");
    gridDim = grid, blockDim = block, body = kernel;
    if (fibres.size() < block.x) fibres.resize(block.x), lanes.resize(block.x);
    for (unsigned i = 0; i < block.x; ++i) fibres[i].stack.resize(STACK);
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                shared.assign(shared_bytes + 16, static_cast<char>(0xff));
                run_block(block.x);
            }
}

// A warp operation: the last lane to arrive computes for all.
template <class Operation>
static void together(Operation operation) {
    int warp = current / 32;
    if (++arrived[warp] < 32) {
        leave(WAITS_FOR_WARP);
        return;
    }
    arrived[warp] = 0;
    operation(&lanes[warp * 32]);
    for (int i = warp * 32; i < warp * 32 + 32; ++i) {
        if (i != current && fibres[i].state != WAITS_FOR_WARP) fail("a lane left a warp operation");
        fibres[i].state = RUNS;
    }
}

static inline float bits(uint32_t x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
static inline uint32_t bits_of(float x) {
    uint32_t y;
    memcpy(&y, &x, 4);
    return y;
}
static inline uint32_t half(uint32_t pair, int which) { return which ? pair >> 16 : pair & 0xffff; }

static inline uint32_t round_bf16(float x) {
    uint32_t u = bits_of(x);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

}  // namespace shim

static inline float from_bf16(bf16 x) { return shim::bits(static_cast<uint32_t>(x) << 16); }
static inline u32 pack_bf16(float low, float high) { return shim::round_bf16(low) | shim::round_bf16(high) << 16; }
static inline float power_of_two(float x) { return exp2f(x); }
static inline float __uint_as_float(u32 x) { return shim::bits(x); }
static inline int min(int a, int b) { return a < b ? a : b; }

static inline void __syncthreads() { shim::leave(shim::WAITS_FOR_BLOCK); }

static inline float __shfl_xor_sync(u32, float x, int mask) {
    shim::Lane& lane = shim::lanes[shim::current];
    lane.in[0] = shim::bits_of(x), lane.source = (shim::current % 32) ^ mask;
    shim::together([](shim::Lane* warp) {
        for (int i = 0; i < 32; ++i) warp[i].out[0] = warp[warp[i].source].in[0];
    });
    return shim::bits(shim::lanes[shim::current].out[0]);
}

static inline void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    shim::Lane& lane = shim::lanes[shim::current];
    memcpy(lane.in, a, 16), lane.in[4] = b0, lane.in[5] = b1, memcpy(lane.c, c, 16);
    shim::together([](shim::Lane* warp) {
        float a[16][16], b[16][8];
        for (int i = 0; i < 32; ++i) {
            int group = i / 4, pair = i % 4 * 2;
            for (int r = 0; r < 4; ++r)
                for (int h = 0; h < 2; ++h)
                    a[group + r % 2 * 8][pair + r / 2 * 8 + h] = shim::bits(shim::half(warp[i].in[r], h) << 16);
            for (int r = 0; r < 2; ++r)
                for (int h = 0; h < 2; ++h) b[pair + r * 8 + h][group] = shim::bits(shim::half(warp[i].in[4 + r], h) << 16);
        }
        for (int i = 0; i < 32; ++i)
            for (int r = 0; r < 4; ++r) {
                float sum = warp[i].c[r];
                for (int k = 0; k < 16; ++k) sum += a[i / 4 + r / 2 * 8][k] * b[k][i % 4 * 2 + r % 2];
                warp[i].c[r] = sum;
            }
    });
    memcpy(c, shim::lanes[shim::current].c, 16);
}

static inline void load(u32 (&to)[4], const bf16* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) shim::fail("a matrix row is not aligned to 16 bytes");
    shim::lanes[shim::current].address = row;
    auto operation = [transposed](shim::Lane* warp) {
        for (int i = 0; i < 32; ++i)
            for (int m = 0; m < 4; ++m) {
                uint32_t pair = 0;
                for (int h = 0; h < 2; ++h) {
                    int row = transposed ? i % 4 * 2 + h : i / 4, column = transposed ? i / 4 : i % 4 * 2 + h;
                    pair |= static_cast<uint32_t>(static_cast<const bf16*>(warp[m * 8 + row].address)[column]) << 16 * h;
                }
                warp[i].out[m] = pair;
            }
    };
    shim::together(operation);
    memcpy(to, shim::lanes[shim::current].out, 16);
}
static inline void load_matrices(u32 (&to)[4], const bf16* row) { load(to, row, false); }
static inline void load_matrices_transposed(u32 (&to)[4], const bf16* row) { load(to, row, true); }

static inline void copy_async(bf16* to, const bf16* from, bool valid) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0))
        shim::fail("an asynchronous copy is not aligned to 16 bytes");
    if (valid) memcpy(to, from, 16);
    else memset(to, 0, 16);
}
static inline void copies_commit() {}
template <int N>
static inline void copies_wait() {}
