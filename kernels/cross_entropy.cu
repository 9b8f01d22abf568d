// Cross-entropy and Kullback-Leibler divergence of the softmax over the vocabulary, chunk by chunk: the logits of some thousand
// token ids are computed (linear.cu), looked at here, and overwritten by those of the next. They never exist as a whole. The
// gradient needs a row's logits at once: then rows come in groups.
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

// Largest of scale * logits, over `count` of them.
__device__ __forceinline__ float chunk_max(const float* logits, float scale, uint32_t count, float* partial) {
    float max = -INFINITY;
    for (uint32_t n = threadIdx.x; n < count; n += THREADS) {
        max = fmaxf(max, scale * logits[n]);
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
    const float max = chunk_max(l, sizes.logit_scale, sizes.chunk, maxima);
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
    const float max = chunk_max(r, sizes.logit_scale, sizes.chunk, maxima);
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

// ---- Backward: a group of rows has all its logits, and gets their gradient.
//
// With l = logit_scale * x head^T, t the teacher's logits, T the temperature, m the mix, p = softmax(t / T), q = softmax(l / T):
//   nll = lse(l) - l[target];  kl = sum of p (ln p - ln q)
//   d_logit[n] = scale logit_scale ((1 - m) (softmax(l)[n] - (n == target)) + m T (q[n] - p[n]))
// A thread's sums are f32, those of a block f64.

// Mirrors GradientSizes of src/backend/cuda/cross_entropy_backward.rs.
struct GradientSizes {
    // Columns of the logits, and the distance between their rows.
    uint32_t vocab;
    // The distance between rows of the gradient.
    uint32_t stride;
    // Tokens that the teacher names, where it names some.
    uint32_t k;
    float logit_scale;
    // The teacher's logit_scale.
    float teacher_scale;
    // Factor on the sum of all rows' losses.
    float scale;
    float temperature;
    float mix;
};
static_assert(sizeof(GradientSizes) == 32 && offsetof(GradientSizes, mix) == 28, "layout shared with Rust");

// Shared memory for sums and maxima of a block.
struct Partial {
    float* maxima;
    double* sums;
};

// The softmax of scale * x at 1 and, where asked for, at a temperature of 1 / inverse.
struct Softmax {
    float max;
    double sum;
    double tempered;
};

__device__ __forceinline__ double sum_of_block(double value, const Partial& partial) {
    // Nobody still reads the sums before.
    __syncthreads();
    return block_sum<THREADS>(value, partial.sums);
}

__device__ __forceinline__ Softmax softmax(const float* x, float scale, float inverse, uint32_t count, const Partial& partial) {
    __syncthreads();
    const float max = chunk_max(x, scale, count, partial.maxima);
    float sum = 0.0f;
    float tempered = 0.0f;
    for (uint32_t n = threadIdx.x; n < count; n += THREADS) {
        const float from_max = scale * x[n] - max;
        sum += expf(from_max);
        tempered += expf(from_max * inverse);
    }
    return {max, sum_of_block(sum, partial), sum_of_block(tempered, partial)};
}

// What a row's gradient is made of without a teacher's part: own e^(l - max) + soft e^((l - max) / T) - (n == target ? hard : 0).
struct Student {
    const float* logits;
    float logit_scale;
    float max;
    float inverse;
    float own;
    float soft;
    float hard;
    uint32_t target;

    __device__ __forceinline__ float logit(uint32_t n) const { return logit_scale * logits[n]; }
    __device__ __forceinline__ float value(uint32_t n) const {
        const float from_max = logit(n) - max;
        const float both = fmaf(soft, expf(from_max * inverse), own * expf(from_max));
        return n == target ? both - hard : both;
    }
};

__device__ __forceinline__ Student student_of(const float* logits, const Softmax& of, uint32_t target, GradientSizes sizes) {
    const float out = sizes.scale * sizes.logit_scale;
    const float hard = out * (1.0f - sizes.mix);
    const float soft = out * sizes.mix * sizes.temperature;
    return {logits,
            sizes.logit_scale,
            of.max,
            1.0f / sizes.temperature,
            static_cast<float>(static_cast<double>(hard) / of.sum),
            static_cast<float>(static_cast<double>(soft) / of.tempered),
            hard,
            target};
}

// Writes value(n) for each token id, and zeros behind the last.
template <typename Out, typename Value>
__device__ __forceinline__ void write_gradient(Out* d, GradientSizes sizes, Value value) {
    for (uint32_t n = threadIdx.x; n < sizes.stride; n += THREADS) {
        d[n] = from_f32<Out>(n < sizes.vocab ? value(n) : 0.0f);
    }
}

__device__ __forceinline__ void write_nll(float* nll, const Softmax& of, const Student& student) {
    if (threadIdx.x == 0) {
        nll[blockIdx.x] = static_cast<float>(static_cast<double>(of.max) + log(of.sum) -
                                             static_cast<double>(student.logit(student.target)));
    }
}

template <typename Out>
__device__ __forceinline__ void gradient(const Partial& partial, Out* d, float* nll, const float* logits, const uint32_t* targets,
                                         GradientSizes sizes) {
    const size_t row = blockIdx.x;
    const float* l = logits + row * sizes.vocab;
    const Softmax of = softmax(l, sizes.logit_scale, 1.0f, sizes.vocab, partial);
    const Student student = student_of(l, of, targets[row], sizes);
    write_nll(nll, of, student);
    write_gradient(d + row * sizes.stride, sizes, [&](uint32_t n) { return student.value(n); });
}

template <typename Out>
__device__ __forceinline__ void distil(const Partial& partial, Out* d, float* nll, float* kl, const float* logits,
                                       const float* teacher, const uint32_t* targets, GradientSizes sizes) {
    const size_t row = blockIdx.x;
    const float* l = logits + row * sizes.vocab;
    const float* t = teacher + row * sizes.vocab;
    const float inverse = 1.0f / sizes.temperature;
    const Softmax of = softmax(l, sizes.logit_scale, inverse, sizes.vocab, partial);
    const Softmax of_teacher = softmax(t, sizes.teacher_scale, inverse, sizes.vocab, partial);
    const Student student = student_of(l, of, targets[row], sizes);
    write_nll(nll, of, student);
    const double soft = static_cast<double>(sizes.scale * sizes.logit_scale * sizes.mix * sizes.temperature);
    const float factor = static_cast<float>(soft / of_teacher.tempered);
    float difference = 0.0f;
    write_gradient(d + row * sizes.stride, sizes, [&](uint32_t n) {
        const float logit = sizes.teacher_scale * t[n];
        const float p = expf((logit - of_teacher.max) * inverse);
        difference = fmaf(p, logit - student.logit(n), difference);
        return fmaf(-factor, p, student.value(n));
    });
    const double sum = sum_of_block(difference, partial);
    if (threadIdx.x == 0) {
        const double lse_teacher = static_cast<double>(of_teacher.max) * inverse + log(of_teacher.tempered);
        const double lse = static_cast<double>(of.max) * inverse + log(of.tempered);
        kl[row] = static_cast<float>(sum / of_teacher.tempered * inverse - lse_teacher + lse);
    }
}

template <typename Out>
__device__ __forceinline__ void distil_top_k(const Partial& partial, Out* d, float* nll, float* kl, const float* logits,
                                             const uint32_t* ids, const float* log_probs, const uint32_t* targets,
                                             GradientSizes sizes) {
    const size_t row = blockIdx.x;
    const float* l = logits + row * sizes.vocab;
    const uint32_t* own_ids = ids + row * sizes.k;
    const float* own_log_probs = log_probs + row * sizes.k;
    Out* own_d = d + row * sizes.stride;
    const float inverse = 1.0f / sizes.temperature;
    const Softmax of = softmax(l, sizes.logit_scale, inverse, sizes.vocab, partial);
    const Softmax of_teacher = softmax(own_log_probs, 1.0f, inverse, sizes.k, partial);
    const Student student = student_of(l, of, targets[row], sizes);
    write_nll(nll, of, student);
    write_gradient(own_d, sizes, [&](uint32_t n) { return student.value(n); });
    // Some of these elements are written again.
    __syncthreads();
    const float soft = sizes.scale * sizes.logit_scale * sizes.mix * sizes.temperature;
    const double lse = static_cast<double>(of.max) * inverse + log(of.tempered);
    double terms = 0.0;
    for (uint32_t i = threadIdx.x; i < sizes.k; i += THREADS) {
        const double ln_p = static_cast<double>((own_log_probs[i] - of_teacher.max) * inverse) - log(of_teacher.tempered);
        const double p = exp(ln_p);
        terms += p * (ln_p - (static_cast<double>(student.logit(own_ids[i])) * inverse - lse));
        own_d[own_ids[i]] = from_f32<Out>(fmaf(-soft, static_cast<float>(p), student.value(own_ids[i])));
    }
    const double sum = sum_of_block(terms, partial);
    if (threadIdx.x == 0) {
        kl[row] = static_cast<float>(sum);
    }
}

// cross_entropy_gradient_<d>: d = the gradient of a row's logits, and nll, without a teacher (mix is 0).  logits: [rows, vocab] f32,
// before logit_scale;  targets: [rows];  d: [rows, stride] (=), zeros behind vocab;  nll: [rows] f32 (=).
// Geometry: a block of 256 threads a row.  Limit: 3 reads of the logits + 1 write, most of it in L2.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_gradient_f32(float* __restrict__ d, float* __restrict__ nll, const float* __restrict__ logits,
                               const uint32_t* __restrict__ targets, GradientSizes sizes) {
    SHARED_ARRAY(float, maxima, THREADS / WARP);
    SHARED_ARRAY(double, sums, THREADS / WARP);
    gradient({maxima, sums}, d, nll, logits, targets, sizes);
}
EXPORT_KERNEL(cross_entropy_gradient_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_gradient_bf16(bf16* __restrict__ d, float* __restrict__ nll, const float* __restrict__ logits,
                                const uint32_t* __restrict__ targets, GradientSizes sizes) {
    SHARED_ARRAY(float, maxima, THREADS / WARP);
    SHARED_ARRAY(double, sums, THREADS / WARP);
    gradient({maxima, sums}, d, nll, logits, targets, sizes);
}
EXPORT_KERNEL(cross_entropy_gradient_bf16, THREADS)

// distil_gradient_<d>: the same with a teacher's logits.  teacher: [rows, vocab] f32, before teacher_scale;  kl: [rows] f32 (=).
// Geometry: a block of 256 threads a row.  Limit: 3 reads of both + 1 write.
extern "C" __global__ void __launch_bounds__(THREADS)
    distil_gradient_f32(float* __restrict__ d, float* __restrict__ nll, float* __restrict__ kl, const float* __restrict__ logits,
                        const float* __restrict__ teacher, const uint32_t* __restrict__ targets, GradientSizes sizes) {
    SHARED_ARRAY(float, maxima, THREADS / WARP);
    SHARED_ARRAY(double, sums, THREADS / WARP);
    distil({maxima, sums}, d, nll, kl, logits, teacher, targets, sizes);
}
EXPORT_KERNEL(distil_gradient_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    distil_gradient_bf16(bf16* __restrict__ d, float* __restrict__ nll, float* __restrict__ kl, const float* __restrict__ logits,
                         const float* __restrict__ teacher, const uint32_t* __restrict__ targets, GradientSizes sizes) {
    SHARED_ARRAY(float, maxima, THREADS / WARP);
    SHARED_ARRAY(double, sums, THREADS / WARP);
    distil({maxima, sums}, d, nll, kl, logits, teacher, targets, sizes);
}
EXPORT_KERNEL(distil_gradient_bf16, THREADS)

// distil_top_k_gradient_<d>: the same with a teacher's most likely tokens, whose probabilities are scaled to add up to 1.  ids,
// log_probs: [rows, k], the ids of a row all different.
// Geometry: a block of 256 threads a row.  Limit: 3 reads of the logits + 1 write.
extern "C" __global__ void __launch_bounds__(THREADS)
    distil_top_k_gradient_f32(float* __restrict__ d, float* __restrict__ nll, float* __restrict__ kl,
                              const float* __restrict__ logits, const uint32_t* __restrict__ ids,
                              const float* __restrict__ log_probs, const uint32_t* __restrict__ targets, GradientSizes sizes) {
    SHARED_ARRAY(float, maxima, THREADS / WARP);
    SHARED_ARRAY(double, sums, THREADS / WARP);
    distil_top_k({maxima, sums}, d, nll, kl, logits, ids, log_probs, targets, sizes);
}
EXPORT_KERNEL(distil_top_k_gradient_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    distil_top_k_gradient_bf16(bf16* __restrict__ d, float* __restrict__ nll, float* __restrict__ kl,
                               const float* __restrict__ logits, const uint32_t* __restrict__ ids,
                               const float* __restrict__ log_probs, const uint32_t* __restrict__ targets, GradientSizes sizes) {
    SHARED_ARRAY(float, maxima, THREADS / WARP);
    SHARED_ARRAY(double, sums, THREADS / WARP);
    distil_top_k({maxima, sums}, d, nll, kl, logits, ids, log_probs, targets, sizes);
}
EXPORT_KERNEL(distil_top_k_gradient_bf16, THREADS)
