// What works row by row: embedding, residual add and RMS norm, rotary embedding, the MLP's gate.
#pragma once
#include "device.cuh"

// residual[row] = embedding of the row's token. A block of 256 a row.
KERNEL void embed(const int* plan, const bf16* table, float* residual, int hidden) {
    int row = blockIdx.x;
    if (row >= plan[ROWS]) return;
    const u32* from = reinterpret_cast<const u32*>(table + static_cast<size_t>(list<int>(plan, TOKENS)[row]) * hidden);
    float2* to = reinterpret_cast<float2*>(residual + static_cast<size_t>(row) * hidden);
    for (int i = threadIdx.x; i < hidden / 2; i += 256) to[i] = make_float2(low(from[i]), high(from[i]));
}

// residual += bias, if there is one; normed = RMS norm of it; `rest`, if asked for, is what normed
// lost in rounding. A block of 256 a row.
KERNEL void add_norm(const int* plan, int count_at, float* residual, const float* bias, const float* weight,
                     bf16* normed, bf16* rest, int hidden, float epsilon) {
    SHARED(float, parts);
    int row = blockIdx.x;
    if (row >= plan[count_at]) return;
    float2* x = reinterpret_cast<float2*>(residual + static_cast<size_t>(row) * hidden);
    float squares = 0.0f;
    for (int i = threadIdx.x; i < hidden / 2; i += 256) {
        float2 v = x[i];
        if (bias != nullptr) {
            v.x += bias[2 * i];
            v.y += bias[2 * i + 1];
            x[i] = v;
        }
        squares += v.x * v.x + v.y * v.y;
    }
    float scale = 1.0f / sqrtf(block_sum(squares, parts) / static_cast<float>(hidden) + epsilon);
    u32* to = reinterpret_cast<u32*>(normed + static_cast<size_t>(row) * hidden);
    u32* rest_to = rest == nullptr ? nullptr : reinterpret_cast<u32*>(rest + static_cast<size_t>(row) * hidden);
    for (int i = threadIdx.x; i < hidden / 2; i += 256) {
        float2 v = x[i];
        put_pair(to + i, rest_to == nullptr ? nullptr : rest_to + i, v.x * scale * weight[2 * i],
                 v.y * scale * weight[2 * i + 1]);
    }
}

// The answers' rows of residual and normed, packed. A block of 256 an answer.
KERNEL void select_answers(const int* plan, const float* residual, const bf16* normed, float* residual_out,
                           bf16* normed_out, int hidden) {
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
    int count_at;  // of the plan: rows of the buffer
    int answers;   // not 0: the rows are the answers'
    int stride;    // of a row
    int q_heads;   // first columns of a row; 0: no queries here
    int kv_heads;  // then keys, then values; 0: none here
    int layer;
    int layers;
    float epsilon;
};

