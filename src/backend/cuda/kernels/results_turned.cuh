// What becomes of the sums of queries, keys and values, for Hopper: bias, head norm and rotary embedding (`turn.cuh`), rows
// where attention reads them, and keys and values in the cache where the plan keeps them. That is what `rotate` and
// attention's way to registers do, bit by bit, without writing and reading them once more.
#pragma once
#include "results.cuh"
#include "turn.cuh"

constexpr int HEAD = 128;  // outputs

// Queries' heads are a product's first outputs, keys' and values' follow.
struct Turned {
    const int* plan;
    const float* bias;        // of all outputs, or null
    const float* query_norm;  // or null
    const float* key_norm;    // or null
    const TwoAngles* angles;  // [position][HEAD / 4]
    bf16* cache;
    int query_heads;
    int kv_heads;
    int layer;
    int layers;
    float epsilon;
};

#ifdef HOPPER
// What the plan says of rows.
struct Seats {
    const int *positions, *slots;
    int rows;
};
DEVICE Seats seats_of(const int* plan, int rows) {
    return {list<int>(plan, POSITIONS), list<int>(plan, SLOTS), rows < plan[ROWS] ? rows : plan[ROWS]};
}

// The head that outputs from one on are of, or half of it, and which of its columns are this lane's first.
struct Head {
    int number, column;
};
DEVICE Head head_at(int output) { return {output / HEAD, static_cast<int>(threadIdx.x) % 4 * 2}; }

DEVICE bool is_value(const Turned& turned, const Head& head) { return head.number >= turned.query_heads + turned.kv_heads; }

// What it is normed by, or null.
DEVICE const float* norm_of(const Turned& turned, const Head& head) {
    return is_value(turned, head) ? nullptr : head.number < turned.query_heads ? turned.query_norm : turned.key_norm;
}

// Where a row of it lies.
struct Seat {
    int row, position, slot;
    bool valid;
};
// What is behind the last row is turned as the first, and not written.
DEVICE Seat seat_of(const Seats& seats, int row) {
    bool valid = row < seats.rows;
    return {row, valid ? seats.positions[row] : 0, valid ? seats.slots[row] : -1, valid};
}

DEVICE Gain gain_of(const float* norm, const Head& head, int block) { return gain_of(norm, HEAD / 2, head.column, block); }

// Of a row of a head; values have none. Below 0 is behind the last row.
template <int BLOCKS>
DEVICE Angles<BLOCKS> angles_of_row(const Turned& turned, const Head& head, int position) {
    Angles<BLOCKS> angles = {};
    if (is_value(turned, head)) return angles;
#pragma unroll
    for (int p = 0; p < BLOCKS; ++p) angles.of[p] = angle_of(turned.angles, position < 0 ? 0 : position, HEAD / 2, head.column, p);
    return angles;
}

// The first column of a block's pairs, or of its partners.
DEVICE int column_of(int n, int blocks) { return n < blocks ? n * 8 : HEAD / 2 + (n - blocks) * 8; }

// Sums as the product is: rounded. Half as many registers, before others are needed.
template <int BLOCKS>
DEVICE void round_sums(u32 (*pairs)[2 * BLOCKS], const float (*sums)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < 2 * BLOCKS; ++n) pairs[half][n] = pack_bf16(sums[n][2 * half], sums[n][2 * half + 1]);
    }
}

// Two elements of it, with their bias, that begin at a column of the lane's.
DEVICE void read_pair(float* x, u32 pair, int column, const Turned& turned, const Head& head) {
    x[0] = low(pair), x[1] = high(pair);
    if (turned.bias == nullptr) return;
    float2 bias = two(turned.bias + head.number * HEAD + head.column + column);
    x[0] += bias.x, x[1] += bias.y;
}

// A row of it.
template <int BLOCKS>
DEVICE void read_row(float (*x)[2], const u32 (&pairs)[2 * BLOCKS], const Turned& turned, const Head& head) {
#pragma unroll
    for (int n = 0; n < 2 * BLOCKS; ++n) read_pair(x[n], pairs[n], column_of(n, BLOCKS), turned, head);
}

// Where a row of it goes: to y, [rows][outputs], and to the cache; null where it does not.
struct Homes {
    bf16 *y, *cached;
};
DEVICE Homes homes_of(const Seat& seat, const Turned& turned, const Head& head, bf16* y, int outputs) {
    int kept = head.number - turned.query_heads, first = head.column - static_cast<int>(threadIdx.x) % 4 * 2;
    bf16* to = y + static_cast<size_t>(seat.row) * outputs + head.number * HEAD + first;
    bool keep = kept >= 0 && seat.slot >= 0;
    bf16* cached = turned.cache + cache_at(keep ? seat.slot : 0, turned.layer, turned.layers, turned.kv_heads, kept, HEAD) + first;
    return {seat.valid ? to : nullptr, keep ? cached : nullptr};
}
DEVICE void put_four_blocks(u32 (&pairs)[4], const Homes& homes, int column) {
    transpose(pairs);
    if (homes.y != nullptr) put_blocks(pairs, homes.y + column);
    if (homes.cached != nullptr) put_blocks(pairs, homes.cached + column);
}

// Turns a row, by the squares of its whole head, and writes it to y, [rows][outputs].
template <int BLOCKS, class FindGain, class FindAngle>
DEVICE void put_row(float (*x)[2], float squares, const Seat& seat, const Turned& turned, const Head& head, bf16* y, int outputs,
                    FindGain gain, FindAngle angle) {
    if (!is_value(turned, head))
        turn_blocks<BLOCKS>(x, norm_scale(squares, HEAD, turned.epsilon), norm_of(turned, head) != nullptr, gain, angle);
    Homes homes = homes_of(seat, turned, head, y, outputs);
#pragma unroll
    for (int n = 0; n < 2 * BLOCKS; n += 4) {
        u32 pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) pairs[i] = pack_bf16(x[n + i][0], x[n + i][1]);
        put_four_blocks(pairs, homes, column_of(n, BLOCKS));
    }
}
#endif
