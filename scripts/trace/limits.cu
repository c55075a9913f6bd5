// What bounds our own kernels on a Hopper GPU, measured with what they are made of: how long a product waits for the one
// before, what attention does for a tile, how fast tiles come, what lies between two kernels, and where the time of a layer's
// products goes.
//
//     nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -I src/backend/cuda/kernels scripts/trace/limits.cu -o limits && ./limits
#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <vector>

#define MARK(product, place) mark(product.outputs, product.depth, place)

// Clocks by product, block and place; and the nanosecond of each block's first and last mark.
constexpr int PLACES = 5, BLOCKS_MARKED = 512;
struct Marks {
    unsigned clock[PLACES];
    unsigned long long begin, end;
};
__device__ Marks board[4][BLOCKS_MARKED];

__device__ __forceinline__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
__device__ __forceinline__ void mark(int outputs, int depth, int place) {
    int block = blockIdx.y * gridDim.x + blockIdx.x;
    if (threadIdx.x != 0 || block >= BLOCKS_MARKED) return;
    Marks& to = board[depth > 2048 ? 3 : depth > 1024 ? 2 : outputs == 3072 ? 1 : 0][block];
    to.clock[place] = clock();
    if (place == 0) to.begin = nanoseconds();
    if (place == PLACES - 1) to.end = nanoseconds();
}

// The host is to know of the kernels, too.
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH_FEAT_SM90_ALL
#endif
#include "attention_hopper.cuh"
#include "rows.cuh"
#include "many_rows.cuh"

#define CHECK(call) check(call, #call)
static void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(status));
    exit(1);
}

// Cycles of a step of 16 columns, by how many outputs, one warpgroup alone: as `multiply_stages`, without waiting for tiles.
template <int OUTPUTS>
__global__ void chain_of_warpgroup(long long* took, float* kept, int pieces) {
    SHARED(unsigned char, unaligned);
    bf16* tile = first_stage(unaligned);
    for (int i = threadIdx.x; i < (64 + OUTPUTS) * DEPTH; i += 128) tile[i] = 0;
    copies_shown();
    __syncthreads();
    float sums[OUTPUTS / 8][4];
    u32 x = tile_descriptor(tile), w = tile_descriptor(tile + 64 * DEPTH);
    compute_once(x), compute_once(w);
    long long began = clock64();
#pragma unroll 1
    for (int piece = 0; piece < pieces; ++piece) {
        products_begin();
#pragma unroll
        for (int step = 0; step < DEPTH / 16; ++step)
            multiply_outputs<OUTPUTS>(sums, x + step * 2, w + step * 2, step > 0 ? 1 : piece);
        products_commit();
        products_wait<1>();
    }
    products_done(sums);
    if (threadIdx.x == 0) *took = clock64() - began;
    for (int n = 0; n < OUTPUTS / 8; ++n)
        for (int i = 0; i < 4; ++i) kept[(n * 4 + i) * 128 + threadIdx.x] = sums[n][i];
}

// Cycles that attention takes for a tile, or for a part of it, where keys and values are there.
enum Part { WHOLE, SCORES, WEIGHTS, VALUES };
template <Part PART>
__global__ void __launch_bounds__(128, 3) attention_tiles(long long* took, float* kept, int tiles) {
    SHARED(unsigned char, unaligned);
    bf16 *keys = first_stage(unaligned), *values = keys + BUFFER<128, PANELS>;
    for (int i = threadIdx.x; i < 2 * BUFFER<128, PANELS>; i += 128) keys[i] = 0;
    copies_shown();
    __syncthreads();
    Rows<128> rows = {};
    begin<128>(rows);
    rows.seen[0] = rows.seen[1] = tiles * TILE_KEYS;
    float scores[TILE_KEYS / 8][4] = {};
    u32 weights[TILE_KEYS / 16][4] = {};
    long long began = clock64();
    for (int tile = 0; tile < tiles; ++tile) {
        __syncthreads();
        if (PART == WHOLE) attend_together<128>(rows, [] {}, keys, values, tile * TILE_KEYS, 1.0f);
        if (PART == SCORES) score_together<128>(scores, rows, keys), products_wait<0>();
        if (PART == WEIGHTS) weigh<128, TILE_KEYS>(rows, scores, tile * TILE_KEYS, 1.0f);
        if (PART == VALUES) sum_together<128>(rows, weights, values);
    }
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<unsigned long long*>(took), static_cast<unsigned long long>(clock64() - began));
    for (int i = 0; i < 64; ++i) kept[i * 128 + threadIdx.x] = rows.sums[i / 4][i % 4] + scores[i / 8][i % 4] + rows.total[i % 2];
}

