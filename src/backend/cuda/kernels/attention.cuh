// Causal attention over the token tree, on tensor cores.
//
// A block is one tile of consecutive queries of a segment against one key-value head; its 64
// rows are (query, query head) pairs that share the head's keys. Keys are found by absolute
// position through the runs of the segment's path, in tiles of 64 that begin at multiples of
// 64. A row's products, maxima and sums therefore run in an order that its own position
// fixes, whichever segments hold its keys and whoever shares its tile: what lies behind it
// has weight exactly zero. Softmax is rescaled as it goes (Milakov and Gimelshein, 2018).
//
// Queries that their product did not turn get bias, head norm and rotary embedding on the way to registers.
//
// A row that is alone, an answer or a decoded token, has its query heads for rows and the warps share its
// keys: of every tile each takes 16. Their sums are joined in one order, by absolute position too.
#pragma once
#include "keys.cuh"
#include "turn.cuh"

constexpr int TILE_ROWS = 64;

// The 16 rows of a warp.
template <int DIM>
struct Rows {
    u32 queries[DIM / 16][4];
    float sums[DIM / 8][4];
    float most[2];    // largest score so far, of rows lane / 4 and that + 8
    float total[2];
    int seen[2];      // keys that the row attends to
};

// Scores of keys from `first` on become their weights; what was summed before is scaled to the new maximum. Both halves go
// from step to step together: what one waits for the other fills.
template <int DIM, int KEYS>
DEVICE void weigh(Rows<DIM>& rows, float (&scores)[KEYS / 8][4], int first, float scale) {
    int lane = threadIdx.x % 32;
    if (first + KEYS > (rows.seen[0] < rows.seen[1] ? rows.seen[0] : rows.seen[1])) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (first + n * 8 + lane % 4 * 2 + i % 2 >= rows.seen[i / 2]) scores[n][i] = -INFINITY;
        }
    }
    float most[2] = {rows.most[0], rows.most[1]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) most[half] = fmaxf(most[half], fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
#pragma unroll
        for (int half = 0; half < 2; ++half) most[half] = fmaxf(most[half], __shfl_xor_sync(FULL, most[half], step));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        // A row sees the first key, so the maximum is a number after the first tile.
        float kept = power_of_two((rows.most[half] - most[half]) * scale);
        rows.most[half] = most[half];
        rows.total[half] *= kept;
#pragma unroll
        for (int d = 0; d < DIM / 8; ++d) {
            rows.sums[d][2 * half] *= kept;
            rows.sums[d][2 * half + 1] *= kept;
        }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float weight = power_of_two(fmaf(scores[n][i], scale, -most[i / 2] * scale));
            scores[n][i] = weight;
            rows.total[i / 2] += weight;
        }
    }
}

// The weights of 16 keys, the `k`th of them, as tensor cores take them.
template <int KEYS>
DEVICE void pack_weights(u32 (&a)[4], const float (&weights)[KEYS / 8][4], int k) {
    const float *left = weights[2 * k], *right = weights[2 * k + 1];
    a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}

// A tile's keys, or some of them: scores, weights, weighted sum of values.
template <int DIM, int KEYS>
DEVICE void attend(Rows<DIM>& rows, const bf16* keys, const bf16* values, int first, float scale) {
    constexpr int STRIDE = DIM + 8;
    int lane = threadIdx.x % 32;
    float scores[KEYS / 8][4];
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
    }
    // Neighbours in this order do not wait for each other's sums.
#pragma unroll
    for (int d = 0; d < DIM / 16; ++d) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            u32 b[4];
            int row = n * 8 + lane % 8 + lane / 16 * 8;
            load_matrices(b, keys + row * STRIDE + d * 16 + lane / 8 % 2 * 8);
            mma(scores[n], rows.queries[d], b[0], b[1]);
            mma(scores[n + 1], rows.queries[d], b[2], b[3]);
        }
    }
    weigh<DIM, KEYS>(rows, scores, first, scale);
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
        u32 a[4];
        pack_weights<KEYS>(a, scores, k);
