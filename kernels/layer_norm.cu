// LayerNorm without bias (Ba et al. 2016, arXiv 1607.06450), as Cohere uses it: over rows, and over each head of q and k. Forward
// and backward.

#include "warp_rows.cuh"

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

struct Statistics {
    float mean;
    float inv_std;
};

// Of one vector of `size` elements by one warp, N elements a step of each lane: mean, then variance in a second pass (the mean
// of squares minus the square of the mean would lose what the two have in common).
template <int N, typename T>
__device__ __forceinline__ Statistics statistics(const T* x, uint32_t size, float eps) {
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
    return {mean, 1.0f / sqrtf(variance + eps)};
}

// y of one vector by one warp. y may be x.
template <int N, typename Out, typename In>
__device__ __forceinline__ void layer_norm_vector(Out* y, const In* x, const float* weight, uint32_t size, float eps) {
    const Statistics of = statistics<N>(x, size, eps);
    for (uint32_t i = threadIdx.x % WARP * N; i < size; i += WARP * N) {
        float a[N];
        float w[N];
        load_f32<N>(a, x + i);
        load_f32<N>(w, weight + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            a[k] = (a[k] - of.mean) * of.inv_std * w[k];
        }
        store_f32<N>(y + i, a);
    }
}

template <typename Out, typename In>
__device__ __forceinline__ void layer_norm(Out* y, const In* x, const float* weight, LayerNormSizes sizes) {
    own_row(sizes.rows, sizes.hidden, [=](auto width, size_t, size_t start) {
        layer_norm_vector<decltype(width)::value>(y + start, x + start, weight, sizes.hidden, sizes.eps);
    });
}

// A warp a head of a row; heads of one row lie side by side. visit(width, item, head, first) as for own_row, with the head's number
// among all rows', its first element in x and its first element in weight.
template <typename Visit>
__device__ __forceinline__ void own_head(HeadNormSizes sizes, Visit visit) {
    const size_t item = own_vector();
    if (item >= static_cast<size_t>(sizes.rows) * sizes.heads) {
        return;
    }
    const size_t row = item / sizes.heads;
    const uint32_t first = static_cast<uint32_t>(item % sizes.heads) * sizes.head_dim;
    const size_t head = row * sizes.cols + sizes.first_col + first;
    if (sizes.head_dim % 8 == 0 && sizes.cols % 8 == 0 && sizes.first_col % 8 == 0) {
        visit(Width<8>(), item, head, first);
    } else {
        visit(Width<1>(), item, head, first);
    }
}

