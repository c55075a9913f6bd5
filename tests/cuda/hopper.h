// What Hopper has beside: barriers in shared memory, copies of tiles that they count, tiles of both blocks of a
// cluster, and products of tiles. Addresses and descriptors are taken apart as the PTX ISA has them.
#pragma once

#include <utility>

namespace shim {

// What orders those who arrive in a phase and those who wait for its end.
static inline const void* phase_of(const Barrier& barrier, int phase) { return reinterpret_cast<const char*>(&barrier) + phase * 4; }

static inline Barrier& barrier_of(::Barrier* barrier, unsigned rank) {
    size_t at = reinterpret_cast<char*>(barrier) - shared_of(shim::rank());
    if (at % 8 != 0 || at + 8 > shared_stride) fail("a barrier lies outside shared memory");
    return *reinterpret_cast<Barrier*>(shared_of(rank) + at);
}

UNORDERED static void settle(Barrier& barrier) {
    if (barrier.pending < 0) fail("more arrive at a barrier than it was set up for");
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.phase ^= 1, barrier.pending = barrier.arrivals;
}

// Bytes that are to come, or have, and who has.
UNORDERED static void tell(Barrier& barrier, int32_t bytes, int16_t arrivals) {
    release(phase_of(barrier, barrier.phase));
    barrier.bytes += bytes, barrier.pending -= arrivals;
    settle(barrier);
}

// A tensor map of the mock: bf16 in two dimensions, tiles of whole 128-byte rows, swizzled; or in four, panels of whole rows.
struct Map {
    const uint16_t* base;
    uint64_t columns, rows, stride;  // bytes from row to row
    uint32_t tile_columns, tile_rows;
    uint64_t parts, apart, panels, panel;  // of the third and fourth dimension the sizes and strides
    uint32_t tile_parts, tile_panels;
};
static_assert(sizeof(Map) <= sizeof(TensorMap), "it has room");

// What the driver's encoder checks.
static inline bool encode(TensorMap& to, const void* base, uint64_t columns, uint64_t rows, uint64_t stride,
                          uint32_t tile_columns, uint32_t tile_rows) {
    bool fits = reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride % 16 == 0 && stride >= columns * 2 && columns > 0 &&
                rows > 0 && tile_columns * 2 == 128 && tile_rows > 0 && tile_rows <= 256;
    Map map{static_cast<const uint16_t*>(base), columns, rows, stride, tile_columns, tile_rows, 1, 0, 1, 0, 1, 1};
    memcpy(&to, &map, sizeof map);
    return fits;
}
static inline bool encode_panels(TensorMap& to, const void* base, const uint64_t* sizes, const uint64_t* strides, const uint32_t* tile) {
    bool fits = reinterpret_cast<uintptr_t>(base) % 16 == 0 && sizes[0] == 64 && tile[0] == 64;
    for (int i = 0; i < 4; ++i) fits &= sizes[i] > 0 && tile[i] > 0 && tile[i] <= 256;
    for (int i = 0; i < 3; ++i) fits &= strides[i] % 16 == 0 && strides[i] > 0;
    Map map{static_cast<const uint16_t*>(base), sizes[0], sizes[1], strides[0], tile[0], tile[1], sizes[2], strides[1], sizes[3], strides[2], tile[2], tile[3]};
    memcpy(&to, &map, sizeof map);
    return fits;
}
// Panels of a matrix of so many rows, as the host has it: of each the rows of a tile, `parts` times, so many apart.
static inline bool encode_panels(TensorMap& to, const void* base, uint64_t rows, uint64_t depth, uint32_t tile_rows, uint32_t parts, uint64_t apart, uint32_t panels) {
    uint64_t sizes[] = {64, rows - (parts - 1) * apart, parts, depth / 64}, strides[] = {depth * 2, (apart ? apart : rows) * depth * 2, 128};
    uint32_t tile[] = {64, tile_rows, parts, panels};
    return encode_panels(to, base, sizes, strides, tile);
}

// Copies a tile to the same place of some blocks; zeros where the matrix has ended. Sixteen bytes of row r lie
// at their place ^ r % 8.
static inline void bring(const TensorMap& encoded, int column, int row, bf16* to, ::Barrier* barrier, unsigned blocks, int panel = 0) {
    Map map;
    memcpy(&map, &encoded, sizeof map);
    size_t at = reinterpret_cast<char*>(to) - shared_of(rank()), bytes = map.tile_rows * map.tile_parts * map.tile_panels * 128;
    if (at % ALIGNMENT != 0 || at + bytes > shared_stride) fail("a tile is not aligned to its swizzle, or outside");
    for (unsigned block = 0; blocks >> block; ++block) {
        if (!(blocks >> block & 1)) continue;
        for (uint32_t r = 0; r < bytes / 128; ++r)
            for (uint32_t c = 0; c < map.tile_columns; ++c) {
                uint64_t from_row = row + r % map.tile_rows, part = r / map.tile_rows % map.tile_parts;
                uint64_t from_panel = panel + r / map.tile_rows / map.tile_parts, from_column = column + c;
                bool there = from_row < map.rows && from_column < map.columns && part < map.parts && from_panel < map.panels;
                size_t from = from_row * map.stride + part * map.apart + from_panel * map.panel;
                uint16_t value = there ? map.base[from / 2 + from_column] : 0;
                size_t place = (at + r * 128 + c * 2) ^ (r % 8 * 16);
                memcpy(shared_of(block) + place, &value, 2);
            }
        tell(barrier_of(barrier, block), -static_cast<int32_t>(bytes), 0);
    }
}

// Sixteen columns of a row of a tile that a descriptor tells of: rows of 128 bytes, groups of eight.
static inline void columns(float (&to)[16], unsigned long long descriptor, int row) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("a tile without its swizzle");
    size_t start = (descriptor & 0x3fff) << 4, group = (descriptor >> 32 & 0x3fff) << 4;
    for (int half = 0; half < 2; ++half) {
        size_t at = start + row / 8 * group + row % 8 * 128 + half * 16;
        at ^= (at >> 7 & 7) << 4;
        if (at + 16 > shared_stride) fail("a tile outside shared memory");
        uint16_t values[8];
        memcpy(values, shared_of(rank()) + at, 16);
        for (int i = 0; i < 8; ++i) to[half * 8 + i] = bits(static_cast<uint32_t>(values[i]) << 16);
    }
}

