// Sums and maxima over a warp and over a block, in an order that depends on nothing but the number of threads: same input,
// same bits.
#pragma once

#include "device.cuh"

constexpr int WARP = 32;

// Sum over the 32 lanes, which every lane receives. All lanes of the warp must call it.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// Largest over the 32 lanes, which every lane receives; NaN loses. All lanes of the warp must call it.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

// Sum over a block of THREADS threads, which every thread receives. All threads of the block must call it. `partial`: one
// element of shared memory a warp; a barrier must lie between this call and the next use of it.
template <int THREADS, typename T>
__device__ __forceinline__ T block_sum(T value, T* partial) {
    static_assert(THREADS % WARP == 0 && THREADS <= WARP * WARP, "whole warps, whose sums fit one warp");
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / WARP; ++warp) {
        sum += partial[warp];
    }
    return sum;
}

// The same for the largest; NaN loses.
template <int THREADS>
__device__ __forceinline__ float block_max(float value, float* partial) {
    static_assert(THREADS % WARP == 0 && THREADS <= WARP * WARP, "whole warps, whose maxima fit one warp");
    value = warp_max(value);
    if (threadIdx.x % WARP == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float max = partial[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / WARP; ++warp) {
        max = fmaxf(max, partial[warp]);
    }
    return max;
}

// How a block adds up something over the rows of a matrix, column by column: its warps are as many columns wide as there are
// lanes, each warp takes every WARPS-th row, and the warps' sums are added in their order. That order depends on nothing else, so
// the same rows give the same bits.
constexpr int COLUMN_WARPS = 16;
constexpr int COLUMN_THREADS = COLUMN_WARPS * WARP;

// add(column, sum) for the block's WARP columns from blockIdx.x * WARP on, where sum is that of value(row, column) over rows
// 0 .. rows. `partial`: COLUMN_THREADS elements of shared memory. All threads of the block must call it.
template <typename Value, typename Add>
__device__ __forceinline__ void sum_columns(float* partial, uint32_t rows, uint32_t cols, Value value, Add add) {
    const uint32_t col = blockIdx.x * WARP + threadIdx.x % WARP;
    float sum = 0.0f;
    if (col < cols) {
        // Several loads on their way at a time.
#pragma unroll 4
        for (uint32_t row = threadIdx.x / WARP; row < rows; row += COLUMN_WARPS) {
            sum += value(row, col);
        }
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < WARP && col < cols) {
        for (int warp = 1; warp < COLUMN_WARPS; ++warp) {
            sum += partial[warp * WARP + threadIdx.x];
        }
        add(col, sum);
    }
}
