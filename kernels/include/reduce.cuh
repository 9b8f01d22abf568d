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
template <int THREADS>
__device__ __forceinline__ float block_sum(float value, float* partial) {
    static_assert(THREADS % WARP == 0 && THREADS <= WARP * WARP, "whole warps, whose sums fit one warp");
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float sum = 0.0f;
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
