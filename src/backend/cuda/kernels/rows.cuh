// What works row by row: embedding, residual add and RMS norm, rotary embedding, the MLP's gate.
#pragma once
#include "turn.cuh"

// residual[row] = embedding of the row's token. A block of 256 a row.
KERNEL void embed(const int* plan, const bf16* table, float* residual, int hidden) {
    after_the_kernel_before();
    int row = blockIdx.x;
    if (row >= plan[ROWS]) return;
    const u32* from = reinterpret_cast<const u32*>(table + static_cast<size_t>(list<int>(plan, TOKENS)[row]) * hidden);
    float2* to = reinterpret_cast<float2*>(residual + static_cast<size_t>(row) * hidden);
    for (int i = threadIdx.x; i < hidden / 2; i += 256) to[i] = make_float2(low(from[i]), high(from[i]));
}

// A product of what its input was rounded to, and, so many rows further, of what that lost: [2 · apart][outputs].
struct Halves {
    const float* of;  // or null
    int apart;
};
// Both, four columns of them.
DEVICE Floats whole(const Halves& halves, int row, int fours, int at) {
    const Floats* from = reinterpret_cast<const Floats*>(halves.of);
    Floats sum = from[static_cast<size_t>(row) * fours + at], rest = from[static_cast<size_t>(row + halves.apart) * fours + at];
    for (int i = 0; i < 4; ++i) sum.of[i] += rest.of[i];
    return sum;
}

// residual += what was added to it, and bias, if there are any; normed = RMS norm of it; `rest`, if asked for, is what normed
// lost in rounding. A block of 256 a row.
KERNEL void add_norm(const int* plan, int count_at, float* residual, Halves added, const float* bias, const float* weight,
                     bf16* normed, bf16* rest, int hidden, float epsilon) {
    SHARED(float, parts);
    int row = blockIdx.x, rows = plan[count_at];
    // The first weights are asked for before the row that they wait for.
    const Floats* gains = reinterpret_cast<const Floats*>(weight);
    int first = static_cast<int>(threadIdx.x);
    Floats gain = first < hidden / 4 ? gains[first] : Floats{};
    after_the_kernel_before();
    if (row >= rows) return;
    Floats* x = reinterpret_cast<Floats*>(residual + static_cast<size_t>(row) * hidden);
    float squares = 0.0f;
    for (int i = first; i < hidden / 4; i += 256) {
        Floats v = x[i];
        if (added.of != nullptr) {
            Floats more = whole(added, row, hidden / 4, i);
            for (int j = 0; j < 4; ++j) v.of[j] += more.of[j];
        }
        for (int j = 0; j < 4 && bias != nullptr; ++j) v.of[j] += bias[4 * i + j];
        if (added.of != nullptr || bias != nullptr) x[i] = v;
        for (int j = 0; j < 4; ++j) squares += v.of[j] * v.of[j];
    }
    float scale = rsqrtf(__fdividef(block_sum(squares, parts), static_cast<float>(hidden)) + epsilon);
    u32* to = reinterpret_cast<u32*>(normed + static_cast<size_t>(row) * hidden);
    u32* rest_to = rest == nullptr ? nullptr : reinterpret_cast<u32*>(rest + static_cast<size_t>(row) * hidden);
    for (int i = first; i < hidden / 4; i += 256) {
        Floats v = x[i];
        if (i != first) gain = gains[i];
        for (int j = 0; j < 4; ++j) v.of[j] *= scale * gain.of[j];
        for (int j = 0; j < 2; ++j) {
            put_pair(to + 2 * i + j, rest_to == nullptr ? nullptr : rest_to + 2 * i + j, v.of[2 * j], v.of[2 * j + 1]);
        }
    }
}

