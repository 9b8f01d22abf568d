// Conversions between storage types and f32, by names that say what they do. Sums are always f32 or wider.
#pragma once

#include "device.cuh"

using bf16 = __nv_bfloat16;

// Exact: bf16 is the upper half of an f32.
__device__ __forceinline__ float to_f32(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_f32(float value) { return value; }

// Rounds to nearest, ties to even.
__device__ __forceinline__ bf16 to_bf16(float value) { return __float2bfloat16_rn(value); }

// To the storage type T, rounded once; for f32 as it is.
template <typename T>
__device__ __forceinline__ T from_f32(float value);
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float value) {
    return to_bf16(value);
}
template <>
__device__ __forceinline__ float from_f32<float>(float value) {
    return value;
}
