// AdamW (Loshchilov and Hutter, arXiv 1711.05101), and the squared norm that clipping needs.

#include "pack.cuh"
#include "reduce.cuh"

// Mirrors AdamwSizes of src/backend/cuda/adamw.rs; the factors are those of ops::adamw::Coefficients.
struct AdamwSizes {
    uint32_t rows;
    uint32_t cols;
    // 1 - lr * weight_decay.
    float keep;
    // 1 - beta1.
    float lerp;
    float beta2;
    // 1 - beta2.
    float rest2;
    // sqrt(1 - beta2^step).
    float root;
    float eps;
    // lr / (1 - beta1^step).
    float rate;
    // Factor on the gradient.
    float scale;
};
static_assert(sizeof(AdamwSizes) == 40 && offsetof(AdamwSizes, scale) == 36, "layout shared with Rust");

// Mirrors SquaredNormSizes of src/backend/cuda/adamw.rs.
struct SquaredNormSizes {
    uint32_t rows;
    uint32_t cols;
};

constexpr int THREADS = 256;
constexpr int STEP = 4;
// Elements whose squares one block adds up.
constexpr int NORM_CHUNK = 1 << 16;

// Each operation is rounded by itself, as on the CPU: a compiler that fused a product with a sum would give other bits.
template <int N>
__device__ __forceinline__ void update(float* value, const float* grad, float* first, float* second, AdamwSizes by) {
    float v[N];
    float g[N];
    float m[N];
    float s[N];
    load_f32<N>(v, value);
    load_f32<N>(g, grad);
    load_f32<N>(m, first);
    load_f32<N>(s, second);
#pragma unroll
    for (int k = 0; k < N; ++k) {
        g[k] = __fmul_rn(g[k], by.scale);
        m[k] = __fadd_rn(m[k], __fmul_rn(by.lerp, __fadd_rn(g[k], -m[k])));
        s[k] = __fadd_rn(__fmul_rn(s[k], by.beta2), __fmul_rn(__fmul_rn(by.rest2, g[k]), g[k]));
        const float denominator = __fadd_rn(sqrtf(s[k]) / by.root, by.eps);
        v[k] = __fadd_rn(__fmul_rn(v[k], by.keep), -(__fmul_rn(by.rate, m[k]) / denominator));
    }
    store_f32<N>(value, v);
    store_f32<N>(first, m);
    store_f32<N>(second, s);
}

// adamw: g = scale * grad; first += lerp (g - first); second = beta2 second + rest2 g^2;
// value = keep value - rate first / (sqrt(second) / root + eps).  All tensors [rows, cols] f32; value, first, second updated.
// Geometry: 256 threads a block, a thread for four elements.  Limit: 4 reads + 3 writes, 28 bytes an element; 10^9 at 4.3 TB/s: 6.5 ms.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(float* __restrict__ value, float* __restrict__ first, float* __restrict__ second, const float* __restrict__ grad,
          AdamwSizes sizes) {
    const size_t count = static_cast<size_t>(sizes.rows) * sizes.cols;
    const size_t start = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * STEP;
    if (start + STEP <= count) {
        update<STEP>(value + start, grad + start, first + start, second + start, sizes);
    } else {
        for (size_t i = start; i < count; ++i) {
            update<1>(value + i, grad + i, first + i, second + i, sizes);
        }
    }
}
EXPORT_KERNEL(adamw, THREADS)

// squared_norm: sums[b] = sum of the squares of elements b * 65536 .. of x, in f64.  x: [rows, cols] f32;  sums: [chunks] f64 (=).
// One order of additions: a thread's elements, a warp's threads, a block's warps; the caller adds the chunks in theirs.
// Geometry: a block of 256 threads a chunk.  Limit: 1 read.
extern "C" __global__ void __launch_bounds__(THREADS)
    squared_norm(double* __restrict__ sums, const float* __restrict__ x, SquaredNormSizes sizes) {
    SHARED_ARRAY(double, partial, THREADS / WARP);
    const size_t count = static_cast<size_t>(sizes.rows) * sizes.cols;
    const size_t start = static_cast<size_t>(blockIdx.x) * NORM_CHUNK;
    const size_t end = min(count, start + NORM_CHUNK);
    double sum = 0.0;
    for (size_t i = start + threadIdx.x; i < end; i += THREADS) {
        const double value = static_cast<double>(x[i]);
        sum += value * value;
    }
    sum = block_sum<THREADS>(sum, partial);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
    }
}
EXPORT_KERNEL(squared_norm, THREADS)
