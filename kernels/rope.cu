// Rotary position embedding (Su et al. 2021, arXiv 2104.09864) on the q and k heads of a fused qkv row. Forward and
// backward, which is the inverse rotation: the same code with the sine's sign turned.

#include "pack.cuh"

// Mirrors RopeSizes of src/backend/cuda/rope.rs.
struct RopeSizes {
    uint32_t rows;
    uint32_t cols;
    uint32_t heads;
    uint32_t half;
};
static_assert(sizeof(RopeSizes) == 16 && offsetof(RopeSizes, half) == 12, "layout shared with Rust");

constexpr int THREADS = 256;

// N neighbouring pairs of one head: (a, b) -> (a cos - b sin, b cos + a sin), or with -sin for sin.
template <int N, bool INTERLEAVED, bool FORWARD, typename T>
__device__ __forceinline__ void rotate(T* head, const float* cos, const float* sin, uint32_t first, uint32_t half) {
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
        const float a = to_f32(head[2 * first]);
        const float b = to_f32(head[2 * first + 1]);
        head[2 * first] = from_f32<T>(a * c[0] - b * s[0]);
        head[2 * first + 1] = from_f32<T>(b * c[0] + a * s[0]);
    } else if constexpr (INTERLEAVED) {
        float x[2 * N];
        load_f32<2 * N>(x, head + 2 * first);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float a = x[2 * k];
            const float b = x[2 * k + 1];
            x[2 * k] = a * c[k] - b * s[k];
            x[2 * k + 1] = b * c[k] + a * s[k];
        }
        store_f32<2 * N>(head + 2 * first, x);
    } else {
        float a[N];
        float b[N];
        load_f32<N>(a, head + first);
        load_f32<N>(b, head + half + first);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float rotated = a[k] * c[k] - b[k] * s[k];
            b[k] = b[k] * c[k] + a[k] * s[k];
            a[k] = rotated;
        }
        store_f32<N>(head + first, a);
        store_f32<N>(head + half + first, b);
    }
}

template <int N, bool INTERLEAVED, bool FORWARD, typename T>
__device__ __forceinline__ void rope_item(T* x, const float* cos, const float* sin, const uint32_t* positions, RopeSizes sizes) {
    const uint32_t in_head = sizes.half / N;
    const uint32_t in_row = sizes.heads * in_head;
    const size_t item = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (item >= static_cast<size_t>(sizes.rows) * in_row) {
        return;
    }
    const size_t row = item / in_row;
    const uint32_t rest = static_cast<uint32_t>(item % in_row);
    const size_t table = static_cast<size_t>(positions[row]) * sizes.half;
    T* head = x + row * sizes.cols + static_cast<size_t>(rest / in_head) * 2 * sizes.half;
    rotate<N, INTERLEAVED, FORWARD>(head, cos + table, sin + table, rest % in_head * N, sizes.half);
}

// A thread rotates eight pairs where addresses allow it (16-byte accesses), else one: rope_step of src/backend/cuda/rope.rs
// chooses the same when it sizes the grid.
template <bool INTERLEAVED, bool FORWARD, typename T>
__device__ __forceinline__ void rope(T* x, const float* cos, const float* sin, const uint32_t* positions, RopeSizes sizes) {
    if (sizes.half % 8 == 0 && sizes.cols % 8 == 0) {
        rope_item<8, INTERLEAVED, FORWARD>(x, cos, sin, positions, sizes);
    } else {
        rope_item<1, INTERLEAVED, FORWARD>(x, cos, sin, positions, sizes);
    }
}

// rope_<pairing>_<x>: rotates the first heads * 2 * half columns of x [rows, cols] in place; cos, sin: [positions, half] f32;
// positions: one a row.  half: element i pairs with i + half (Llama, Qwen2);  interleaved: 2i with 2i + 1 (Cohere).
// Geometry: 256 threads a block, a thread for eight pairs (one where half or cols is no multiple of 8).
// Limit: 1 read + 1 write of those columns; [16384, 5120] bf16 at 4.3 TB/s: 78 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    rope_half_f32(float* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                  const uint32_t* __restrict__ positions, RopeSizes sizes) {
    rope<false, true>(x, cos, sin, positions, sizes);
}
EXPORT_KERNEL(rope_half_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_half_bf16(bf16* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                   const uint32_t* __restrict__ positions, RopeSizes sizes) {
    rope<false, true>(x, cos, sin, positions, sizes);
}
EXPORT_KERNEL(rope_half_bf16, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_interleaved_f32(float* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                         const uint32_t* __restrict__ positions, RopeSizes sizes) {
    rope<true, true>(x, cos, sin, positions, sizes);
}
EXPORT_KERNEL(rope_interleaved_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_interleaved_bf16(bf16* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                          const uint32_t* __restrict__ positions, RopeSizes sizes) {
    rope<true, true>(x, cos, sin, positions, sizes);
}
EXPORT_KERNEL(rope_interleaved_bf16, THREADS)

// rope_backward_<pairing>_<x>: x holds the gradient of the rotated columns and becomes that of the columns before, in place:
// (a, b) -> (a cos + b sin, b cos - a sin).  Arguments, geometry and limit as above.
extern "C" __global__ void __launch_bounds__(THREADS)
    rope_backward_half_f32(float* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                           const uint32_t* __restrict__ positions, RopeSizes sizes) {
    rope<false, false>(x, cos, sin, positions, sizes);
}
EXPORT_KERNEL(rope_backward_half_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_backward_half_bf16(bf16* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                            const uint32_t* __restrict__ positions, RopeSizes sizes) {
    rope<false, false>(x, cos, sin, positions, sizes);
}
EXPORT_KERNEL(rope_backward_half_bf16, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_backward_interleaved_f32(float* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                                  const uint32_t* __restrict__ positions, RopeSizes sizes) {
    rope<true, false>(x, cos, sin, positions, sizes);
}
EXPORT_KERNEL(rope_backward_interleaved_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_backward_interleaved_bf16(bf16* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                                   const uint32_t* __restrict__ positions, RopeSizes sizes) {
    rope<true, false>(x, cos, sin, positions, sizes);
}
EXPORT_KERNEL(rope_backward_interleaved_bf16, THREADS)