// Tiles through a ring as `bring_stages` has them, whose readers read nothing: cycles a piece, of the slowest block.
template <int ROWS>
__global__ void tiles_of(const __grid_constant__ TensorMap map, int brought, int pieces, int apart, int stages, long long* took) {
    SHARED(unsigned char, unaligned);
    Ring ring = set_up_ring<ROWS * DEPTH * 2>(unaligned, stages, 1);
    long long began = clock64();
    if (threadIdx.x == 0) {
        Stop at = {0, 0};
        for (int piece = 0; piece < pieces; ++piece, advance(at, stages)) {
            barrier_wait(ring.full + at.stage, at.round & 1);
            barrier_arrive(ring.empty + at.stage);
        }
        atomicMax(reinterpret_cast<unsigned long long*>(took), static_cast<unsigned long long>(clock64() - began));
    } else if (threadIdx.x >= 32 && is_elected()) {
        Stop at = {0, 0};
        for (int piece = 0; piece < pieces; ++piece, advance(at, stages)) {
            if (at.round > 0) barrier_wait(ring.empty + at.stage, (at.round - 1) & 1);
            barrier_expect(ring.full + at.stage, brought * DEPTH * 2);
            bring_tile(map, piece * DEPTH, blockIdx.x * apart, ring.stages + at.stage * ROWS * DEPTH, ring.full + at.stage);
        }
    }
}

// So many copies at once that one thread asks for: cycles until all are asked for, and until all are there, of the slowest block.
__global__ void copies_of(const __grid_constant__ TensorMap map, int rows, int panels, int copies, int apart, unsigned* took) {
    SHARED(unsigned char, unaligned);
    bf16* to = first_stage(unaligned);
    int bytes = rows * panels * DEPTH * 2;
    Barrier* barrier = reinterpret_cast<Barrier*>(reinterpret_cast<unsigned char*>(to) + copies * bytes);
    if (threadIdx.x == 0) barrier_init(barrier, 1), barriers_set_up();
    __syncthreads();
    if (!is_elected()) return;
    ask_for_map(map);
    unsigned began = clock();
    barrier_expect(barrier, copies * bytes);
    for (int i = 0; i < copies; ++i) bring_panels(map, i * panels, blockIdx.x * apart, to + i * (bytes / 2), barrier);
    unsigned asked = clock();
    barrier_wait(barrier, 0);
    atomicMax(took, asked - began), atomicMax(took + 1, clock() - began);
}

// Numbers of many sizes, of which as many are of either sign: what is left of a sum is what its order made of it.
__global__ void fill(bf16* to, size_t count) {
    for (size_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
        u32 hash = static_cast<u32>(i) * 2654435761u;
        hash ^= hash >> 15, hash *= 2246822519u, hash ^= hash >> 13;
        to[i] = static_cast<bf16>((hash & 0x807f) | (117 + hash % 21) << 7);
    }
}

__global__ void nothing(int* to) {
    after_the_kernel_before();
    if (to != nullptr && threadIdx.x == 0) to[blockIdx.x] = blockIdx.x;
}

