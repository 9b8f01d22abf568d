// Sums over a warp and over a block, in an order that depends on nothing but the number of threads: same input, same bits.
#pragma once

#include "device.cuh"

constexpr int WARP = 32;

// Sum over the 32 lanes, which every lane receives. All lanes of the warp must call it.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// Sum over a block of THREADS threads, which every thread receives. All threads of the block must call it, once a kernel:
// a second call would overwrite `partial` while slow warps still read it.
template <int THREADS>
__device__ __forceinline__ float block_sum(float value) {
    static_assert(THREADS % WARP == 0 && THREADS <= WARP * WARP, "whole warps, whose sums fit one warp");
    constexpr int WARPS = THREADS / WARP;
    SHARED_ARRAY(float, partial, WARPS);
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        sum += partial[warp];
    }
    return sum;
}
