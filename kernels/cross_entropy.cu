// Cross-entropy and Kullback-Leibler divergence of the softmax over the vocabulary, chunk by chunk: the logits of some thousand
// token ids are computed (linear.cu), looked at here, and overwritten by those of the next. They never exist as a whole.
//
// With logits l = logit_scale * x head^T and r the same for the reference:
//   lse(l) = ln(sum over n of e^l[n]);  nll = lse(l) - l[target]
//   kl = (sum over n of e^r[n] (r[n] - l[n])) / (sum over n of e^r[n]) - lse(r) + lse(l)
// A chunk's sums are f32 relative to its largest logit; chunks are put together in f64, in the order of the vocabulary.

#include "pack.cuh"
#include "reduce.cuh"

// Mirrors CrossEntropySizes of src/backend/cuda/cross_entropy.rs.
struct CrossEntropySizes {
    // Token ids in this chunk, the distance between rows of logits too.
    uint32_t chunk;
    // The first of them.
    uint32_t first;
    float logit_scale;
};
static_assert(sizeof(CrossEntropySizes) == 12 && offsetof(CrossEntropySizes, logit_scale) == 8, "layout shared with Rust");

// Mirrors LossSizes of src/backend/cuda/cross_entropy.rs.
struct LossSizes {
    uint32_t rows;
};

constexpr int THREADS = 256;

// What is known of a row after some chunks: SOFTMAX doubles. With a reference as many for it, and the difference.
constexpr int MAX = 0;
constexpr int SUM = 1;
constexpr int TARGET = 2;
constexpr int REFERENCE_MAX = 3;
constexpr int REFERENCE_SUM = 4;
constexpr int DIFFERENCE = 5;
constexpr int STATE = 6;

__device__ __forceinline__ float chunk_max(const float* logits, CrossEntropySizes sizes, float* partial) {
    float max = -INFINITY;
    for (uint32_t n = threadIdx.x; n < sizes.chunk; n += THREADS) {
        max = fmaxf(max, sizes.logit_scale * logits[n]);
    }
    return block_max<THREADS>(max, partial);
}

__device__ __forceinline__ float chunk_sum(const float* logits, float max, CrossEntropySizes sizes, float* partial) {
    float sum = 0.0f;
    for (uint32_t n = threadIdx.x; n < sizes.chunk; n += THREADS) {
        sum += expf(sizes.logit_scale * logits[n] - max);
    }
    return block_sum<THREADS>(sum, partial);
}

// Adds a chunk to (largest, sum relative to it), and to a second sum with the same weights. In the first chunk the state is not read.
__device__ __forceinline__ void merge(double* max, double* sum, double* other, float chunk_max, float chunk_sum, float chunk_other,
                                      bool first) {
    const double old_max = first ? static_cast<double>(chunk_max) : *max;
    const double new_max = fmax(old_max, static_cast<double>(chunk_max));
    const double old_weight = first ? 0.0 : exp(old_max - new_max);
    const double chunk_weight = exp(static_cast<double>(chunk_max) - new_max);
    *max = new_max;
    *sum = (first ? 0.0 : *sum * old_weight) + static_cast<double>(chunk_sum) * chunk_weight;
    if (other != nullptr) {
        *other = (first ? 0.0 : *other * old_weight) + static_cast<double>(chunk_other) * chunk_weight;
    }
}

// cross_entropy_chunk: logits: [rows, chunk] f32, before logit_scale;  targets: [rows];  state: [rows, 6] f64, written in the first
// chunk (first = 0) and updated (+=) after.  Geometry: a block of 256 threads a row.
// Limit: two reads of the logits, which lie in L2.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_chunk(double* __restrict__ state, const float* __restrict__ logits, const uint32_t* __restrict__ targets,
                        CrossEntropySizes sizes) {
    SHARED_ARRAY(float, maxima, THREADS / WARP);
    SHARED_ARRAY(float, sums, THREADS / WARP);
    const size_t row = blockIdx.x;
    const float* l = logits + row * sizes.chunk;
    const float max = chunk_max(l, sizes, maxima);
    const float sum = chunk_sum(l, max, sizes, sums);
    if (threadIdx.x == 0) {
        double* of_row = state + row * STATE;
        merge(of_row + MAX, of_row + SUM, nullptr, max, sum, 0.0f, sizes.first == 0);
        const uint32_t target = targets[row] - sizes.first;
        if (target < sizes.chunk) {
            of_row[TARGET] = static_cast<double>(sizes.logit_scale * l[target]);
        }
    }
}
EXPORT_KERNEL(cross_entropy_chunk, THREADS)

// divergence_chunk: the reference's part of the state: its softmax, and its mean of r - l.  reference, logits: [rows, chunk] f32.
// Geometry: a block of 256 threads a row.  Limit: three reads of the logits, which lie in L2.
extern "C" __global__ void __launch_bounds__(THREADS)
    divergence_chunk(double* __restrict__ state, const float* __restrict__ reference, const float* __restrict__ logits,
                     CrossEntropySizes sizes) {
    SHARED_ARRAY(float, maxima, THREADS / WARP);
    SHARED_ARRAY(float, sums, THREADS / WARP);
    SHARED_ARRAY(float, differences, THREADS / WARP);
    const size_t row = blockIdx.x;
    const float* r = reference + row * sizes.chunk;
    const float* l = logits + row * sizes.chunk;
    const float max = chunk_max(r, sizes, maxima);
    const float sum = chunk_sum(r, max, sizes, sums);
    float difference = 0.0f;
    for (uint32_t n = threadIdx.x; n < sizes.chunk; n += THREADS) {
        const float scaled = sizes.logit_scale * r[n];
        difference = fmaf(expf(scaled - max), scaled - sizes.logit_scale * l[n], difference);
    }
    difference = block_sum<THREADS>(difference, differences);
    if (threadIdx.x == 0) {
        double* of_row = state + row * STATE;
        merge(of_row + REFERENCE_MAX, of_row + REFERENCE_SUM, of_row + DIFFERENCE, max, sum, difference, sizes.first == 0);
    }
}
EXPORT_KERNEL(divergence_chunk, THREADS)

// cross_entropy_loss: nll[r] = lse(l) - l[target].  state: [rows, 6];  nll: [rows] f32 (=).  Geometry: a thread a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_loss(float* __restrict__ nll, const double* __restrict__ state, LossSizes sizes) {
    const size_t row = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (row < sizes.rows) {
        const double* s = state + row * STATE;
        nll[row] = static_cast<float>(s[MAX] + log(s[SUM]) - s[TARGET]);
    }
}
EXPORT_KERNEL(cross_entropy_loss, THREADS)

// divergence_loss: kl[r] as above.  state: [rows, 6];  kl: [rows] f32 (=).  Geometry: a thread a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    divergence_loss(float* __restrict__ kl, const double* __restrict__ state, LossSizes sizes) {
    const size_t row = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (row < sizes.rows) {
        const double* s = state + row * STATE;
        const double log_sum = s[MAX] + log(s[SUM]);
        const double reference_log_sum = s[REFERENCE_MAX] + log(s[REFERENCE_SUM]);
        kl[row] = static_cast<float>(s[DIFFERENCE] / s[REFERENCE_SUM] - reference_log_sum + log_sum);
    }
}
EXPORT_KERNEL(divergence_loss, THREADS)