static TensorMap map_by(const void* at, unsigned dimensions, const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* tile) {
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static auto encode = reinterpret_cast<Encode>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuTensorMapEncodeTiled"));
    CUtensorMap map;
    cuuint32_t steps[] = {1, 1, 1, 1};
    CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, dimensions, const_cast<void*>(at), sizes, strides, tile, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) printf("a tensor map: %d\n", status), exit(1);
    TensorMap ours;
    memcpy(&ours, &map, sizeof ours);
    return ours;
}
static TensorMap map_of(const void* at, size_t rows, size_t depth, unsigned tile_rows) {
    cuuint64_t sizes[] = {depth, rows}, strides[] = {depth * 2};
    cuuint32_t tile[] = {64, tile_rows};
    return map_by(at, 2, sizes, strides, tile);
}

// Panels, as few rows have them: of each `tile_rows` rows, and, if `apart` is not 0, as many that lie so far from them.
static TensorMap panels_of(const void* at, size_t rows, size_t depth, unsigned tile_rows, unsigned panels, size_t apart = 0) {
    cuuint64_t sizes[] = {64, rows - apart, apart ? 2u : 1u, depth / 64}, strides[] = {depth * 2, (apart ? apart : 1) * depth * 2, 128};
    cuuint32_t tile[] = {64, tile_rows, apart ? 2u : 1u, panels};
    return map_by(at, 4, sizes, strides, tile);
}

template <class... Declared, class... Given>
static void launch(cudaStream_t stream, void (*kernel)(Declared...), dim3 grid, unsigned threads, size_t shared, unsigned cluster, bool early, Given... given) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
    cudaLaunchAttribute asked[2];
    asked[0].id = cudaLaunchAttributeProgrammaticStreamSerialization, asked[0].val.programmaticStreamSerializationAllowed = early;
    asked[1].id = cudaLaunchAttributeClusterDimension, asked[1].val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config = {grid, dim3(threads), shared, stream, asked, cluster > 1 ? 2u : 1u};
    CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Declared>(given)...));
}

// Microseconds of a graph, the least of some.
static double time_of(cudaStream_t stream, const std::function<void()>& record) {
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    record();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&ready, graph, 0));
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin)), CHECK(cudaEventCreate(&end));
    float least = 1e30f;
    for (int i = 0; i < 20; ++i) {
        float took;
        CHECK(cudaEventRecord(begin, stream)), CHECK(cudaGraphLaunch(ready, stream)), CHECK(cudaEventRecord(end, stream));
        CHECK(cudaStreamSynchronize(stream)), CHECK(cudaEventElapsedTime(&took, begin, end));
        least = std::min(least, took);
    }
    CHECK(cudaGraphExecDestroy(ready)), CHECK(cudaGraphDestroy(graph));
    return least * 1e3;
}

template <class T>
static T* memory(size_t count) {
    T* at;
    CHECK(cudaMalloc(&at, count * sizeof(T)));
    CHECK(cudaMemset(at, 0, count * sizeof(T)));
    return at;
}

template <int OUTPUTS>
static void say_chain(cudaStream_t stream, long long* took, float* kept) {
    constexpr int PIECES = 64;
    long long cycles = 0;
    for (int i = 0; i < 2; ++i) {
        launch(stream, chain_of_warpgroup<OUTPUTS>, dim3(1), 128, 1024 + (64 + OUTPUTS) * 128, 1, false, took, kept, PIECES);
        CHECK(cudaMemcpy(&cycles, took, 8, cudaMemcpyDeviceToHost));
    }
    printf("  a warpgroup's, %3d outputs: %.1f cycles a step of 16 columns\n", OUTPUTS, static_cast<double>(cycles) / PIECES / 4);
}

static void chains(cudaStream_t stream) {
    auto* took = memory<long long>(1);
    auto* kept = memory<float>(96 * 128);
    printf("products that wait for each other\n");
    say_chain<8>(stream, took, kept), say_chain<16>(stream, took, kept), say_chain<32>(stream, took, kept), say_chain<48>(stream, took, kept);
    say_chain<64>(stream, took, kept), say_chain<96>(stream, took, kept), say_chain<128>(stream, took, kept), say_chain<192>(stream, took, kept);
}

