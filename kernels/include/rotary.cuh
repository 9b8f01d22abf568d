// Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of a few pairs of a head.
#pragma once

#include "pack.cuh"

// N neighbouring pairs of one head, from the `first`: (a, b) -> (a cos - b sin, b cos + a sin), or with -sin for sin. `to` and
// `from` are the same head or do not overlap.
template <int N, bool INTERLEAVED, bool FORWARD, typename T>
__device__ __forceinline__ void rotate(T* to, const T* from, const float* cos, const float* sin, uint32_t first, uint32_t half) {
    float c[N];
    float s[N];
    load_f32<N>(c, cos + first);
    load_f32<N>(s, sin + first);
    if constexpr (!FORWARD) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
            s[k] = -s[k];
        }
    }
    if constexpr (INTERLEAVED && N == 1) {
        // Rows of an odd number of columns: a pair may begin where no access of two elements may.
        const float a = to_f32(from[2 * first]);
        const float b = to_f32(from[2 * first + 1]);
        to[2 * first] = from_f32<T>(a * c[0] - b * s[0]);
        to[2 * first + 1] = from_f32<T>(b * c[0] + a * s[0]);
    } else if constexpr (INTERLEAVED) {
        float x[2 * N];
        load_f32<2 * N>(x, from + 2 * first);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float a = x[2 * k];
            const float b = x[2 * k + 1];
            x[2 * k] = a * c[k] - b * s[k];
            x[2 * k + 1] = b * c[k] + a * s[k];
        }
        store_f32<2 * N>(to + 2 * first, x);
    } else {
        float a[N];
        float b[N];
        load_f32<N>(a, from + first);
        load_f32<N>(b, from + half + first);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float rotated = a[k] * c[k] - b[k] * s[k];
            b[k] = b[k] * c[k] + a[k] * s[k];
            a[k] = rotated;
        }
        store_f32<N>(to + first, a);
        store_f32<N>(to + half + first, b);
    }
}
