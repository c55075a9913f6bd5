// CUDA on the CPU, for tests: one fibre a thread, blocks one after another, warp operations
// computed by the last lane that arrives; the blocks of a cluster side by side. It finds faults of
// indices, masks, reductions and layouts, threads that wait for what never comes, and what is read before it was
// waited for: asynchronous copies and products are done when they are. Compiled with a sanitizer it finds reads outside
// of buffers (address), and races of a block's threads (thread; fibres.h says what orders them).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "fibres.h"

#define KERNEL static
#define DEVICE static inline
#define __launch_bounds__(...)
#define __grid_constant__
#define SHARED(type, name) type* name = reinterpret_cast<type*>(shim::shared_of(shim::rank()))

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
constexpr size_t MOST_THREADS = 1024;  // of a cluster
// Shared memory begins where the widest swizzle repeats.
constexpr size_t ALIGNMENT = 1024;
// Done in groups, when they are waited for.
template <class Item>
struct Pending {
    std::vector<std::vector<Item>> groups;
    std::vector<Item> next;

    void add(const Item& item) { next.push_back(item); }
    void commit() {
        groups.push_back(next);
        next.clear();
    }
    // Until at most `most` groups are left.
    template <class Work>
    void wait(size_t most, Work work) {
        for (; groups.size() > most; groups.erase(groups.begin()))
            for (const Item& item : groups.front()) work(item);
    }
};

struct Copy {
    bf16* to;
    const bf16* from;
    bool valid;
};

// Of tiles in shared memory, or of rows that are held, with such tiles.
struct Product {
    void (*run)(const Product&);
    float (*sums)[4];
    unsigned long long x, w;
    int more;
    float held[2][16];
};

enum State { RUNS, WAITS_FOR_WARP, WAITS_FOR_BLOCK, WAITS_FOR_CLUSTER, WAITS_FOR_BARRIER, DONE };

// An mbarrier: a phase ends when nobody is to arrive any more and no byte to be copied.
struct Barrier {
    int32_t bytes;
    int16_t pending;
    uint8_t arrivals;
    uint8_t phase : 1, owed : 2;
};

struct Fibre {
    std::vector<char> stack;
    Context context;
    Order order;
    bool waited;  // for the kernel before
    State state;
    const Barrier* barrier;
    uint8_t phase;       // of the barrier, whose end is waited for
    uint8_t generation;  // of __syncthreads
    Pending<Copy> copies;
    Pending<Product> products;
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
static std::vector<char> shared;  // of all blocks of the cluster
static size_t shared_stride;
static unsigned first_block;      // of the cluster
static std::function<void()> body;
static Context home;
static Order order_of_home;
static int current;  // thread, over all blocks of the cluster

static unsigned rank() { return current / blockDim.x; }
static char* shared_of(unsigned rank) {
    uintptr_t base = reinterpret_cast<uintptr_t>(shared.data());
    return reinterpret_cast<char*>((base + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT) + rank * shared_stride;
}

// Phases of barriers in which another block arrived, and for whose end nobody has waited yet.
static int owed;
UNORDERED static void owe(Barrier& barrier) {
    owed += (barrier.owed >> barrier.phase & 1) == 0;
    barrier.owed |= 1 << barrier.phase;
}
UNORDERED static void settle_debt(Barrier& barrier, unsigned phase) {
    owed -= barrier.owed >> phase & 1;
    barrier.owed &= ~(1 << phase);
}

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "shim: %s (block %u %u, thread %d)\n", what, blockIdx.x, blockIdx.y, current);
    abort();
}

UNORDERED static void leave(State state) {
    fibres[current].state = state;
    order_of_home.go_on();
    switch_to(fibres[current].context, home);
}

// A fibre is made once, and runs one block's thread after another's.
static void begin() {
    for (;;) {
        acquire(&body);
        body();
        release(&body);
        leave(DONE);
    }
}