template <Part PART>
static void say_attention(cudaStream_t stream, const char* what, int multiprocessors) {
    constexpr int TILES = 64;
    auto* took = memory<long long>(1);
    auto* kept = memory<float>(64 * 128);
    printf("  %s:", what);
    for (int blocks : {1, 2, 3}) {
        long long cycles = 0;
        for (int i = 0; i < 2; ++i) {
            CHECK(cudaMemset(took, 0, 8));
            // Of so much shared memory three have room.
            launch(stream, attention_tiles<PART>, dim3(blocks * multiprocessors), 128, 74 << 10, 1, false, took, kept, TILES);
            CHECK(cudaMemcpy(&cycles, took, 8, cudaMemcpyDeviceToHost));
        }
        printf(" %.0f", static_cast<double>(cycles) / TILES);
    }
    printf("\n");
}

static void attention(cudaStream_t stream) {
    int multiprocessors;
    CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    printf("attention's 64 rows by 64 keys, cycles by one to three blocks on each multiprocessor\n");
    say_attention<WHOLE>(stream, "a tile", multiprocessors), say_attention<SCORES>(stream, "scores", multiprocessors);
    say_attention<WEIGHTS>(stream, "weights", multiprocessors), say_attention<VALUES>(stream, "values", multiprocessors);
}

// So deep that the rows of all blocks, 26 MB, have room in L2.
constexpr int TILES_DEPTH = 24 * DEPTH;
template <int ROWS>
static void say_tiles(cudaStream_t stream, const bf16* matrix, const char* what, size_t rows_there, unsigned brought, int blocks, int apart) {
    constexpr int PIECES = TILES_DEPTH / DEPTH, STAGES = 8;
    auto* took = memory<long long>(1);
    TensorMap map = map_of(matrix, rows_there, TILES_DEPTH, brought);
    long long cycles = 0;
    for (int i = 0; i < 3; ++i) {
        CHECK(cudaMemset(took, 0, 8));
        launch(stream, tiles_of<ROWS>, dim3(blocks), 64, 1024 + STAGES * (ROWS * 128 + 16), 1, false, map, static_cast<int>(brought), PIECES, apart, STAGES, took);
        CHECK(cudaMemcpy(&cycles, took, 8, cudaMemcpyDeviceToHost));
    }
    printf("  %s, %d blocks: %.0f cycles for %u rows of 128 bytes\n", what, blocks, static_cast<double>(cycles) / PIECES, brought);
    CHECK(cudaFree(took));
}

static void tiles(cudaStream_t stream) {
    auto* matrix = memory<bf16>(static_cast<size_t>(132 * 64) * TILES_DEPTH);
    printf("tiles to shared memory, from L2\n");
    for (int blocks : {1, 66, 132}) {
        say_tiles<64>(stream, matrix, "the same 64 rows", 64, 64, blocks, 0);
        say_tiles<64>(stream, matrix, "64 rows of each", 132 * 64, 64, blocks, 64);
        say_tiles<32>(stream, matrix, "the same 32 rows", 32, 32, blocks, 0);
        say_tiles<64>(stream, matrix, "the same 8 of 64 rows", 8, 64, blocks, 0);
        say_tiles<64>(stream, matrix, "the same 8 rows", 8, 8, blocks, 0);
    }
    CHECK(cudaFree(matrix));
}