// Bias, head norm and rotary embedding of queries and keys, bias of values, in place; keys
// and values are put into the cache where the plan keeps them. A warp a head.
template <int DIM>
DEVICE void rotate(const int* plan, const Rotation& shape, bf16* buffer, const float* bias, const float* q_norm,
                   const float* k_norm, const float* cosines, const float* sines, bf16* cache) {
    int row = blockIdx.x;
    int head = blockIdx.y * 8 + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= plan[shape.count_at] || head >= shape.q_heads + 2 * shape.kv_heads) return;
    bool value = head >= shape.q_heads + shape.kv_heads;
    const float* norm = head < shape.q_heads ? q_norm : k_norm;
    bf16* vector = buffer + static_cast<size_t>(row) * shape.stride + head * DIM;
    // A lane holds two elements of the first half and those they turn with.
    bool active = lane < DIM / 4;
    int first = 2 * lane, second = DIM / 2 + 2 * lane;
    float a[2] = {0.0f, 0.0f}, b[2] = {0.0f, 0.0f};
    if (active) {
        u32 x = *reinterpret_cast<const u32*>(vector + first), y = *reinterpret_cast<const u32*>(vector + second);
        a[0] = low(x), a[1] = high(x), b[0] = low(y), b[1] = high(y);
        for (int i = 0; i < 2 && bias != nullptr; ++i) {
            a[i] += bias[head * DIM + first + i];
            b[i] += bias[head * DIM + second + i];
        }
    }
    if (!value && norm != nullptr) {
        float squares = warp_sum(a[0] * a[0] + a[1] * a[1] + b[0] * b[0] + b[1] * b[1]);
        float scale = 1.0f / sqrtf(squares / static_cast<float>(DIM) + shape.epsilon);
        for (int i = 0; i < 2 && active; ++i) {
            a[i] *= scale * norm[first + i];
            b[i] *= scale * norm[second + i];
        }
    }
    if (!active) return;
    int batch_row = shape.answers ? list<int>(plan, ANSWER_ROWS)[row] : row;
    if (!value) {
        size_t at = static_cast<size_t>(list<int>(plan, POSITIONS)[batch_row]) * (DIM / 2) + first;
        for (int i = 0; i < 2; ++i) {
            float x = a[i], y = b[i];
            a[i] = x * cosines[at + i] - y * sines[at + i];
            b[i] = y * cosines[at + i] + x * sines[at + i];
        }
    }
    u32 x = pack_bf16(a[0], a[1]), y = pack_bf16(b[0], b[1]);
    *reinterpret_cast<u32*>(vector + first) = x;
    *reinterpret_cast<u32*>(vector + second) = y;
    int slot = list<int>(plan, SLOTS)[batch_row];
    if (head >= shape.q_heads && slot >= 0) {
        bf16* kept = cache + cache_at(slot, shape.layer, shape.layers, shape.kv_heads, head - shape.q_heads, DIM);
        *reinterpret_cast<u32*>(kept + first) = x;
        *reinterpret_cast<u32*>(kept + second) = y;
    }
}

#define ROTATE(DIM) \
    KERNEL void rotate_##DIM(const int* plan, Rotation shape, bf16* buffer, const float* bias, const float* q_norm, \
                             const float* k_norm, const float* cosines, const float* sines, bf16* cache) { \
        rotate<DIM>(plan, shape, buffer, bias, q_norm, k_norm, cosines, sines, cache); \
    }
ROTATE(32)
ROTATE(64)
ROTATE(128)

// activated = silu(gate) · up, both with their biases if there are any; they are f32 if `wide` is not 0,
// else bf16. `rest`, if asked for, is what activated lost in rounding. 256 pairs of columns a block.
KERNEL void silu_mul(const int* plan, int count_at, const void* gate_up, int wide, const float* bias, bf16* activated,
                     bf16* rest, int inner) {
    int row = blockIdx.x;
    int pair = blockIdx.y * 256 + threadIdx.x;
    if (row >= plan[count_at] || pair >= inner / 2) return;
    // In pairs of columns: the row's gates, then its ups.
    size_t gates_at = static_cast<size_t>(row) * inner + pair, ups_at = gates_at + inner / 2;
    float gate[2], up[2];
    if (wide) {
        const float2* pairs = static_cast<const float2*>(gate_up);
        float2 gates = pairs[gates_at], ups = pairs[ups_at];
        gate[0] = gates.x, gate[1] = gates.y, up[0] = ups.x, up[1] = ups.y;
    } else {
        const u32* pairs = static_cast<const u32*>(gate_up);
        u32 gates = pairs[gates_at], ups = pairs[ups_at];
        gate[0] = low(gates), gate[1] = high(gates), up[0] = low(ups), up[1] = high(ups);
    }
    for (int i = 0; i < 2; ++i) {
        if (bias != nullptr) {
            gate[i] += bias[2 * pair + i];
            up[i] += bias[inner + 2 * pair + i];
        }
        up[i] *= gate[i] / (1.0f + power_of_two(-1.4426950408889634f * gate[i]));
    }
    size_t at = static_cast<size_t>(row) * inner + 2 * pair;
    put_pair(reinterpret_cast<u32*>(activated + at), rest == nullptr ? nullptr : reinterpret_cast<u32*>(rest + at), up[0], up[1]);
}
