// Column ranges of wider rows: q, k and v share one product, a LoRA pair (arXiv 2106.09685) belongs to one of them.

#include "pack.cuh"

// Mirrors ColsSizes of src/backend/cuda/cols.rs.
struct ColsSizes {
    uint32_t rows;
    // Columns of the narrow tensor.
    uint32_t cols;
    // Columns of the wide one, and the first of those meant.
    uint32_t wide;
    uint32_t first;
    float scale;
};
static_assert(sizeof(ColsSizes) == 20 && offsetof(ColsSizes, scale) == 16, "layout shared with Rust");

constexpr int THREADS = 256;

// Calls visit<N>(element of the narrow tensor, element of the wide one) for every N neighbouring columns.
template <typename Visit8, typename Visit1>
__device__ __forceinline__ void each_column(ColsSizes sizes, Visit8 visit8, Visit1 visit1) {
    const bool aligned = sizes.cols % 8 == 0 && sizes.wide % 8 == 0 && sizes.first % 8 == 0;
    const uint32_t step = aligned ? 8 : 1;
    const uint32_t in_row = sizes.cols / step;
    const size_t item = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (item >= static_cast<size_t>(sizes.rows) * in_row) {
        return;
    }
    const size_t row = item / in_row;
    const size_t col = item % in_row * step;
    const size_t narrow = row * sizes.cols + col;
    const size_t wide = row * sizes.wide + sizes.first + col;
    if (aligned) {
        visit8(narrow, wide);
    } else {
        visit1(narrow, wide);
    }
}

template <int N, typename Y, typename X>
__device__ __forceinline__ void add(Y* y, const X* x, float scale) {
    float sum[N];
    float value[N];
    load_f32<N>(sum, y);
    load_f32<N>(value, x);
#pragma unroll
    for (int k = 0; k < N; ++k) {
        sum[k] = fmaf(scale, value[k], sum[k]);
    }
    store_f32<N>(y, sum);
}

template <typename Y, typename X>
__device__ __forceinline__ void add_cols(Y* y, const X* x, ColsSizes sizes) {
    each_column(
        sizes, [=](size_t narrow, size_t wide) { add<8>(y + wide, x + narrow, sizes.scale); },
        [=](size_t narrow, size_t wide) { add<1>(y + wide, x + narrow, sizes.scale); });
}

template <int N, typename T>
__device__ __forceinline__ void copy(T* y, const T* x) {
    float value[N];
    load_f32<N>(value, x);
    store_f32<N>(y, value);
}

template <typename T>
__device__ __forceinline__ void take_cols(T* y, const T* x, ColsSizes sizes) {
    each_column(
        sizes, [=](size_t narrow, size_t wide) { copy<8>(y + narrow, x + wide); },
        [=](size_t narrow, size_t wide) { copy<1>(y + narrow, x + wide); });
}

// add_cols_<y>_<x>: y[r, first + c] += scale * x[r, c], a fused multiply-add in f32, rounded once more where y is bf16.
// y: [rows, wide];  x: [rows, cols].  Geometry: 256 threads a block, a thread for eight elements (one where a length is no
// multiple of 8).  Limit: 2 reads + 1 write of the columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_cols_f32_f32(float* __restrict__ y, const float* __restrict__ x, ColsSizes sizes) {
    add_cols(y, x, sizes);
}
EXPORT_KERNEL(add_cols_f32_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    add_cols_f32_bf16(float* __restrict__ y, const bf16* __restrict__ x, ColsSizes sizes) {
    add_cols(y, x, sizes);
}
EXPORT_KERNEL(add_cols_f32_bf16, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    add_cols_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, ColsSizes sizes) {
    add_cols(y, x, sizes);
}
EXPORT_KERNEL(add_cols_bf16_bf16, THREADS)

// take_cols_<x>: y[r, c] = x[r, first + c].  y: [rows, cols] (=);  x: [rows, wide].  Geometry as above.  Limit: 1 read + 1 write.
extern "C" __global__ void __launch_bounds__(THREADS)
    take_cols_f32(float* __restrict__ y, const float* __restrict__ x, ColsSizes sizes) {
    take_cols(y, x, sizes);
}
EXPORT_KERNEL(take_cols_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    take_cols_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, ColsSizes sizes) {
    take_cols(y, x, sizes);
}
EXPORT_KERNEL(take_cols_bf16, THREADS)