// Runs `current` until it waits or is done.
UNORDERED static void resume() {
    Fibre& fibre = fibres[current];
    threadIdx.x = current % blockDim.x;
    blockIdx.x = first_block + rank();
    fibre.order.go_on();
    switch_to(home, fibre.context);
}

// Alternates from one __syncthreads to the next.
UNORDERED static int next_generation() { return fibres[current].generation ^= 1; }

UNORDERED static bool is_over(const Barrier& barrier, uint8_t phase) { return barrier.phase != phase; }

UNORDERED static bool all_are(unsigned from, unsigned to, State state) {
    return std::all_of(fibres.begin() + from, fibres.begin() + to, [=](const Fibre& fibre) { return fibre.state == state; });
}

// Lets those go on who have waited for each other; false if there are none.
UNORDERED static bool let_go_on(unsigned threads, unsigned blocks) {
    bool released = false;
    for (unsigned block = 0; block < blocks; ++block) {
        unsigned from = block * threads, waiting = 0, done = 0;
        for (unsigned i = from; i < from + threads; ++i) {
            waiting += fibres[i].state == WAITS_FOR_BLOCK;
            done += fibres[i].state == DONE;
        }
        if (waiting == 0 || waiting + done != threads) continue;
        for (unsigned i = from; i < from + threads; ++i)
            if (fibres[i].state == WAITS_FOR_BLOCK) fibres[i].state = RUNS;
        released = true;
    }
    if (all_are(0, threads * blocks, WAITS_FOR_CLUSTER)) {
        for (unsigned i = 0; i < threads * blocks; ++i) fibres[i].state = RUNS;
        released = true;
    }
    return released;
}