#pragma unroll
        for (int d = 0; d < DIM / 8; d += 2) {
            u32 b[4];
            load_matrices_transposed(b, values + (k * 16 + lane % 16) * STRIDE + d * 8 + lane / 16 * 8);
            mma(rows.sums[d], a, b[0], b[1]);
            mma(rows.sums[d + 1], a, b[2], b[3]);
        }
    }
}

// Nothing is summed yet.
template <int DIM>
DEVICE void begin(Rows<DIM>& rows) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        rows.most[half] = -INFINITY;
        rows.total[half] = 0.0f;
#pragma unroll
        for (int d = 0; d < DIM / 8; ++d) rows.sums[d][2 * half] = rows.sums[d][2 * half + 1] = 0.0f;
    }
}

// The queries of one half of the rows, of which this lane's lies at `from`. It holds every fourth pair of it, so both
// elements that turn together.
template <int DIM>
DEVICE void read_queries(Rows<DIM>& rows, int half, const bf16* from) {
#pragma unroll
    for (int p = 0; p < DIM / 8; ++p)
        rows.queries[p / 2][half + p % 2 * 2] = *reinterpret_cast<const u32*>(from + p * 8 + threadIdx.x % 4 * 2);
}

// The same of all 64 rows, through shared memory: each warp brings its own 16, by 16 bytes. `pairs`: which query of the tile,
// times 256, and which of the key head's query heads each of this lane's rows is.
template <int DIM, Layout LAYOUT>
DEVICE void bring_queries(bf16* to, const bf16* q, int q_stride, const int (&pairs)[2]) {
    constexpr int PIECES = DIM / 8, AT_ONCE = 32 / PIECES;
    int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, piece = lane % PIECES * 8;
#pragma unroll
    for (int first = 0; first < 16; first += AT_ONCE) {
        int row = first + lane / PIECES;
        // The first of the four lanes that hold it knows.
        int pair = __shfl_sync(FULL, pairs[first / 8], row % 8 * 4);
        copy_async(to + place<DIM, LAYOUT>(warp_row + row, piece), q + static_cast<size_t>(pair / 256) * q_stride + pair % 256 * DIM + piece, true);
    }
    copies_commit();
}
template <int DIM, Layout LAYOUT>
DEVICE void take_queries(Rows<DIM>& rows, const bf16* from) {
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
    __syncwarp();
#pragma unroll
    for (int step = 0; step < DIM / 16; ++step) load_matrices(rows.queries[step], from + place<DIM, LAYOUT>(row, step * 16 + lane / 16 * 8));
}

// Cosines and sines of one half of the rows, if they are to be turned.
template <int DIM>
DEVICE void read_angles_of(Angles<DIM / 16>& angles, const Turn& turn, int position) {
    if (turn.angles == nullptr) return;
#pragma unroll
    for (int p = 0; p < DIM / 16; ++p) angles.of[p] = angle_of(turn.angles, position, DIM / 2, threadIdx.x % 4 * 2, p);
}

// Bias, norm and rotation of what was read, of a query of head `head`.
template <int DIM>
DEVICE void turn_queries(Rows<DIM>& rows, int half, const Turn& turn, const Angles<DIM / 16>& angles, int head) {
    constexpr int PAIRS = DIM / 8;
    if (turn.angles == nullptr) return;
    int first = threadIdx.x % 4 * 2;
    float x[PAIRS][2];
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
        u32 pair = rows.queries[p / 2][half + p % 2 * 2];
        x[p][0] = low(pair), x[p][1] = high(pair);
        if (turn.bias != nullptr) {
            float2 bias = two(turn.bias + head * DIM + p * 8 + first);
            x[p][0] += bias.x, x[p][1] += bias.y;
        }
    }
    float scale = norm_scale(whole_squares<PAIRS / 2>(x), DIM, turn.epsilon);
    turn_blocks<PAIRS / 2>(x, scale, turn.norm != nullptr, [&](int p) { return gain_of(turn.norm, DIM / 2, first, p); },
                           [&](int p) { return angles.of[p]; });
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) rows.queries[p / 2][half + p % 2 * 2] = pack_bf16(x[p][0], x[p][1]);
}

