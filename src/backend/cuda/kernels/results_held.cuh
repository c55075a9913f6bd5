// What becomes of a tile of many rows while the next one is multiplied, for Hopper: gates put together with ups, or heads turned,
// bit by bit as elsewhere. A warpgroup holds on to its sums, rounded, and finishes a part of them with each stage that it has
// asked to be multiplied: the tensor cores do not wait for it.
#pragma once
#include "results_turned.cuh"

#ifdef HOPPER
template <int OUTPUTS, Kind KIND>
struct Held {
    static constexpr int PARTS = 0;
};
template <int OUTPUTS>
struct Held<OUTPUTS, GATED> {
    static constexpr int PARTS = OUTPUTS / 32;  // half of the rows, four blocks of gates and of ups
    u32 pairs[2][OUTPUTS / 8];
    Place place;
};
// Two rows of a lane: where they are in their text, or below 0 if they are behind the last one, and in the cache.
struct TwoRows {
    int position[2], slot[2];
};
template <int OUTPUTS>
struct Held<OUTPUTS, TURNED> {
    static constexpr int HEADS = OUTPUTS / HEAD, BLOCKS = HEAD / 16;
    static constexpr int PARTS = 2 * BLOCKS;  // of a row a block of each head: all turn by the same angles
    u32 pairs[HEADS][2][2 * BLOCKS];
    Place place;
    TwoRows rows;
    float scales[HEADS];  // of the row that is turned
    TwoAngles next;       // of the next part: who asked for them only then would wait for as long as it may take
};

template <int OUTPUTS>
DEVICE void take_sums(Held<OUTPUTS, GATED>& held, const float (&sums)[OUTPUTS / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < OUTPUTS / 8; ++n) held.pairs[half][n] = pack_bf16(sums[n][2 * half], sums[n][2 * half + 1]);
    }
}
template <int OUTPUTS>
DEVICE void take_sums(Held<OUTPUTS, TURNED>& held, const float (&sums)[OUTPUTS / 8][4]) {
#pragma unroll
    for (int i = 0; i < OUTPUTS / HEAD; ++i) round_sums<HEAD / 16>(held.pairs[i], sums + i * (HEAD / 8));
}

template <int PART, int OUTPUTS>
DEVICE void put_part(Held<OUTPUTS, GATED>& held, bf16* y, const Product& product, const Turned&, const float*) {
    constexpr int PARTS = OUTPUTS / 32, UPS = OUTPUTS / 16, HALF = PART / (PARTS / 2), FIRST = PART % (PARTS / 2) * 4;
    int row = held.place.row + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * HALF;
    u32 four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = gated_pair(held.pairs[HALF][FIRST + i], held.pairs[HALF][FIRST + i + UPS]);
    transpose(four);
    if (row < product.rows) put_blocks(four, y + static_cast<size_t>(row) * product.outputs + held.place.output + FIRST * 8);
}

DEVICE TwoRows rows_of(const int* plan, const Product& product, const Place& place) {
    TwoRows rows;
    Seats seats = seats_of(plan, product.rows);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Seat seat = seat_of(seats, place.row + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * half);
        rows.position[half] = seat.valid ? seat.position : -1, rows.slot[half] = seat.slot;
    }
    return rows;
}

// The first of the heads that are held.
template <int OUTPUTS>
DEVICE Head first_head(const Held<OUTPUTS, TURNED>& held) { return head_at(held.place.output); }

// The angles of a part. If its first head is a value's, all are.
template <int OUTPUTS>
DEVICE TwoAngles angles_of(const Held<OUTPUTS, TURNED>& held, int part, const Turned& turned) {
    constexpr int BLOCKS = Held<OUTPUTS, TURNED>::BLOCKS;
    int position = held.rows.position[part / BLOCKS];
    Head head = first_head(held);
    if (is_value(turned, head)) return {};
    return angle_of(turned.angles, position < 0 ? 0 : position, HEAD / 2, head.column, part % BLOCKS);
}

