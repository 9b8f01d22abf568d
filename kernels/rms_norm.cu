// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), as Llama and Qwen2 use it. Forward and backward.

#include "warp_rows.cuh"

// Mirrors RmsNormSizes of src/backend/cuda/rms_norm.rs, which asserts the same layout.
struct RmsNormSizes {
    uint32_t rows;
    uint32_t hidden;
    float eps;
};
static_assert(sizeof(RmsNormSizes) == 12 && offsetof(RmsNormSizes, eps) == 8, "layout shared with Rust");

// One row by one warp, N elements a step of each lane. The row is read twice; the second time it lies in L1, 32 KiB of it at
// most for the widest models.
template <int N, typename Out, typename In>
__device__ __forceinline__ void rms_norm_row(Out* y, const In* x, const float* weight, RmsNormSizes sizes) {
    const uint32_t lane = threadIdx.x % WARP;
    float squares = 0.0f;
    for (uint32_t i = lane * N; i < sizes.hidden; i += WARP * N) {
        float a[N];
        load_f32<N>(a, x + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            squares = fmaf(a[k], a[k], squares);
        }
    }
    const float mean = warp_sum(squares) / static_cast<float>(sizes.hidden);
    const float inv_rms = 1.0f / sqrtf(mean + sizes.eps);
    for (uint32_t i = lane * N; i < sizes.hidden; i += WARP * N) {
        float a[N];
        float w[N];
        load_f32<N>(a, x + i);
        load_f32<N>(w, weight + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            a[k] = a[k] * inv_rms * w[k];
        }
        store_f32<N>(y + i, a);
    }
}

template <typename Out, typename In>
__device__ __forceinline__ void rms_norm(Out* y, const In* x, const float* weight, RmsNormSizes sizes) {
    own_row(sizes.rows, sizes.hidden, [=](auto width, size_t, size_t start) {
        rms_norm_row<decltype(width)::value>(y + start, x + start, weight, sizes);
    });
}

// rms_norm_<y>_<x>: y = x * inv_rms * weight, inv_rms = 1 / sqrt(mean(x^2) + eps) per row.  x, y: [rows, hidden];  weight: [hidden] f32.
// y is written (=), rounded once from f32. Sums in f32, in an order that depends on hidden only: a row's bits do not depend on its batch.
// Geometry: blocks of 128 threads, four rows each; no shared memory.  Any hidden >= 1; a multiple of 8 is read 16 bytes at a time.
// Limit: 1 read + 1 write, 6 bytes an element from f32 to bf16; [16384, 4096] on a card that copies at 4.3 TB/s: 94 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_f32_f32(float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ weight, RmsNormSizes sizes) {
    rms_norm(y, x, weight, sizes);
}
EXPORT_KERNEL(rms_norm_f32_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_bf16_f32(bf16* __restrict__ y, const float* __restrict__ x, const float* __restrict__ weight, RmsNormSizes sizes) {
    rms_norm(y, x, weight, sizes);
}
EXPORT_KERNEL(rms_norm_bf16_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const float* __restrict__ weight, RmsNormSizes sizes) {
    rms_norm(y, x, weight, sizes);
}
EXPORT_KERNEL(rms_norm_bf16_bf16, THREADS)

// d_x of one row by one warp, and its inv_rms for d_weight.
template <int N>
__device__ __forceinline__ void rms_norm_backward_row(float* d_x, float* inv_rms_of_row, const float* x, const float* weight,
                                                      const float* d_y, RmsNormSizes sizes) {
    const uint32_t lane = threadIdx.x % WARP;
    float squares = 0.0f;
    float products = 0.0f;
    for (uint32_t i = lane * N; i < sizes.hidden; i += WARP * N) {
        float a[N];
        float w[N];
        float d[N];
        load_f32<N>(a, x + i);
        load_f32<N>(w, weight + i);
        load_f32<N>(d, d_y + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            squares = fmaf(a[k], a[k], squares);
            products = fmaf(d[k] * w[k], a[k], products);
        }
    }
    const float mean = warp_sum(squares) / static_cast<float>(sizes.hidden);
    const float inv_rms = 1.0f / sqrtf(mean + sizes.eps);
    const float pull = warp_sum(products) / static_cast<float>(sizes.hidden) * inv_rms * inv_rms;
    if (lane == 0) {
        *inv_rms_of_row = inv_rms;
    }
    for (uint32_t i = lane * N; i < sizes.hidden; i += WARP * N) {
        float a[N];
        float w[N];
        float d[N];
        float sum[N];
        load_f32<N>(a, x + i);
        load_f32<N>(w, weight + i);
        load_f32<N>(d, d_y + i);
        load_f32<N>(sum, d_x + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            sum[k] += inv_rms * (w[k] * d[k] - a[k] * pull);
        }
        store_f32<N>(d_x + i, sum);
    }
}

// rms_norm_backward: d_x += inv_rms * (w d_y - x inv_rms^2 mean(w d_y x)) per row, and inv_rms for the kernel below.
// x, d_y, d_x: [rows, hidden] f32;  weight: [hidden] f32;  inv_rms: [rows] f32 (=).  Sums in f32, in an order that depends on
// hidden only.  Geometry: blocks of 128 threads, four rows each.
// Limit: 3 reads + 1 write (the second read of a row lies in L1), 16 bytes an element; [16384, 4096] at 4.3 TB/s: 250 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_backward(float* __restrict__ d_x, float* __restrict__ inv_rms, const float* __restrict__ x,
                      const float* __restrict__ weight, const float* __restrict__ d_y, RmsNormSizes sizes) {
    own_row(sizes.rows, sizes.hidden, [=](auto width, size_t row, size_t start) {
        rms_norm_backward_row<decltype(width)::value>(d_x + start, inv_rms + row, x + start, weight, d_y + start, sizes);
    });
}
EXPORT_KERNEL(rms_norm_backward, THREADS)

// rms_norm_backward_weight: d_weight += sum over rows of d_y x inv_rms.  x, d_y: [rows, hidden] f32;  inv_rms: [rows] f32, from
// the kernel above;  d_weight: [hidden] f32.  Sums in f32, in the order of sum_columns.
// Geometry: a block of COLUMN_THREADS for 32 columns.  Limit: 2 reads, 8 bytes an element.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    rms_norm_backward_weight(float* __restrict__ d_weight, const float* __restrict__ x, const float* __restrict__ d_y,
                             const float* __restrict__ inv_rms, RmsNormSizes sizes) {
    SHARED_ARRAY(float, partial, COLUMN_THREADS);
    sum_columns(
        partial, sizes.rows, sizes.hidden,
        [=](uint32_t row, uint32_t col) {
            const size_t at = static_cast<size_t>(row) * sizes.hidden + col;
            return d_y[at] * (x[at] * inv_rms[row]);
        },
        [=](uint32_t col, float sum) { d_weight[col] += sum; });
}
EXPORT_KERNEL(rms_norm_backward_weight, COLUMN_THREADS)
