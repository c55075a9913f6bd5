// Bias, head norm and rotary embedding of queries and keys. They are done in the product that gives them
// (`results_turned.cuh`), by a kernel of their own (`rotate`), or as attention reads queries, by what is fastest: so all
// have the same bits. Squares are summed in one order, and what is multiplied and added at once is written out, not
// left to the compiler.
//
// Element i of the first half of a head turns with element i of the second. Of each, a lane of four holds every fourth
// pair of columns, as tensor cores give and take them; a pair and its partner are a block. `x` is a row's pairs, and
// then their partners.
#pragma once
#include "device.cuh"

// Cosines and sines of two elements that lie together: read in one access.
struct alignas(16) TwoAngles {
    float2 cosine, sine;
};

// What queries and keys become.
struct Turn {
    const float* bias;      // of all heads, or null
    const float* norm;      // of a head, or null
    const TwoAngles* angles;  // [position][dim / 4]; null: they were turned before
    float epsilon;
};

// Two floats that lie together.
DEVICE float2 two(const float* from) { return *reinterpret_cast<const float2*>(from); }

// The squares of two elements and of those that they turn with.
DEVICE float squares_of(const float* first, const float* second) {
    return fmaf(second[1], second[1], fmaf(second[0], second[0], fmaf(first[1], first[1], first[0] * first[0])));
}

// Those of BLOCKS blocks, and of four lanes: half of a head, by columns of its first half. A power of two of them.
template <int BLOCKS>
DEVICE float half_squares(const float (*first)[2], const float (*second)[2]) {
    float sums[BLOCKS];
#pragma unroll
    for (int p = 0; p < BLOCKS; ++p) sums[p] = squares_of(first[p], second[p]);
#pragma unroll
    for (int step = 1; step < BLOCKS; step *= 2) {
#pragma unroll
        for (int p = 0; p < BLOCKS; p += 2 * step) sums[p] += sums[p + step];
    }
    sums[0] += __shfl_xor_sync(FULL, sums[0], 1);
    return sums[0] + __shfl_xor_sync(FULL, sums[0], 2);
}

// Those of all blocks of a head.
template <int BLOCKS>
DEVICE float whole_squares(const float (*x)[2]) {
    constexpr int HALF = BLOCKS / 2;
    return half_squares<HALF>(x, x + BLOCKS) + half_squares<HALF>(x + HALF, x + BLOCKS + HALF);
}

DEVICE float norm_scale(float squares, int dim, float epsilon) { return rsqrtf(squares / static_cast<float>(dim) + epsilon); }

// An element and the one that it turns with.
DEVICE void turn_two(float& first, float& second, float cosine, float sine) {
    float before = first;
    first = fmaf(before, cosine, -__fmul_rn(second, sine));
    second = fmaf(second, cosine, __fmul_rn(before, sine));
}

// Of a row, by its blocks: read before they are needed, or when they are.
template <int BLOCKS>
struct Angles {
    TwoAngles of[BLOCKS];
};
// Those of a block: `first` columns into a row of the table, which `half` are.
DEVICE TwoAngles angle_of(const TwoAngles* angles, int position, int half, int first, int block) {
    return angles[static_cast<size_t>(position) * (half / 2) + first / 2 + block * 4];
}

// What a norm multiplies a block by.
struct Gain {
    float2 first, second;
};
template <int BLOCKS>
struct Gains {
    Gain of[BLOCKS];
};
DEVICE Gain gain_of(const float* norm, int half, int first, int block) {
    return {two(norm + first + block * 8), two(norm + half + first + block * 8)};
}

// Norm, if there is one, and rotation of one row's blocks.
template <int BLOCKS, class FindGain, class FindAngle>
DEVICE void turn_blocks(float (*x)[2], float scale, bool normed, FindGain gain, FindAngle angle) {
#pragma unroll
    for (int p = 0; p < BLOCKS; ++p) {
        float *first = x[p], *second = x[p + BLOCKS];
        if (normed) {
            Gain by = gain(p);
            first[0] *= scale * by.first.x, first[1] *= scale * by.first.y;
            second[0] *= scale * by.second.x, second[1] *= scale * by.second.y;
        }
        TwoAngles by = angle(p);
        turn_two(first[0], second[0], by.cosine.x, by.sine.x);
        turn_two(first[1], second[1], by.cosine.y, by.sine.y);
    }
}