template <typename T>
__device__ __forceinline__ void head_norm(T* x, const float* weight, HeadNormSizes sizes) {
    own_head(sizes, [=](auto width, size_t, size_t head, uint32_t first) {
        layer_norm_vector<decltype(width)::value>(x + head, x + head, weight + first, sizes.head_dim, sizes.eps);
    });
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

// ---- Backward: with n = (x - mean) inv_std and g = w d_y, d_x = inv_std (g - mean(g) - n mean(g n)).

// d = or += d_x of one vector by one warp. d may be d_y.
template <int N, bool ADD, typename T>
__device__ __forceinline__ void layer_norm_backward_vector(T* d, const T* x, const float* weight, const T* d_y, Statistics of,
                                                           uint32_t size) {
    const uint32_t lane = threadIdx.x % WARP;
    float sum = 0.0f;
    float products = 0.0f;
    for (uint32_t i = lane * N; i < size; i += WARP * N) {
        float a[N];
        float w[N];
        float g[N];
        load_f32<N>(a, x + i);
        load_f32<N>(w, weight + i);
        load_f32<N>(g, d_y + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            g[k] *= w[k];
            sum += g[k];
            products = fmaf(g[k], (a[k] - of.mean) * of.inv_std, products);
        }
    }
    const float mean_g = warp_sum(sum) / static_cast<float>(size);
    const float mean_gn = warp_sum(products) / static_cast<float>(size);
    for (uint32_t i = lane * N; i < size; i += WARP * N) {
        float a[N];
        float w[N];
        float g[N];
        load_f32<N>(a, x + i);
        load_f32<N>(w, weight + i);
        load_f32<N>(g, d_y + i);
        float old[N] = {};
        if constexpr (ADD) {
            load_f32<N>(old, d + i);
        }
#pragma unroll
        for (int k = 0; k < N; ++k) {
            old[k] += of.inv_std * (w[k] * g[k] - mean_g - (a[k] - of.mean) * of.inv_std * mean_gn);
        }
        store_f32<N>(d + i, old);
    }
}

template <int N>
__device__ __forceinline__ void layer_norm_backward_row(float* d_x, float* kept, const float* x, const float* weight,
                                                        const float* d_y, LayerNormSizes sizes) {
    const Statistics of = statistics<N>(x, sizes.hidden, sizes.eps);
    if (threadIdx.x % WARP == 0) {
        kept[0] = of.mean;
        kept[1] = of.inv_std;
    }
    layer_norm_backward_vector<N, true>(d_x, x, weight, d_y, of, sizes.hidden);
}

// layer_norm_backward: d_x += that of each row, and (mean, inv_std) for layer_norm_backward_weight.  x, d_y, d_x: [rows, hidden]
// f32;  weight: [hidden] f32;  kept: [rows, 2] f32 (=).  Sums in f32, in an order that depends on hidden only.
// Geometry: blocks of 128 threads, four rows each.
// Limit: 3 reads (further ones of a row lie in L1) + 1 write, 16 bytes an element; [16384, 4096] at 4.3 TB/s: 250 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_backward(float* __restrict__ d_x, float* __restrict__ kept, const float* __restrict__ x,
                        const float* __restrict__ weight, const float* __restrict__ d_y, LayerNormSizes sizes) {
    own_row(sizes.rows, sizes.hidden, [=](auto width, size_t row, size_t start) {
        layer_norm_backward_row<decltype(width)::value>(d_x + start, kept + 2 * row, x + start, weight, d_y + start, sizes);
    });
}
EXPORT_KERNEL(layer_norm_backward, THREADS)

// d_weight += sum over rows of d_y n, for `heads` vectors of `head_dim` elements a row; kept: [rows, heads, 2] f32.
template <typename T>
__device__ __forceinline__ void norm_backward_weight(float* partial, float* d_weight, const T* x, const T* d_y, const float* kept,
                                                     HeadNormSizes sizes) {
    sum_columns(
        partial, sizes.rows, sizes.heads * sizes.head_dim,
        [=](uint32_t row, uint32_t col) {
            const size_t at = static_cast<size_t>(row) * sizes.cols + sizes.first_col + col;
            const float* of = kept + 2 * (static_cast<size_t>(row) * sizes.heads + col / sizes.head_dim);
            return to_f32(d_y[at]) * ((to_f32(x[at]) - of[0]) * of[1]);
        },
        [=](uint32_t col, float sum) { d_weight[col] += sum; });
}

// layer_norm_backward_weight: d_weight += sum over rows of d_y n.  x, d_y: [rows, hidden] f32;  kept: [rows, 2] f32, from the kernel
// above;  d_weight: [hidden] f32.  Sums in f32, in the order of sum_columns.
// Geometry: a block of COLUMN_THREADS for 32 columns.  Limit: 2 reads, 8 bytes an element.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    layer_norm_backward_weight(float* __restrict__ d_weight, const float* __restrict__ x, const float* __restrict__ d_y,
                               const float* __restrict__ kept, LayerNormSizes sizes) {
    SHARED_ARRAY(float, partial, COLUMN_THREADS);
    norm_backward_weight(partial, d_weight, x, d_y, kept, {sizes.rows, sizes.hidden, 1, sizes.hidden, 0, sizes.eps});
}
EXPORT_KERNEL(layer_norm_backward_weight, COLUMN_THREADS)