static void copies(cudaStream_t stream) {
    constexpr int BLOCKS = 132, DEEP = 8192;
    auto* took = memory<unsigned>(2);
    auto* matrix = memory<bf16>(static_cast<size_t>(BLOCKS) * 16 * DEEP);
    printf("copies to shared memory, from L2, that one thread asks for\n");
    for (int blocks : {1, BLOCKS})
        for (auto [rows, panels, count, apart] : {std::tuple{8, 1, 128, 0}, {16, 1, 64, 0}, {16, 1, 64, 16}, {16, 2, 32, 16}, {16, 4, 16, 16}, {64, 1, 24, 0}}) {
            TensorMap map = panels_of(matrix, BLOCKS * 16, DEEP, rows, panels);
            unsigned cycles[2];
            for (int i = 0; i < 3; ++i) {
                CHECK(cudaMemset(took, 0, sizeof cycles));
                launch(stream, copies_of, dim3(blocks), 32, 1024 + count * rows * panels * 128 + 64, 1, false, map, rows, panels, count, apart, took);
                CHECK(cudaStreamSynchronize(stream));
                CHECK(cudaMemcpy(cycles, took, sizeof cycles, cudaMemcpyDeviceToHost));
            }
            printf("  %d blocks, %d of %d rows of %d times 128 bytes, %s: %.0f cycles to ask for each, there at %.0f bytes a cycle\n", blocks, count, rows, panels,
                   apart ? "each its own" : "the same", static_cast<double>(cycles[0]) / count, count * rows * panels * 128.0 / cycles[1]);
        }
    CHECK(cudaFree(matrix));
}

static void boundaries(cudaStream_t stream) {
    printf("a kernel that does nothing behind another\n");
    int* to = memory<int>(1024);
    for (bool early : {false, true})
        for (auto [blocks, shared] : {std::pair{1u, 0}, {128u, 0}, {128u, 110 << 10}, {128u, 200 << 10}}) {
            double took = time_of(stream, [&, blocks = blocks, shared = shared] {
                for (int i = 0; i < 200; ++i) launch(stream, nothing, dim3(blocks), 160, shared, 1, early, to);
            });
            printf("  %u blocks, %d KiB, %s: %.2f us\n", blocks, shared >> 10, early ? "early" : "when it is done", took / 200);
        }
}

// A layer's products and norms as a pass of few rows has them, of Qwen3-0.6B's shape; attention is left out.
constexpr int HIDDEN = 1024, QUERIES = 2048, KEYS = 1024, INNER = 3072, LAYERS_THERE = 8, LAYERS_RUN = 28;
struct Layer {
    TensorMap qkv, output, gates, down;
};

using Multiply = void (*)(const TensorMap, const TensorMap, void*, Product);
struct Way {
    const char* name;
    Multiply multiply;
    int rows, width;
    unsigned threads;
};

static int panels_of(const Way& way) { return way.width <= 32 ? 2 : 1; }