// A row of a head, of those without bias: a block of it turned. `gains` are those of queries, then of keys.
template <int BLOCK>
DEVICE void turn_part(u32 (&pairs)[HEAD / 8], float& scale, const TwoAngles& angles, const float* gains, const Turned& turned, const Head& head) {
    constexpr int BLOCKS = HEAD / 16;
    const float* norm = gains + (head.number < turned.query_heads ? 0 : HEAD);
    bool normed = norm_of(turned, head) != nullptr;
    if (BLOCK == 0 && normed) {
        float x[2 * BLOCKS][2];
#pragma unroll
        for (int n = 0; n < 2 * BLOCKS; ++n) x[n][0] = low(pairs[n]), x[n][1] = high(pairs[n]);
        scale = norm_scale(whole_squares<BLOCKS>(x), HEAD, turned.epsilon);
    }
    u32 &first = pairs[BLOCK], &second = pairs[BLOCKS + BLOCK];
    float x[2][2] = {{low(first), high(first)}, {low(second), high(second)}};
    turn_blocks<1>(x, scale, normed, [&](int) { return gain_of(norm, head, BLOCK); }, [&](int) { return angles; });
    first = pack_bf16(x[0][0], x[0][1]), second = pack_bf16(x[1][0], x[1][1]);
}
template <int PART, int OUTPUTS>
DEVICE void put_part(Held<OUTPUTS, TURNED>& held, bf16* y, const Product& product, const Turned& turned, const float* gains) {
    using Of = Held<OUTPUTS, TURNED>;
    constexpr int BLOCKS = Of::BLOCKS, HALF = PART / BLOCKS, BLOCK = PART % BLOCKS;
    int output = held.place.output, row = held.place.row + static_cast<int>(threadIdx.x) % 32 / 4 + HALF * 8;
    // Else the addresses of all parts would be computed before the first, and kept.
    compute_once(output), compute_once(row);
    TwoAngles angles = held.next;
    if (PART + 1 < Of::PARTS) held.next = angles_of(held, PART + 1, turned);
    Head head = head_at(output);
#pragma unroll
    for (int i = 0; i < Of::HEADS; ++i, ++head.number) {
        u32(&pairs)[2 * BLOCKS] = held.pairs[i][HALF];
        if (!is_value(turned, head)) turn_part<BLOCK>(pairs, held.scales[i], angles, gains, turned, head);
        // Four blocks are written at once.
        if (BLOCK % 4 < 3) continue;
        Homes homes = homes_of({row, 0, held.rows.slot[HALF], held.rows.position[HALF] >= 0}, turned, head, y, product.outputs);
#pragma unroll
        for (int n = BLOCK - 3; n < 2 * BLOCKS; n += BLOCKS) {
            u32 four[4] = {pairs[n], pairs[n + 1], pairs[n + 2], pairs[n + 3]};
            put_four_blocks(four, homes, column_of(n, BLOCKS));
        }
    }
}

// All of it, where nothing is multiplied meanwhile.
template <int OUTPUTS>
DEVICE void put_heads(const Held<OUTPUTS, TURNED>& held, bf16* y, const Product& product, const Turned& turned, const float* gains) {
    constexpr int BLOCKS = HEAD / 16;
    Angles<BLOCKS> angles[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) angles[half] = angles_of_row<BLOCKS>(turned, first_head(held), held.rows.position[half]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int position = held.rows.position[half];
        Seat seat = {held.place.row + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * half, position, held.rows.slot[half], position >= 0};
        Head head = first_head(held);
#pragma unroll
        for (int i = 0; i < OUTPUTS / HEAD; ++i, ++head.number) {
            float x[2 * BLOCKS][2];
            read_row<BLOCKS>(x, held.pairs[i][half], turned, head);
            float squares = whole_squares<BLOCKS>(x);
            const float* norm = gains + (head.number < turned.query_heads ? 0 : HEAD);
            put_row<BLOCKS>(x, squares, seat, turned, head, y, product.outputs, [&](int p) { return gain_of(norm, head, p); },
                            [&](int p) { return angles[half].of[p]; });
        }
    }
}

// Puts one of the parts: which one is known as the program runs, but not which registers hold it.
template <int PART = 0, class Results>
DEVICE void put_held(Results& held, int part, bf16* y, const Product& product, const Turned& turned, const float* gains) {
    if constexpr (PART < Results::PARTS) {
        if (part == PART) put_part<PART>(held, y, product, turned, gains);
        else put_held<PART + 1>(held, part, y, product, turned, gains);
    }
}
#endif