// The same, without a product or `rest`, of rows that a warp holds whole: nothing waits for other warps. Four rows to a block
// of 128.
constexpr int HELD_FLOATS = 8, HELD_ROWS = 4;
KERNEL void __launch_bounds__(32 * HELD_ROWS) add_norm_held(const int* plan, int count_at, float* residual, const float* bias,
                                                            const float* weight, bf16* normed, int hidden, float epsilon) {
    int row = blockIdx.x * HELD_ROWS + threadIdx.x / 32, lane = threadIdx.x % 32, rows = plan[count_at], fours = hidden / 4;
    Floats gain[HELD_FLOATS], v[HELD_FLOATS];
#pragma unroll
    for (int j = 0; j < HELD_FLOATS; ++j) gain[j] = 32 * j + lane < fours ? reinterpret_cast<const Floats*>(weight)[32 * j + lane] : Floats{};
    after_the_kernel_before();
    if (row >= rows) return;
    Floats* x = reinterpret_cast<Floats*>(residual) + static_cast<size_t>(row) * fours + lane;
#pragma unroll
    for (int j = 0; j < HELD_FLOATS; ++j) v[j] = 32 * j + lane < fours ? x[32 * j] : Floats{};
    // Four sums, so that none waits for the one before.
    float squares[4] = {};
#pragma unroll
    for (int j = 0; j < HELD_FLOATS; ++j) {
        if (bias != nullptr && 32 * j + lane < fours) {
            for (int i = 0; i < 4; ++i) v[j].of[i] += bias[4 * (32 * j + lane) + i];
            x[32 * j] = v[j];
        }
        for (int i = 0; i < 4; ++i) squares[i] += v[j].of[i] * v[j].of[i];
    }
    float all = warp_sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    float scale = rsqrtf(__fdividef(all, static_cast<float>(hidden)) + epsilon);
    Pairs* to = reinterpret_cast<Pairs*>(normed) + static_cast<size_t>(row) * fours + lane;
#pragma unroll
    for (int j = 0; j < HELD_FLOATS; ++j) {
        if (32 * j + lane >= fours) break;
        Pairs rounded;
        for (int i = 0; i < 4; ++i) v[j].of[i] *= scale * gain[j].of[i];
        for (int i = 0; i < 2; ++i) rounded.of[i] = pack_bf16(v[j].of[2 * i], v[j].of[2 * i + 1]);
        to[32 * j] = rounded;
    }
}

// The answers' rows of residual and normed, packed. A block of 256 an answer.
KERNEL void select_answers(const int* plan, const float* residual, const bf16* normed, float* residual_out,
                           bf16* normed_out, int hidden) {
    after_the_kernel_before();
    int answer = blockIdx.x;
    if (answer >= plan[ANSWERS]) return;
    size_t from = static_cast<size_t>(list<int>(plan, ANSWER_ROWS)[answer]) * hidden;
    size_t to = static_cast<size_t>(answer) * hidden;
    for (int i = threadIdx.x; i < hidden; i += 256) {
        residual_out[to + i] = residual[from + i];
        normed_out[to + i] = normed[from + i];
    }
}

// What `rotate` needs beside its buffers.
struct Rotation {
    int stride;    // of a row
    int kv_heads;  // first columns of a row: keys, then values
    int layer;
    int layers;
    float epsilon;
};