static void layer_of(cudaStream_t stream, int rows, Way narrow, Way gates, int ring) {
    static auto* weights = memory<bf16>(static_cast<size_t>(LAYERS_THERE) * (QUERIES + 2 * KEYS + QUERIES + 9 * HIDDEN) * HIDDEN);
    static auto* activations = memory<bf16>(static_cast<size_t>(256) * (HIDDEN + QUERIES + 2 * KEYS + QUERIES + INNER));
    static auto* residual = memory<float>(256 * HIDDEN);
    static auto* tables = memory<float>(4096 * 128);
    std::vector<int> words(HEADER + 512, -1);
    words[ROWS] = rows, words[POSITIONS] = HEADER, words[SLOTS] = HEADER + 256;
    for (int i = 0; i < 256; ++i) words[HEADER + i] = i;
    static auto* plan = memory<int>(HEADER + 512);
    CHECK(cudaMemcpy(plan, words.data(), words.size() * 4, cudaMemcpyHostToDevice));
    bf16 *normed = activations, *qkv = normed + 256 * HIDDEN, *attended = qkv + 256 * (QUERIES + 2 * KEYS), *activated = attended + 256 * QUERIES;
    auto brought = [&](int tile) { return std::min(tile, (rows + 7) / 8 * 8); };
    auto stages = [&](int stage) { return std::clamp((ring << 10) / stage, 2, 24); };
    std::vector<Layer> layers;
    bf16* at = weights;
    auto next = [&](int outputs, int depth, int tile, int panels, int apart = 0) {
        TensorMap map = panels_of(at, outputs, depth, tile, panels, apart);
        at += static_cast<size_t>(outputs) * depth;
        return map;
    };
    for (int i = 0; i < LAYERS_THERE; ++i) {
        TensorMap of_qkv = next(QUERIES + 2 * KEYS, HIDDEN, 32, 1, HEAD / 2), of_output = next(HIDDEN, QUERIES, narrow.width, panels_of(narrow));
        layers.push_back({of_qkv, of_output, next(2 * INNER, HIDDEN, gates.width / 2, panels_of(gates), INNER), next(HIDDEN, INNER, narrow.width, panels_of(narrow))});
    }
    auto norm = [&] { launch(stream, add_norm_held, dim3((rows + 3) / 4), 128, 0, 1, true, plan, static_cast<int>(ROWS), residual, nullptr, tables, normed, HIDDEN, 1e-6f); };
    auto multiply = [&](const Way& kind, const TensorMap& w, const bf16* x, int into, void* y, int outputs, int of_w, int depth) {
        int stage = panels_of(kind) * (kind.rows + kind.width) * 128, ring_stages = stages(stage);
        TensorMap of_x = panels_of(x, rows, depth, brought(kind.rows), panels_of(kind));
        Product product{into, rows, outputs, depth, ring_stages, brought(kind.rows)};
        launch(stream, kind.multiply, dim3(of_w / kind.width, (rows + kind.rows - 1) / kind.rows), kind.threads, 1024 + ring_stages * (stage + 16), 1, true, of_x, w, y, product);
    };
    double took = time_of(stream, [&] {
        for (int i = 0; i < LAYERS_RUN; ++i) {
            const Layer& layer = layers[i % LAYERS_THERE];
            norm();
            int stage = STAGE_BYTES<64>, ring_stages = stages(stage), outputs = QUERIES + 2 * KEYS;
            Product product{INTO_ROWS, rows, outputs, HIDDEN, ring_stages, brought(64)};
            Turned turned{plan, nullptr, tables, tables, reinterpret_cast<const TwoAngles*>(tables), nullptr, QUERIES / HEAD, KEYS / HEAD, 0, 1, 1e-6f};
            launch(stream, few_rows_turned_64, dim3(outputs / 64, (rows + 63) / 64), 160, 1024 + ring_stages * (stage + 16) + 256, CLUSTER, true,
                   panels_of(normed, rows, HIDDEN, brought(64), 1), layer.qkv, qkv, product, turned);
            multiply(narrow, layer.output, attended, INTO_SUM, residual, HIDDEN, HIDDEN, QUERIES);
            norm();
            multiply(gates, layer.gates, normed, INTO_ROWS, activated, INNER, 2 * INNER, HIDDEN);
            multiply(narrow, layer.down, activated, INTO_SUM, residual, HIDDEN, HIDDEN, INNER);
        }
    });
    printf("%d rows, %s, %s, rings of %d KiB: %.2f us a layer without attention\n", rows, narrow.name, gates.name, ring, took / LAYERS_RUN);
    static Marks found[4][BLOCKS_MARKED];
    CHECK(cudaMemcpyFromSymbol(found, board, sizeof found));
    const char* names[] = {"queries, keys, values", "gates", "attention's output", "down"};
    int blocks[] = {static_cast<int>((QUERIES + 2 * KEYS) / 64 * ((rows + 63) / 64)), 2 * INNER / gates.width * ((rows + gates.rows - 1) / gates.rows),
                    HIDDEN / narrow.width * ((rows + narrow.rows - 1) / narrow.rows), HIDDEN / narrow.width * ((rows + narrow.rows - 1) / narrow.rows)};
    for (int product : {0, 2, 1, 3}) {
        std::vector<Marks> marks(found[product], found[product] + std::min(blocks[product], BLOCKS_MARKED));
        auto middle = [&](auto of) {
            std::vector<double> values;
            for (const Marks& each : marks) values.push_back(of(each));
            std::sort(values.begin(), values.end());
            return std::pair{values[values.size() / 2], values.back()};
        };
        unsigned long long first = ~0ull, last = 0;
        for (const Marks& each : marks) first = std::min(first, each.begin), last = std::max(last, each.end);
        printf("  %-22s %3zu blocks, %5.2f us from the first one's begin to the last one's end; cycles (middle, most):", names[product], marks.size(), (last - first) * 1e-3);
        const char* places[] = {"wait for the kernel before", "first stage", "multiply", "write"};
        for (int place = 1; place < PLACES; ++place) {
            auto [half, most] = middle([&](const Marks& each) { return static_cast<double>(each.clock[place] - each.clock[place - 1]); });
            printf(" %s %.0f, %.0f;", places[place - 1], half, most);
        }
        printf("\n");
    }
}

