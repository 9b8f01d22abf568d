// LayerNorm without bias (Ba et al. 2016, arXiv 1607.06450), as Cohere uses it: over rows, and over each head of q and k. Forward.

#include "pack.cuh"
#include "reduce.cuh"

// Mirrors LayerNormSizes of src/backend/cuda/layer_norm.rs.
struct LayerNormSizes {
    uint32_t rows;
    uint32_t hidden;
    float eps;
};
static_assert(sizeof(LayerNormSizes) == 12 && offsetof(LayerNormSizes, eps) == 8, "layout shared with Rust");

// Mirrors HeadNormSizes of src/backend/cuda/layer_norm.rs.
struct HeadNormSizes {
    uint32_t rows;
    uint32_t cols;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t first_col;
    float eps;
};
static_assert(sizeof(HeadNormSizes) == 24 && offsetof(HeadNormSizes, eps) == 20, "layout shared with Rust");

constexpr int THREADS = 128;

// One vector of `size` elements by one warp, N elements a step of each lane: mean, then variance in a second pass (the mean
// of squares minus the square of the mean would lose what the two have in common), then y. y may be x.
template <int N, typename Out, typename In>
__device__ __forceinline__ void layer_norm_vector(Out* y, const In* x, const float* weight, uint32_t size, float eps) {
    const uint32_t lane = threadIdx.x % WARP;
    float sum = 0.0f;
    for (uint32_t i = lane * N; i < size; i += WARP * N) {
        float a[N];
        load_f32<N>(a, x + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            sum += a[k];
        }
    }
    const float mean = warp_sum(sum) / static_cast<float>(size);
    float squares = 0.0f;
    for (uint32_t i = lane * N; i < size; i += WARP * N) {
        float a[N];
        load_f32<N>(a, x + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            squares = fmaf(a[k] - mean, a[k] - mean, squares);
        }
    }
    const float variance = warp_sum(squares) / static_cast<float>(size);
    const float inv_std = 1.0f / sqrtf(variance + eps);
    for (uint32_t i = lane * N; i < size; i += WARP * N) {
        float a[N];
        float w[N];
        load_f32<N>(a, x + i);
        load_f32<N>(w, weight + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            a[k] = (a[k] - mean) * inv_std * w[k];
        }
        store_f32<N>(y + i, a);
    }
}

template <typename Out, typename In>
__device__ __forceinline__ void layer_norm(Out* y, const In* x, const float* weight, LayerNormSizes sizes) {
    const uint32_t row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (row >= sizes.rows) {
        return;
    }
    const size_t start = static_cast<size_t>(row) * sizes.hidden;
    if (sizes.hidden % 8 == 0) {
        layer_norm_vector<8>(y + start, x + start, weight, sizes.hidden, sizes.eps);
    } else {
        layer_norm_vector<1>(y + start, x + start, weight, sizes.hidden, sizes.eps);
    }
}

// A warp a head of a row; heads of one row lie side by side.
template <typename T>
__device__ __forceinline__ void head_norm(T* x, const float* weight, HeadNormSizes sizes) {
    const size_t item = static_cast<size_t>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    if (item >= static_cast<size_t>(sizes.rows) * sizes.heads) {
        return;
    }
    const size_t row = item / sizes.heads;
    const uint32_t first = static_cast<uint32_t>(item % sizes.heads) * sizes.head_dim;
    T* head = x + row * sizes.cols + sizes.first_col + first;
    if (sizes.head_dim % 8 == 0 && sizes.cols % 8 == 0 && sizes.first_col % 8 == 0) {
        layer_norm_vector<8>(head, head, weight + first, sizes.head_dim, sizes.eps);
    } else {
        layer_norm_vector<1>(head, head, weight + first, sizes.head_dim, sizes.eps);
    }
}

// layer_norm_<y>_<x>: y = (x - mean) / sqrt(variance + eps) * weight per row.  x, y: [rows, hidden];  weight: [hidden] f32.
// y is written (=), rounded once. Sums in f32, in an order that depends on hidden only.
// Geometry: blocks of 128 threads, four rows each; no shared memory.
// Limit: 1 read (the later two lie in L1) + 1 write, 6 bytes an element from f32 to bf16; [16384, 4096] at 4.3 TB/s: 94 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_f32_f32(float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ weight, LayerNormSizes sizes) {
    layer_norm(y, x, weight, sizes);
}
EXPORT_KERNEL(layer_norm_f32_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_bf16_f32(bf16* __restrict__ y, const float* __restrict__ x, const float* __restrict__ weight, LayerNormSizes sizes) {
    layer_norm(y, x, weight, sizes);
}
EXPORT_KERNEL(layer_norm_bf16_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const float* __restrict__ weight, LayerNormSizes sizes) {
    layer_norm(y, x, weight, sizes);
}
EXPORT_KERNEL(layer_norm_bf16_bf16, THREADS)

// head_norm_<x>: the same over each head of columns first_col .. first_col + heads * head_dim of x [rows, cols], in place;
// weight: [heads, head_dim] f32.  Geometry: blocks of 128 threads, four heads each.
// Limit: 1 read + 1 write of those columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    head_norm_f32(float* __restrict__ x, const float* __restrict__ weight, HeadNormSizes sizes) {
    head_norm(x, weight, sizes);
}
EXPORT_KERNEL(head_norm_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    head_norm_bf16(bf16* __restrict__ x, const float* __restrict__ weight, HeadNormSizes sizes) {
    head_norm(x, weight, sizes);
}
EXPORT_KERNEL(head_norm_bf16, THREADS)