// Bias, head norm and rotary embedding of keys, bias of values, in place; both are put into the cache where the
// plan keeps them. Where their product did not do it: queries are turned by attention then. DIM / 8 lanes a head.
template <int DIM>
DEVICE void rotate(const int* plan, const Rotation& shape, bf16* buffer, const float* bias, const float* norm,
                   const TwoAngles* angles, bf16* cache) {
    constexpr int LANES = DIM / 8, HEADS = 256 / LANES;
    int row = blockIdx.x, head = blockIdx.y * HEADS + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (row >= plan[ROWS]) return after_the_kernel_before();
    bool value = head >= shape.kv_heads;
    int slot = list<int>(plan, SLOTS)[row], position = list<int>(plan, POSITIONS)[row];
    after_the_kernel_before();
    // Values without bias are as they should be.
    bool active = head < 2 * shape.kv_heads && (!value || bias != nullptr || slot >= 0);
    bf16* vector = buffer + static_cast<size_t>(row) * shape.stride + head * DIM;
    // A lane holds four elements of the first half and those they turn with.
    int first = 4 * lane, second = DIM / 2 + 4 * lane;
    float a[4] = {}, b[4] = {};
    if (active) {
        Pairs x = *reinterpret_cast<const Pairs*>(vector + first), y = *reinterpret_cast<const Pairs*>(vector + second);
        for (int i = 0; i < 2; ++i) {
            a[2 * i] = low(x.of[i]), a[2 * i + 1] = high(x.of[i]);
            b[2 * i] = low(y.of[i]), b[2 * i + 1] = high(y.of[i]);
        }
        for (int i = 0; i < 4 && bias != nullptr; ++i) {
            a[i] += bias[head * DIM + first + i];
            b[i] += bias[head * DIM + second + i];
        }
    }
    // Every lane takes part in the sum, which is that of `half_squares`: neighbouring blocks, then their lanes, then halves.
    float squares[2] = {squares_of(a, b), squares_of(a + 2, b + 2)};
    for (int step = 2; step < LANES / 2; step *= 2) {
        for (float& of : squares) of += __shfl_xor_sync(FULL, of, step);
    }
    float sum = squares[0] + squares[1];
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, LANES / 2);
    if (!active) return;
    if (!value && norm != nullptr) {
        float scale = norm_scale(sum, DIM, shape.epsilon);
        for (int i = 0; i < 4; ++i) {
            a[i] *= scale * norm[first + i];
            b[i] *= scale * norm[second + i];
        }
    }
    if (!value) {
        for (int i = 0; i < 4; i += 2) {
            TwoAngles by = angles[static_cast<size_t>(position) * (DIM / 4) + (first + i) / 2];
            turn_two(a[i], b[i], by.cosine.x, by.sine.x);
            turn_two(a[i + 1], b[i + 1], by.cosine.y, by.sine.y);
        }
    }
    Pairs x = {{pack_bf16(a[0], a[1]), pack_bf16(a[2], a[3])}}, y = {{pack_bf16(b[0], b[1]), pack_bf16(b[2], b[3])}};
    *reinterpret_cast<Pairs*>(vector + first) = x;
    *reinterpret_cast<Pairs*>(vector + second) = y;
    if (slot >= 0) {
        bf16* kept = cache + cache_at(slot, shape.layer, shape.layers, shape.kv_heads, head, DIM);
        *reinterpret_cast<Pairs*>(kept + first) = x;
        *reinterpret_cast<Pairs*>(kept + second) = y;
    }
}

#define ROTATE(DIM) \
    KERNEL void rotate_##DIM(const int* plan, Rotation shape, bf16* buffer, const float* bias, const float* norm, \
                             const TwoAngles* angles, bf16* cache) { \
        rotate<DIM>(plan, shape, buffer, bias, norm, angles, cache); \
    }
ROTATE(32)
ROTATE(64)
ROTATE(128)

// activated = silu(gate) · up, both with their biases if there are any; they are f32 in `Halves` if `apart` is not 0,
// else bf16. `rest`, if asked for, is what activated lost in rounding. 128 threads a block, four columns each.
KERNEL void silu_mul(const int* plan, int count_at, const void* gate_up, int apart, const float* bias, bf16* activated,
                     bf16* rest, int inner) {
    after_the_kernel_before();
    int row = blockIdx.x;
    int four = blockIdx.y * 128 + threadIdx.x;
    if (row >= plan[count_at] || four >= inner / 4) return;
    // In fours of columns: the row's gates, then its ups.
    size_t gates_at = static_cast<size_t>(row) * (inner / 2) + four, ups_at = gates_at + inner / 4;
    Floats gate, up;
    if (apart) {
        Halves both = {static_cast<const float*>(gate_up), apart};
        gate = whole(both, row, inner / 2, four);
        up = whole(both, row, inner / 2, four + inner / 4);
    } else {
        Pairs gates = static_cast<const Pairs*>(gate_up)[gates_at], ups = static_cast<const Pairs*>(gate_up)[ups_at];
        for (int i = 0; i < 2; ++i) {
            gate.of[2 * i] = low(gates.of[i]), gate.of[2 * i + 1] = high(gates.of[i]);
            up.of[2 * i] = low(ups.of[i]), up.of[2 * i + 1] = high(ups.of[i]);
        }
    }
    for (int i = 0; i < 4; ++i) {
        if (bias != nullptr) {
            gate.of[i] += bias[4 * four + i];
            up.of[i] += bias[inner + 4 * four + i];
        }
        up.of[i] = gated(gate.of[i], up.of[i]);
    }
    size_t at = (static_cast<size_t>(row) * inner + 4 * four) / 2;
    u32 *to = reinterpret_cast<u32*>(activated), *rest_to = reinterpret_cast<u32*>(rest);
    for (int i = 0; i < 2; ++i) {
        put_pair(to + at + i, rest == nullptr ? nullptr : rest_to + at + i, up.of[2 * i], up.of[2 * i + 1]);
    }
}