// A block's tile. `attend` takes a tile of keys for every warp, and what it has to call meanwhile; whether the warp has a
// row is told it.
template <int DIM, Layout LAYOUT, class Attend>
DEVICE void tree_attention(const int* plan, const Attention& shape, const Turn& turn, const bf16* q, const bf16* k,
                           const bf16* cache, bf16* out, bf16* buffers, Attend attend) {
    Header header = header_of(plan);
    if (static_cast<int>(blockIdx.x) >= word_of(header, shape.count_at)) return after_the_kernel_before();
    const Tile tile = list<Tile>(header, shape.tiles_at)[blockIdx.x];
    Path path = path_of(header, tile);
    int head = blockIdx.y, group = shape.heads / shape.kv_heads;
    int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    Keys keys = {k, cache, head, tile.position + tile.count};
    bool busy = warp_row < tile.count * group;

    Rows<DIM> rows;
    int query[2], query_head[2];
    bool valid[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int pair = warp_row + lane / 4 + 8 * half;
        valid[half] = pair < tile.count * group;
        // A row without query does as the first, and is not written.
        if (!valid[half]) pair = 0;
        query[half] = pair / group;
        query_head[half] = head * group + pair % group;
        rows.seen[half] = tile.position + query[half] + 1;
    }
    Angles<DIM / 16> angles[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) read_angles_of<DIM>(angles[half], turn, tile.position + query[half]);
    auto read = [&](bf16* to) {
        int pairs[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) pairs[half] = query[half] * 256 + query_head[half] - head * group;
        bring_queries<DIM, LAYOUT>(to, q + static_cast<size_t>(tile.query) * shape.q_stride + head * group * DIM, shape.q_stride, pairs);
    };
    auto prepare = [&](const bf16* from) {
        take_queries<DIM, LAYOUT>(rows, from);
#pragma unroll
        for (int half = 0; half < 2; ++half) turn_queries<DIM>(rows, half, turn, angles[half], query_head[half]);
        begin<DIM>(rows);
    };
    each_tile<DIM, LAYOUT>(path, shape, keys, buffers, read, prepare, [&](const bf16* tile_keys, const bf16* values, int first, auto bring_next) {
        attend(rows, busy, bring_next, tile_keys, values, first, shape.scale);
    });

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float total = rows.total[half];
        total += __shfl_xor_sync(FULL, total, 1);
        total += __shfl_xor_sync(FULL, total, 2);
        float share = __fdividef(1.0f, total);
        bf16* to = out + (static_cast<size_t>(tile.query + query[half]) * shape.heads + query_head[half]) * DIM;
#pragma unroll
        for (int d = 0; d < DIM / 8; d += 4) {
            u32 pairs[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) pairs[i] = pack_bf16(rows.sums[d + i][2 * half] * share, rows.sums[d + i][2 * half + 1] * share);
            transpose(pairs);
            if (valid[half]) put_blocks(pairs, to + d * 8);
        }
    }
}