// Whether products by blocks of other widths and heights have the same bits.
static void bits(cudaStream_t stream) {
    constexpr int OUTPUTS = 192, DEEP = 3072, THERE = 100;
    auto *x = memory<bf16>(THERE * DEEP), *w = memory<bf16>(OUTPUTS * DEEP);
    fill<<<64, 256, 0, stream>>>(x, THERE * DEEP), fill<<<64, 256, 0, stream>>>(w, OUTPUTS * DEEP);
    std::vector<std::vector<float>> all;
    const Way ways[] = {{"a warpgroup", few_rows_64, 64, 64, 160}, {"a warpgroup, 16 outputs", few_rows_16, 64, 16, 160},
                        {"two warpgroups", tall_rows_48, 128, 48, 288}};
    for (const Way& way : ways) {
        auto* y = memory<float>(THERE * OUTPUTS);
        Product product{INTO_WIDE, THERE, OUTPUTS, DEEP, 4, way.rows < THERE ? way.rows : 104};
        launch(stream, way.multiply, dim3(OUTPUTS / way.width, (THERE + way.rows - 1) / way.rows), way.threads,
               1024 + 4 * (panels_of(way) * (way.rows + way.width) * 128 + 16), 1, false, panels_of(x, THERE, DEEP, product.x_rows, panels_of(way)), panels_of(w, OUTPUTS, DEEP, way.width, panels_of(way)), y, product);
        all.emplace_back(THERE * OUTPUTS);
        CHECK(cudaStreamSynchronize(stream));
        CHECK(cudaMemcpy(all.back().data(), y, all.back().size() * 4, cudaMemcpyDeviceToHost));
        size_t others = 0;
        for (size_t i = 0; i < all.back().size(); ++i) others += memcmp(&all[0][i], &all.back()[i], 4) != 0;
        printf("a sum of %d by %s: %zu of %zu have other bits (the first is %g)\n", DEEP, way.name, others, all[0].size(), all.back()[0]);
    }
}

int main() {
    // So that what is known is there should a kernel never end.
    setvbuf(stdout, nullptr, _IOLBF, 0);
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));
    bits(stream);
    chains(stream);
    attention(stream);
    tiles(stream);
    copies(stream);
    boundaries(stream);
    Way by_warpgroup{"narrow ones by a warpgroup", few_rows_16, 64, 16, 160};
    Way gates{"gates by a warpgroup", few_rows_gated_96, 64, 96, 160}, tall{"gates by two warpgroups", tall_rows_gated_48, 128, 48, 288};
    for (int ring : {110, 200}) {
        layer_of(stream, 105, by_warpgroup, gates, ring);
        layer_of(stream, 105, by_warpgroup, tall, ring);
    }
    Way low{"narrow ones by a warpgroup", few_rows_8, 64, 8, 160}, low_gates{"gates by a warpgroup", few_rows_gated_48, 64, 48, 160};
    for (int ring : {110, 200}) layer_of(stream, 8, low, low_gates, ring);
    CHECK(cudaDeviceSynchronize());
}
