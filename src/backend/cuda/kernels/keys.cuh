// The keys and values that a tile of attention sees, tile by tile in shared memory: where each lies is found through
// the plan, and copies of the next tiles are under way while one is worked on.
#pragma once
#include "device.cuh"

constexpr int TILE_KEYS = 64;
constexpr int MOST_STAGES = 3;
static_assert(MOST_STAGES == 3, "two of them are found, and brought, before all");
// Tiles of which is known where their keys lie: of most sequences all are found before the first is worked on.
constexpr int FOUND_TILES = 8;

struct Attention {
    int count_at;  // of the plan: tiles, or answers
    int tiles_at;  // of the plan
    int q_stride;
    int kv_stride;
    int values;    // from a row's keys to its values
    int heads;
    int kv_heads;
    int layer;
    int layers;
    float scale;   // of a product, for powers of two: log2(e) / sqrt(dim)
    int stages;    // tiles of keys and values in shared memory: two, or MOST_STAGES
};

// How a tile's keys, or values, lie in shared memory, a row each: 16 bytes apart, so that a matrix of eight rows meets
// every bank once; or as products of warpgroups read them: 64 columns (128 bytes) of all rows, then the next 64, pieces
// of 16 bytes at their place ^ row % 8.
enum Layout { PADDED, PANELS };
constexpr int PANEL = TILE_KEYS * 64;

template <int DIM, Layout LAYOUT>
constexpr int BUFFER = LAYOUT == PADDED ? TILE_KEYS * (DIM + 8) : TILE_KEYS * DIM;

// Where 16 bytes of a key or value lie, from `column` on.
template <int DIM, Layout LAYOUT>
DEVICE int place(int key, int column) {
    if constexpr (LAYOUT == PADDED) return key * (DIM + 8) + column;
    else return column / 64 * PANEL + key * 64 + (column % 64 ^ key % 8 * 8);
}

// Where the key at `position` lies: a batch row, or ~slot of the cache. The last run with a
// start at or before it holds it.
DEVICE int key_source(const int* plan, const Tile& tile, int position) {
    const Run* runs = list<Run>(plan, RUNS) + tile.first_run;
    int from = 0, to = tile.runs;
    while (to - from > 1) {
        int middle = (from + to) / 2;
        if (runs[middle].position <= position) from = middle;
        else to = middle;
    }
    Run run = runs[from];
    int i = position - run.position;
    if (run.source >= 0) return run.source + i;
    int token = run.start + i;
    int block = list<int>(plan, BLOCKS)[~run.source + token / BLOCK_TOKENS];
    return ~(block * BLOCK_TOKENS + token % BLOCK_TOKENS);
}

// Where a key and its value lie.
struct alignas(16) Source {
    const bf16 *key, *value;
};

// What all keys of a block have in common.
struct Keys {
    const bf16* batch;  // its first row's keys
    const bf16* cache;
    int head;
    int count;
};

// Finds the key at `first` and this thread's place of 64. Behind the last one anything that can be read is as good.
template <int DIM>
DEVICE void find(const int* plan, const Attention& shape, const Tile& tile, const Keys& keys, int first, Source* sources) {
    int key = first + static_cast<int>(threadIdx.x) % TILE_KEYS;
    Source found = {keys.batch, keys.batch};
    if (key < keys.count) {
        int source = key_source(plan, tile, key);
        if (source >= 0) {
            found.key = keys.batch + static_cast<size_t>(source) * shape.kv_stride + keys.head * DIM;
            found.value = found.key + shape.values;
        } else {
            found.key = keys.cache + cache_at(~source, shape.layer, shape.layers, shape.kv_heads, keys.head, DIM);
            found.value = found.key + static_cast<size_t>(shape.kv_heads) * BLOCK_TOKENS * DIM;
        }
    }
    sources[threadIdx.x % TILE_KEYS] = found;
}