// One query, 16 of a key head's query heads to a block. `rest`, if asked for, is what the result lost in
// rounding.
template <int DIM>
DEVICE void row_attention(const int* plan, const Attention& shape, const Turn& turn, const bf16* q, const bf16* k,
                          const bf16* cache, bf16* out, bf16* rest) {
    constexpr int STRIDE = DIM + 8, WARPS = 4, KEYS = TILE_KEYS / WARPS;
    SHARED(bf16, buffers);  // at the end of the warps' sums
    Header header = header_of(plan);
    if (static_cast<int>(blockIdx.x) >= word_of(header, shape.count_at)) return after_the_kernel_before();
    const Tile tile = list<Tile>(header, shape.tiles_at)[blockIdx.x];
    Path path = path_of(header, tile);
    int group = shape.heads / shape.kv_heads, parts = (group + 15) / 16;
    int head = blockIdx.y / parts, first_row = blockIdx.y % parts * 16;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Keys keys = {k, cache, head, tile.position + 1};
    const bf16* queries = q + static_cast<size_t>(tile.query) * shape.q_stride + head * group * DIM;

    Rows<DIM> rows;
    rows.seen[0] = rows.seen[1] = keys.count;
    Angles<DIM / 16> angles;
    read_angles_of<DIM>(angles, turn, tile.position);
    // Behind the last query head the first is taken again, and not written.
    int row[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
    for (int& of : row) of = of < group ? of : 0;
    auto read = [&](bf16*) {
#pragma unroll
        for (int half = 0; half < 2; ++half) read_queries<DIM>(rows, half, queries + row[half] * DIM);
    };
    auto prepare = [&](const bf16*) {
#pragma unroll
        for (int half = 0; half < 2; ++half) turn_queries<DIM>(rows, half, turn, angles, head * group + row[half]);
        begin<DIM>(rows);
    };
    each_tile<DIM, PADDED>(path, shape, keys, buffers, read, prepare, [&](const bf16* tile_keys, const bf16* values, int first, auto bring_next) {
        int mine = warp * KEYS;
        bring_next();
        if (first + mine >= keys.count) return;
        attend<DIM, KEYS>(rows, tile_keys + mine * STRIDE, values + mine * STRIDE, first + mine, shape.scale);
    });

    // Everybody has read the last keys, where this goes. [warp][row]: the maximum, the total; [warp][row][column]: the sum.
    __syncthreads();
    float* most = reinterpret_cast<float*>(buffers);
    float *totals = most + WARPS * 16, *sums = totals + WARPS * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float total = rows.total[half];
        total += __shfl_xor_sync(FULL, total, 1);
        total += __shfl_xor_sync(FULL, total, 2);
        int row = warp * 16 + lane / 4 + 8 * half;
        if (lane % 4 == 0) most[row] = rows.most[half], totals[row] = total;
#pragma unroll
        for (int d = 0; d < DIM / 8; ++d) {
            float2* to = reinterpret_cast<float2*>(sums + row * DIM + d * 8 + lane % 4 * 2);
            *to = make_float2(rows.sums[d][2 * half], rows.sums[d][2 * half + 1]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * DIM / 2; i += 128) {
        int row = i / (DIM / 2), column = i % (DIM / 2) * 2;
        if (first_row + row >= group) break;
        float top = most[row];
#pragma unroll
        for (int w = 1; w < WARPS; ++w) top = fmaxf(top, most[w * 16 + row]);
        float total = 0.0f, sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            // A warp that saw no key weighs nothing.
            int from = w * 16 + row;
            float weight = power_of_two((most[from] - top) * shape.scale);
            total = fmaf(weight, totals[from], total);
            sum[0] = fmaf(weight, sums[from * DIM + column], sum[0]);
            sum[1] = fmaf(weight, sums[from * DIM + column + 1], sum[1]);
        }
        float share = __fdividef(1.0f, total);
        size_t to = (static_cast<size_t>(tile.query) * shape.heads + head * group + first_row + row) * DIM + column;
        put_pair(reinterpret_cast<u32*>(out + to), rest == nullptr ? nullptr : reinterpret_cast<u32*>(rest + to),
                 sum[0] * share, sum[1] * share);
    }
}

#define ATTENTION(DIM) \
    KERNEL void __launch_bounds__(128, 2) attention_##DIM(const int* plan, Attention shape, Turn turn, const bf16* q, \
                                                       const bf16* k, const bf16* cache, bf16* out) { \
        SHARED(bf16, buffers); \
        tree_attention<DIM, PADDED>(plan, shape, turn, q, k, cache, out, buffers, [](Rows<DIM>& rows, bool busy, auto bring_next, auto... tile) { \
            bring_next(); \
            if (busy) attend<DIM, TILE_KEYS>(rows, tile...); \
        }); \
    } \
    KERNEL void __launch_bounds__(128, 2) attention_row_##DIM(const int* plan, Attention shape, Turn turn, const bf16* q, \
                                                              const bf16* k, const bf16* cache, bf16* out, bf16* rest) { \
        row_attention<DIM>(plan, shape, turn, q, k, cache, out, rest); \
    }
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
