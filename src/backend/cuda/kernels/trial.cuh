// What products are tried with at start (`trial.rs`): rows that repeat others, and whether they do.
#pragma once
#include "device.cuh"

// Each row, of so many words, is one of the first `of` of another matrix, in turn. A block of 256 a row.
KERNEL void repeat_rows(Quads* to, const Quads* from, int words, int of) {
    after_the_kernel_before();
    int row = blockIdx.x;
    from += static_cast<size_t>(row % of) * words, to += static_cast<size_t>(row) * words;
    for (int i = threadIdx.x; i < words; i += 256) to[i] = from[i];
}

// How many words of each row are others than `repeat_rows` would have put there. A block of 256 a row.
KERNEL void count_differences(const Quads* found, const Quads* from, int words, int of, float* differences) {
    SHARED(float, parts);
    after_the_kernel_before();
    int row = blockIdx.x;
    from += static_cast<size_t>(row % of) * words, found += static_cast<size_t>(row) * words;
    float count = 0.0f;
    for (int i = threadIdx.x; i < words; i += 256) {
        Quads x = found[i], y = from[i];
        u32 differ = 0;
        for (int j = 0; j < 4; ++j) differ |= x.of[j] ^ y.of[j];
        if (differ != 0) count += 1.0f;
    }
    count = block_sum(count, parts);
    if (threadIdx.x == 0) differences[row] = count;
}