// Brings one tile of keys and values, which lie at `sources`, to shared memory; zeros behind the last of `count`.
// Of a tile that has no keys nothing is brought, but it counts among the copies that are waited for.
template <int DIM, Layout LAYOUT>
DEVICE void bring(const Source* sources, int count, bf16* to_keys, bf16* to_values) {
    constexpr int PIECES = DIM / 8, ROUNDS = TILE_KEYS * PIECES / 128, AT_ONCE = 2;
    // Consecutive threads take one vector's pieces. Some sources are read before the first of their copies, which the
    // compiler would not do: it sees both reach shared memory.
    int first = threadIdx.x / PIECES, piece = threadIdx.x % PIECES * 8;
    if (count > 0) {
#pragma unroll
        for (int round = 0; round < ROUNDS; round += AT_ONCE) {
            Source from[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) from[j] = sources[(round + j) * (128 / PIECES) + first];
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                int key = (round + j) * (128 / PIECES) + first, at = place<DIM, LAYOUT>(key, piece);
                copy_async(to_keys + at, from[j].key + piece, key < count);
                copy_async(to_values + at, from[j].value + piece, key < count);
            }
        }
    }
    copies_commit();
}

// Every tile of the keys in turn, in shared memory: `work(keys, values, position of the first, bring the next)`, which
// calls the last when it has begun and has no use for its time. As many tiles are on their way meanwhile as there are
// stages, less the one that is worked on. `read` is called when the kernel before is done, `prepare` when copies are on
// their way.
template <int DIM, Layout LAYOUT, class Read, class Prepare, class Work>
DEVICE void each_tile(const int* plan, const Attention& shape, const Tile& tile, const Keys& keys, bf16* buffers,
                      Read read, Prepare prepare, Work work) {
    // A stage: keys, values; behind all, where the keys of tiles lie, in a ring.
    constexpr int SIZE = BUFFER<DIM, LAYOUT>, KNOWN = FOUND_TILES * TILE_KEYS;
    int stages = shape.stages, ahead = (stages - 1) * TILE_KEYS;
    Source* found = reinterpret_cast<Source*>(buffers + 2 * stages * SIZE);
    auto sources = [&](int first) { return found + first % KNOWN; };
    // Half the threads find one tile, half the next.
    auto find_tiles = [&](int from, int to) {
        for (int first = from + static_cast<int>(threadIdx.x) / TILE_KEYS * TILE_KEYS; first < to; first += 2 * TILE_KEYS)
            find<DIM>(plan, shape, tile, keys, first, sources(first));
    };
    find_tiles(0, 2 * TILE_KEYS);
    __syncthreads();
    // So far the plan was read alone.
    after_the_kernel_before();
    read();
    auto bring_to = [&](int first, int stage) {
        bf16* to = buffers + 2 * stage * SIZE;
        bring<DIM, LAYOUT>(sources(first), keys.count - first, to, to + SIZE);
    };
    bring_to(0, 0);
    if (stages == MOST_STAGES) bring_to(TILE_KEYS, 1);
    find_tiles(2 * TILE_KEYS, KNOWN < keys.count ? KNOWN : keys.count);
    prepare();
    for (int first = 0, stage = 0; first < keys.count; first += TILE_KEYS) {
        if (stages == MOST_STAGES) copies_wait<MOST_STAGES - 2>();
        else copies_wait<0>();
        if constexpr (LAYOUT == PANELS) copies_shown();
        // Behind this everybody has this tile, has done with the one before it, into the place of which the next goes,
        // and has asked for its copies: its sources are needed no more.
        __syncthreads();
        if (first + KNOWN < keys.count && threadIdx.x < TILE_KEYS) find<DIM>(plan, shape, tile, keys, first + KNOWN, sources(first));
        bf16* at = buffers + 2 * stage * SIZE;
        int before = stage == 0 ? stages - 1 : stage - 1;
        work(at, at + SIZE, first, [&] { bring_to(first + ahead, before); });
        stage = stage + 1 == stages ? 0 : stage + 1;
    }
}
