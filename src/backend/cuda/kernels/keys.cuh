// The keys and values that a tile of attention sees, tile by tile in shared memory: where each lies is found through
// the plan, and copies of the next tiles are under way while one is worked on.
#pragma once
#include "device.cuh"

constexpr int TILE_KEYS = 64;
constexpr int MOST_STAGES = 3;
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

// The runs of a tile's keys. A warp has the first of them at hand, one to a lane, and reads what is behind.
struct Path {
    const Run* runs;
    const int* blocks;
    int count;
    Run held;
};
DEVICE Path path_of(const Header& header, const Tile& tile) {
    int lane = threadIdx.x % 32;
    Path path = {list<Run>(header, RUNS) + tile.first_run, list<int>(header, BLOCKS), tile.runs, {}};
    if (lane < tile.runs) path.held = path.runs[lane];
    return path;
}

// The runs that hold the keys at TIMES positions, of which any may lie behind the last run: the last ones that start at or
// before them. All lanes of a warp ask at once.
template <int TIMES>
DEVICE void runs_at(Run (&found)[TIMES], const Path& path, const int (&positions)[TIMES]) {
    constexpr int HELD = 32;
    int at[TIMES] = {};
    for (int r = 1; r < path.count && r < HELD; ++r) {
        int start = __shfl_sync(FULL, path.held.position, r);
#pragma unroll
        for (int j = 0; j < TIMES; ++j) at[j] = start <= positions[j] ? r : at[j];
    }
#pragma unroll
    for (int j = 0; j < TIMES; ++j) {
        found[j].position = __shfl_sync(FULL, path.held.position, at[j]);
        found[j].source = __shfl_sync(FULL, path.held.source, at[j]);
        found[j].start = __shfl_sync(FULL, path.held.start, at[j]);
        if (path.count <= HELD || at[j] < HELD - 1) continue;
        int from = HELD - 1, to = path.count;
        while (to - from > 1) {
            int middle = (from + to) / 2;
            if (path.runs[middle].position <= positions[j]) from = middle;
            else to = middle;
        }
        found[j] = path.runs[from];
    }
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

// Finds the keys at `first` and, TIMES of them in all, 128 further, into the ring `known`: a warp's lanes keys that follow
// each other. Behind the last one anything that can be read is as good.
constexpr int KNOWN = FOUND_TILES * TILE_KEYS;
template <int DIM, int TIMES>
DEVICE void find(const Path& path, const Attention& shape, const Keys& keys, int first, Source* known) {
    int positions[TIMES], places[TIMES];
#pragma unroll
    for (int j = 0; j < TIMES; ++j) positions[j] = first + j * 128;
    Run runs[TIMES];
    runs_at<TIMES>(runs, path, positions);
    // A batch row, or ~slot of the cache. Blocks are all asked for before one is needed.
#pragma unroll
    for (int j = 0; j < TIMES; ++j) {
        int i = positions[j] - runs[j].position, token = runs[j].start + i;
        places[j] = runs[j].source + i;
        if (runs[j].source >= 0 || positions[j] >= keys.count) continue;
        places[j] = ~(path.blocks[~runs[j].source + token / BLOCK_TOKENS] * BLOCK_TOKENS + token % BLOCK_TOKENS);
    }
#pragma unroll
    for (int j = 0; j < TIMES; ++j) {
        Source found = {keys.batch, keys.batch};
        if (positions[j] < keys.count && runs[j].source >= 0) {
            found.key = keys.batch + static_cast<size_t>(places[j]) * shape.kv_stride + keys.head * DIM;
            found.value = found.key + shape.values;
        } else if (positions[j] < keys.count) {
            found.key = keys.cache + cache_at(~places[j], shape.layer, shape.layers, shape.kv_heads, keys.head, DIM);
            found.value = found.key + static_cast<size_t>(shape.kv_heads) * BLOCK_TOKENS * DIM;
        }
        known[positions[j] % KNOWN] = found;
    }
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
// stages, less the one that is worked on. `read` is called when the kernel before is done, with a stage that nothing is
// brought to yet; `prepare` when copies are on their way, and those that `read` asked for there.
template <int DIM, Layout LAYOUT, class Read, class Prepare, class Work>
DEVICE void each_tile(const Path& path, const Attention& shape, const Keys& keys, bf16* buffers,
                      Read read, Prepare prepare, Work work) {
    // A stage: keys, values; behind all, where the keys of tiles lie, in a ring.
    constexpr int SIZE = BUFFER<DIM, LAYOUT>;
    int stages = shape.stages, ahead = (stages - 1) * TILE_KEYS, thread = static_cast<int>(threadIdx.x);
    Source* known = reinterpret_cast<Source*>(buffers + 2 * stages * SIZE);
    // Of few keys nobody finds what is not there.
    if (keys.count <= KNOWN / 2) find<DIM, KNOWN / 256>(path, shape, keys, thread, known);
    else find<DIM, KNOWN / 128>(path, shape, keys, thread, known);
    __syncthreads();
    // So far the plan was read alone.
    after_the_kernel_before();
    bf16* unused = buffers + 2 * (stages - 1) * SIZE;
    read(unused);
    auto bring_to = [&](int first, int stage) {
        bf16* to = buffers + 2 * stage * SIZE;
        bring<DIM, LAYOUT>(known + first % KNOWN, keys.count - first, to, to + SIZE);
    };
    bring_to(0, 0);
    if (stages == MOST_STAGES) {
        bring_to(TILE_KEYS, 1);
        copies_wait<MOST_STAGES - 1>();
    } else {
        copies_wait<1>();
    }
    prepare(unused);
    for (int first = 0, stage = 0; first < keys.count; first += TILE_KEYS) {
        if (stages == MOST_STAGES) copies_wait<MOST_STAGES - 2>();
        else copies_wait<0>();
        if constexpr (LAYOUT == PANELS) copies_shown();
        // Behind this everybody has this tile, has done with the one before it, into the place of which the next goes,
        // and has asked for its copies: its sources are needed no more.
        __syncthreads();
        if (first + KNOWN < keys.count && thread < TILE_KEYS) find<DIM, 1>(path, shape, keys, first + KNOWN + thread, known);
        bf16* at = buffers + 2 * stage * SIZE;
        int before = stage == 0 ? stages - 1 : stage - 1;
        work(at, at + SIZE, first, [&] { bring_to(first + ahead, before); });
        stage = stage + 1 == stages ? 0 : stage + 1;
    }
}