// The blocks of a cluster, from `blockIdx.x` on.
UNORDERED static void run_blocks(int threads, unsigned blocks) {
    int all = threads * blocks;
    for (;;) {
        bool moved = false;
        for (int i = 0; i < all; ++i) {
            current = i;
            Fibre& fibre = fibres[i];
            if (fibre.state == WAITS_FOR_BARRIER && is_over(*fibre.barrier, fibre.phase)) fibre.state = RUNS;
            if (fibre.state == RUNS) resume(), moved = true;
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
        if (all_are(0, all, DONE)) return;
        if (!let_go_on(threads, blocks) && !moved) fail("threads wait for each other");
    }
}

// Runs `kernel` for every block, shared memory filled with what is no number. One that begins `early`, before
// the kernel before it is done, must wait for that in every warp.
static void launch(Dim grid, Dim block, size_t shared_bytes, std::function<void()> kernel, unsigned cluster = 1, bool early = false) {
    if (block.y != 1 || block.z != 1 || block.x % 32 != 0) fail("blocks are whole warps along x");
    if (grid.x % cluster != 0) fail("a grid is not made of whole clusters");
    gridDim = grid, blockDim = block, body = kernel;
    unsigned threads = block.x * cluster;
    if (threads > MOST_THREADS) fail("more threads than are thought of");
    if (fibres.empty()) fibres.resize(MOST_THREADS), lanes.resize(MOST_THREADS);
    for (unsigned i = 0; i < threads; ++i) {
        if (!fibres[i].stack.empty()) continue;
        fibres[i].stack.resize(STACK);
        start(fibres[i].context, fibres[i].stack, begin);
        fibres[i].order.start();
    }
    order_of_home.be_this();
    shared_stride = (shared_bytes + 16 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (first_block = 0; first_block < grid.x; first_block += cluster) {
                shared.assign(shared_stride * cluster + ALIGNMENT, static_cast<char>(0xff));
                for (unsigned i = 0; i < threads; ++i) {
                    Fibre& fibre = fibres[i];
                    fibre.waited = false, fibre.state = RUNS, fibre.generation = 0;
                    fibre.copies = {}, fibre.products = {};
                }
                arrived.assign(threads / 32, 0);
                owed = 0;
                shim::release(&body);
                run_blocks(block.x, cluster);
                shim::acquire(&body);
                // The arrival may be on its way when the block that it goes to is gone.
                if (owed != 0) fail("an arrival from another block was not waited for");
                for (unsigned i = 0; i < threads && early; i += 32) {
                    auto warp = fibres.begin() + i;
                    if (std::none_of(warp, warp + 32, [](const Fibre& fibre) { return fibre.waited; }))
                        fail("a warp did not wait for the kernel before");
                }
            }
}

// A warp operation: the last lane to arrive computes for all. It orders the lanes.
UNORDERED static bool is_last_of_warp() {
    int warp = current / 32;
    if (++arrived[warp] < 32) return false;
    arrived[warp] = 0;
    return true;
}
UNORDERED static void let_warp_go_on() {
    int warp = current / 32;
    for (int i = warp * 32; i < warp * 32 + 32; ++i) {
        if (i != current && fibres[i].state != WAITS_FOR_WARP) fail("a lane left a warp operation");
        fibres[i].state = RUNS;
    }
}
template <class Operation>
static void together(Operation operation) {
    int* warp = &arrived[current / 32];
    release(warp);
    if (!is_last_of_warp()) {
        leave(WAITS_FOR_WARP);
        acquire(warp);
        return;
    }
    acquire(warp);
    operation(&lanes[current / 32 * 32]);
    release(warp);
    let_warp_go_on();
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
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __uint_as_float(u32 x) { return shim::bits(x); }
static inline u32 __float_as_uint(float x) { return shim::bits_of(x); }

static inline void __syncthreads() {
    static char generations[8][2];  // by block, so that who has gone on is not waited for by who has not
    char* met = &generations[shim::rank()][shim::next_generation()];
    shim::release(met);
    shim::leave(shim::WAITS_FOR_BLOCK);
    shim::acquire(met);
}

static inline void __syncwarp() {
    shim::together([](shim::Lane*) {});
}

static inline u32 __shfl_sync(u32, u32 x, int from) {
    shim::Lane& lane = shim::lanes[shim::current];
    lane.in[0] = x, lane.source = from % 32;
    shim::together([](shim::Lane* warp) {
        for (int i = 0; i < 32; ++i) warp[i].out[0] = warp[warp[i].source].in[0];
    });
    return shim::lanes[shim::current].out[0];
}
static inline int __shfl_sync(u32 who, int x, int from) { return static_cast<int>(__shfl_sync(who, static_cast<u32>(x), from)); }

static inline u32 __shfl_xor_sync(u32 who, u32 x, int mask) { return __shfl_sync(who, x, (shim::current % 32) ^ mask); }
static inline float __shfl_xor_sync(u32 who, float x, int mask) {
    return shim::bits(__shfl_xor_sync(who, shim::bits_of(x), mask));
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

static inline void ask_for(const void* at) {
    // Nothing can be asked for where nothing is.
    volatile char read = *static_cast<const char*>(at);
    (void)read;
}

static inline void put_four(void* to, const u32 (&words)[4]) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0) shim::fail("a store is not aligned to 16 bytes");
    // By words, as a sanitizer is to see them.
    for (int i = 0; i < 4; ++i) static_cast<u32*>(to)[i] = words[i];
}

static inline void copy_async(bf16* to, const bf16* from, bool valid) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0))
        shim::fail("an asynchronous copy is not aligned to 16 bytes");
    // Nothing can be read there until it is waited for.
    memset(to, 0xff, 16);
    shim::fibres[shim::current].copies.add({to, from, valid});
}
static inline void copies_commit() { shim::fibres[shim::current].copies.commit(); }
template <int N>
static inline void copies_wait() {
    shim::fibres[shim::current].copies.wait(N, [](const shim::Copy& copy) {
        if (copy.valid) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    });
}
static inline void copies_shown() {}

static inline void after_the_kernel_before() { shim::fibres[shim::current].waited = true; }