// Sixteen rows of one column of a tile that is read by column: groups of eight rows, columns 64 by 64.
static inline void rows(float (&to)[16], unsigned long long descriptor, int column) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("a tile without its swizzle");
    size_t start = (descriptor & 0x3fff) << 4, panel = (descriptor >> 16 & 0x3fff) << 4, group = (descriptor >> 32 & 0x3fff) << 4;
    for (int row = 0; row < 16; ++row) {
        size_t at = start + column / 64 * panel + row / 8 * group + row % 8 * 128 + column % 64 * 2;
        at ^= (at >> 7 & 7) << 4;
        if (at + 2 > shared_stride) fail("a tile outside shared memory");
        uint16_t value;
        memcpy(&value, shared_of(rank()) + at, 2);
        to[row] = bits(static_cast<uint32_t>(value) << 16);
    }
}

}  // namespace shim

static inline u32 shared_at(const void* place) {
    return static_cast<u32>(static_cast<const char*>(place) - shim::shared_of(shim::rank()));
}
static inline bool is_elected() { return threadIdx.x % 32 == 0; }
static inline u32 cluster_rank() { return shim::rank(); }
static inline void cluster_sync() {
    static char generations[2];
    char* met = &generations[shim::next_generation()];
    shim::release(met);
    shim::leave(shim::WAITS_FOR_CLUSTER);
    shim::acquire(met);
}

static inline void tell_block(float* place, u32 rank, float value) {
    size_t at = reinterpret_cast<char*>(place) - shim::shared_of(shim::rank());
    if (at + 4 > shim::shared_stride) shim::fail("a number for another block lies outside shared memory");
    *reinterpret_cast<float*>(shim::shared_of(rank) + at) = value;
}

