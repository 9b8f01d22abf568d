// Causal grouped-query attention on ordinary arithmetic: f32, and bf16 heads whose size tensor cores cannot use (no multiple of
// 8). Flash style (Dao et al. 2022, arXiv 2205.14135): running maximum and sum, scores never stored.

#include "attention_source.cuh"
#include "pack.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
// A multiprocessor: 64 registers a thread. Left alone, ptxas aims at five blocks on some GPUs, and spills.
constexpr int BLOCKS = 4;
// A warp a query; the block's queries share the keys in shared memory.
constexpr uint32_t QUERIES = THREADS / WARP;
// Keys at a time: a lane each.
constexpr uint32_t KEYS = WARP;
constexpr uint32_t MOST_HEAD_DIM = 256;

// For each block of 32 keys in ascending order: m' = max(m, scores), l = l e^(m - m') + sum of e^(score - m'),
// o = o e^(m - m') + sum of e^(score - m') v, key after key. y = o / l.
//
// `shared`: keys [KEYS][head_dim + 1], values [KEYS][head_dim], queries [QUERIES][head_dim], f32.
template <typename T, typename Source>
__device__ __forceinline__ void attend(float* shared, T* y, const Source source) {
    const uint32_t head_dim = source.sizes.head_dim;
    float* keys = shared;
    float* values = keys + KEYS * (head_dim + 1);
    float* queries = values + KEYS * head_dim;
    const uint32_t warp = threadIdx.x / WARP;
    const uint32_t lane = threadIdx.x % WARP;
    for (uint32_t i = threadIdx.x; i < source.queries * head_dim; i += THREADS) {
        queries[i] = to_f32(source.query(i / head_dim)[i % head_dim]);
    }
    const bool active = warp < source.queries;
    const uint32_t own_keys = active ? source.keys(warp) : 0;
    float max = -INFINITY;
    float sum = 0.0f;
    float o[MOST_HEAD_DIM / WARP] = {};
    for (uint32_t first = 0; first < source.most_keys(); first += KEYS) {
        const uint32_t there = min(KEYS, source.most_keys() - first);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < there * head_dim; i += THREADS) {
            const uint32_t t = i / head_dim;
            const uint32_t d = i % head_dim;
            keys[t * (head_dim + 1) + d] = to_f32(source.key(first + t)[d]);
            values[t * head_dim + d] = to_f32(source.value(first + t)[d]);
        }
        __syncthreads();
        const uint32_t seen = own_keys > first ? min(there, own_keys - first) : 0;
        if (seen == 0) {
            continue;
        }
        float score = -INFINITY;
        if (lane < seen) {
            score = 0.0f;
            for (uint32_t d = 0; d < head_dim; ++d) {
                score = fmaf(queries[warp * head_dim + d], keys[lane * (head_dim + 1) + d], score);
            }
            score *= source.sizes.scale;
        }
        const float new_max = fmaxf(max, warp_max(score));
        const float keep = expf(max - new_max);
        const float weight = lane < seen ? expf(score - new_max) : 0.0f;
        max = new_max;
        sum = fmaf(sum, keep, warp_sum(weight));
#pragma unroll
        for (uint32_t i = 0; i < MOST_HEAD_DIM / WARP; ++i) {
            o[i] *= keep;
        }
        for (uint32_t t = 0; t < seen; ++t) {
            const float w = __shfl_sync(0xffffffffu, weight, static_cast<int>(t));
#pragma unroll
            for (uint32_t i = 0; i < MOST_HEAD_DIM / WARP; ++i) {
                const uint32_t d = lane + i * WARP;
                if (d < head_dim) {
                    o[i] = fmaf(w, values[t * head_dim + d], o[i]);
                }
            }
        }
    }
    if (!active) {
        return;
    }
    T* out = y + source.output(warp) * head_dim;
#pragma unroll
    for (uint32_t i = 0; i < MOST_HEAD_DIM / WARP; ++i) {
        const uint32_t d = lane + i * WARP;
        if (d < head_dim) {
            out[d] = from_f32<T>(o[i] / sum);
        }
    }
}

// attention_<x>: y = softmax(scale q k^T, causal within each sequence) v.  qkv: [rows, (heads + 2 kv_heads) head_dim];
// y: [rows, heads * head_dim] (=);  tiles: [count, 4], see PackedQueries, at most QUERIES queries each.  f32 throughout.
// Geometry: grid (count * heads), 256 threads, shared memory as in attend.  head_dim up to 256.
// Limit: 4 head_dim FLOPs a visible pair of query and key, at the rate of ordinary FMA units.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_f32(float* __restrict__ y, const float* __restrict__ qkv, const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend(reinterpret_cast<float*>(shared), y, PackedQueries<float>(qkv, tiles, sizes));
}
EXPORT_KERNEL(attention_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_bf16(bf16* __restrict__ y, const bf16* __restrict__ qkv, const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend(reinterpret_cast<float*>(shared), y, PackedQueries<bf16>(qkv, tiles, sizes));
}
EXPORT_KERNEL(attention_bf16, THREADS)

// attention_paged_<x>: the same for one row at a time over its pages; q is read from qkv.  pages: see kv_cache.cu;  tables, rows:
// see PagedQueries.  Geometry: grid (rows * kv_heads, parts of QUERIES of a group), 256 threads, shared memory as in attend.
// Limit: the keys and values of each row read once a part.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_paged_f32(float* __restrict__ y, const float* __restrict__ qkv, const float* __restrict__ pages,
                        const uint32_t* __restrict__ tables, const uint32_t* __restrict__ rows, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend(reinterpret_cast<float*>(shared), y, PagedQueries<float, QUERIES>(qkv, pages, tables, rows, sizes));
}
EXPORT_KERNEL(attention_paged_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_paged_bf16(bf16* __restrict__ y, const bf16* __restrict__ qkv, const bf16* __restrict__ pages,
                         const uint32_t* __restrict__ tables, const uint32_t* __restrict__ rows, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend(reinterpret_cast<float*>(shared), y, PagedQueries<bf16, QUERIES>(qkv, pages, tables, rows, sizes));
}
EXPORT_KERNEL(attention_paged_bf16, THREADS)
