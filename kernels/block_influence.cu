// Block influence (ShortGPT, arXiv 2403.03853): the cosine between what enters a layer and what leaves it.

#include "pack.cuh"
#include "reduce.cuh"

// Mirrors BlockInfluenceSizes of src/backend/cuda/block_influence.rs.
struct BlockInfluenceSizes {
    uint32_t rows;
    uint32_t hidden;
};
static_assert(sizeof(BlockInfluenceSizes) == 8 && offsetof(BlockInfluenceSizes, hidden) == 4, "layout shared with Rust");

constexpr int THREADS = 128;

// Sums over one row by one warp. Products of f32 are exact in f64.
template <int N>
__device__ __forceinline__ double cosine(const float* before, const float* after, uint32_t hidden) {
    double product = 0.0;
    double squares_before = 0.0;
    double squares_after = 0.0;
    for (uint32_t i = threadIdx.x % WARP * N; i < hidden; i += WARP * N) {
        float a[N];
        float b[N];
        load_f32<N>(a, before + i);
        load_f32<N>(b, after + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const double x = a[k];
            const double y = b[k];
            product += x * y;
            squares_before += x * x;
            squares_after += y * y;
        }
    }
    product = warp_sum(product);
    const double lengths = sqrt(warp_sum(squares_before)) * sqrt(warp_sum(squares_after));
    return lengths == 0.0 ? 0.0 : product / lengths;
}

// block_influence_f32: cosine[r] = before[r] . after[r] / (|before[r]| |after[r]|), 0 where either is the zero vector.
// before, after: [rows, hidden] f32 (the residual stream is always f32);  cosine: [rows] f64 (=). Sums in f64, in an order that
// depends on hidden only.  Geometry: blocks of 128 threads, a warp a row.
// Limit: 2 reads, 8 bytes an element; on cards with few f64 units 3 f64 FMAs an element.
extern "C" __global__ void __launch_bounds__(THREADS)
    block_influence_f32(double* __restrict__ cosines, const float* __restrict__ before, const float* __restrict__ after,
                        BlockInfluenceSizes sizes) {
    const uint32_t row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (row >= sizes.rows) {
        return;
    }
    const size_t start = static_cast<size_t>(row) * sizes.hidden;
    const double value = sizes.hidden % 4 == 0 ? cosine<4>(before + start, after + start, sizes.hidden)
                                               : cosine<1>(before + start, after + start, sizes.hidden);
    if (threadIdx.x % WARP == 0) {
        cosines[row] = value;
    }
}
EXPORT_KERNEL(block_influence_f32, THREADS)