UNORDERED static void barrier_init(Barrier* barrier, int arrivals) {
    shim::barrier_of(barrier, shim::rank()) = {0, static_cast<int16_t>(arrivals), static_cast<uint8_t>(arrivals), 0, 0};
}
static inline void barriers_set_up() {}
static inline void barrier_expect(Barrier* barrier, int bytes) { shim::tell(shim::barrier_of(barrier, shim::rank()), bytes, 1); }
static inline void barrier_arrive(Barrier* barrier, u32 rank) {
    shim::Barrier& told = shim::barrier_of(barrier, rank);
    if (rank != shim::rank()) shim::owe(told);
    shim::tell(told, 0, 1);
}
static inline void barrier_arrive(Barrier* barrier) { barrier_arrive(barrier, shim::rank()); }
UNORDERED static void barrier_wait(Barrier* barrier, u32 parity) {
    shim::Barrier& awaited = shim::barrier_of(barrier, shim::rank());
    if (!shim::is_over(awaited, parity)) {
        shim::fibres[shim::current].barrier = &awaited, shim::fibres[shim::current].phase = parity;
        shim::leave(shim::WAITS_FOR_BARRIER);
    }
    shim::settle_debt(awaited, parity);
    shim::acquire(shim::phase_of(awaited, parity));
}

static inline void ask_for_map(const TensorMap&) {}
static inline void bring_tile(const TensorMap& map, int column, int row, bf16* to, Barrier* barrier) {
    shim::bring(map, column, row, to, barrier, 1u << shim::rank());
}
static inline void bring_panels(const TensorMap& map, int panel, int row, bf16* to, Barrier* barrier) {
    shim::bring(map, 0, row, to, barrier, 1u << shim::rank(), panel);
}
static inline void bring_tile_to_both(const TensorMap& map, int column, int row, bf16* to, Barrier* barrier) {
    shim::bring(map, column, row, to, barrier, (1u << CLUSTER) - 1);
}

static inline void stay_behind(float&) {}
template <int N>
static inline void registers_more() {}
template <int N>
static inline void registers_fewer() {}
static inline void compute_once(u32&) {}
static inline void compute_once(int&) {}
template <class T>
static inline void compute_once(T*&) {}
static inline void products_begin() {}
static inline void products_commit() { shim::fibres[shim::current].products.commit(); }
template <int N>
static inline void products_wait() {
    shim::fibres[shim::current].products.wait(N, [](const shim::Product& product) { product.run(product); });
    // It waits for the whole warp's.
    shim::together([](shim::Lane*) {});
}

namespace shim {

// This thread's sums: two rows of x, which it holds or are read now, with pairs of N / 8 blocks of outputs.
template <int N, bool HELD, bool TRANSPOSED>
static void sum_up(const Product& product) {
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 % 4 * 16 + lane / 4;
    float x[2][16], w[2][16];
    if (HELD) memcpy(x, product.held, sizeof x);
    else for (int half = 0; half < 2; ++half) columns(x[half], product.x, first + half * 8);
    for (int n = 0; n < N / 8; ++n) {
        for (int i = 0; i < 2; ++i) {
            int output = n * 8 + lane % 4 * 2 + i;
            if (TRANSPOSED) rows(w[i], product.w, output);
            else columns(w[i], product.w, output);
        }
        for (int i = 0; i < 4; ++i) {
            float sum = product.more ? product.sums[n][i] : 0.0f;
            for (int k = 0; k < 16; ++k) sum += x[i / 2][k] * w[i % 2][k];
            product.sums[n][i] = sum;
        }
    }
}

}  // namespace shim

template <int N>
static inline void multiply(float (*sums)[4], u32 x_tile, u32 w_tile, int more) {
    shim::Product product{shim::sum_up<N, false, false>, sums, SWIZZLED | x_tile, SWIZZLED | w_tile, more, {}};
    shim::fibres[shim::current].products.add(product);
}

template <int N, bool TRANSPOSED>
static inline void multiply_held(float (*sums)[4], const u32 (&x)[4], unsigned long long w, int more) {
    shim::Product product{shim::sum_up<N, true, TRANSPOSED>, sums, 0, w, more, {}};
    // What the four lanes of a row hold of it.
    memcpy(shim::lanes[shim::current].in, x, 16);
    shim::together([](shim::Lane*) {});
    const shim::Lane* quad = &shim::lanes[shim::current / 4 * 4];
    for (int i = 0; i < 4; ++i)
        for (int r = 0; r < 4; ++r)
            for (int h = 0; h < 2; ++h) product.held[r % 2][i * 2 + r / 2 * 8 + h] = shim::bits(shim::half(quad[i].in[r], h) << 16);
    // Nobody brings the next before all have read this.
    shim::together([](shim::Lane*) {});
    shim::fibres[shim::current].products.add(product);
}