template <int N, typename T>
__device__ __forceinline__ void head_statistics(float* kept, const T* head, HeadNormSizes sizes) {
    const Statistics of = statistics<N>(head, sizes.head_dim, sizes.eps);
    if (threadIdx.x % WARP == 0) {
        kept[0] = of.mean;
        kept[1] = of.inv_std;
    }
}

template <typename T>
__device__ __forceinline__ void statistics_of_heads(float* kept, const T* x, HeadNormSizes sizes) {
    own_head(sizes, [=](auto width, size_t item, size_t head, uint32_t) {
        head_statistics<decltype(width)::value>(kept + 2 * item, x + head, sizes);
    });
}

template <typename T>
__device__ __forceinline__ void head_norm_backward(T* d, const T* x, const float* weight, HeadNormSizes sizes) {
    own_head(sizes, [=](auto width, size_t, size_t head, uint32_t first) {
        constexpr int N = decltype(width)::value;
        const Statistics of = statistics<N>(x + head, sizes.head_dim, sizes.eps);
        layer_norm_backward_vector<N, false>(d + head, x + head, weight + first, d + head, of, sizes.head_dim);
    });
}

// head_norm_statistics_<x>: (mean, inv_std) of each head of columns first_col .. first_col + heads * head_dim of x [rows, cols].
// kept: [rows, heads, 2] f32 (=).  Geometry: blocks of 128 threads, four heads each.  Limit: 1 read of those columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    head_norm_statistics_f32(float* __restrict__ kept, const float* __restrict__ x, HeadNormSizes sizes) {
    statistics_of_heads(kept, x, sizes);
}
EXPORT_KERNEL(head_norm_statistics_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    head_norm_statistics_bf16(float* __restrict__ kept, const bf16* __restrict__ x, HeadNormSizes sizes) {
    statistics_of_heads(kept, x, sizes);
}
EXPORT_KERNEL(head_norm_statistics_bf16, THREADS)

// head_norm_backward_weight_<x>: d_weight += sum over rows of d_y n.  d_y, x: [rows, cols];  kept: from the kernel above;  d_weight:
// [heads, head_dim] f32.  Geometry and order of sums as layer_norm_backward_weight.  Limit: 2 reads of those columns.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    head_norm_backward_weight_f32(float* __restrict__ d_weight, const float* __restrict__ x, const float* __restrict__ d_y,
                                  const float* __restrict__ kept, HeadNormSizes sizes) {
    SHARED_ARRAY(float, partial, COLUMN_THREADS);
    norm_backward_weight(partial, d_weight, x, d_y, kept, sizes);
}
EXPORT_KERNEL(head_norm_backward_weight_f32, COLUMN_THREADS)

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    head_norm_backward_weight_bf16(float* __restrict__ d_weight, const bf16* __restrict__ x, const bf16* __restrict__ d_y,
                                   const float* __restrict__ kept, HeadNormSizes sizes) {
    SHARED_ARRAY(float, partial, COLUMN_THREADS);
    norm_backward_weight(partial, d_weight, x, d_y, kept, sizes);
}
EXPORT_KERNEL(head_norm_backward_weight_bf16, COLUMN_THREADS)

// head_norm_backward_<x>: those columns of d [rows, cols] hold d_y and become d_x, in place.  x: [rows, cols];  weight: [heads,
// head_dim] f32.  Geometry: blocks of 128 threads, four heads each.  Limit: 2 reads + 1 write of those columns.
// Ten blocks a multiprocessor: ptxas would aim at twelve on some GPUs, and spill.
extern "C" __global__ void __launch_bounds__(THREADS, 10)
    head_norm_backward_f32(float* __restrict__ d, const float* __restrict__ x, const float* __restrict__ weight, HeadNormSizes sizes) {
    head_norm_backward(d, x, weight, sizes);
}
EXPORT_KERNEL(head_norm_backward_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    head_norm_backward_bf16(bf16* __restrict__ d, const bf16* __restrict__ x, const float* __restrict__ weight, HeadNormSizes sizes) {
    head_norm_backward(d, x, weight, sizes);
}
EXPORT_KERNEL(head_norm_backward_bf16, THREADS)
