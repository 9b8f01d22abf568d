// Gradient of attention (attention_gradient.cuh) on ordinary arithmetic: f32, and bf16 heads whose size tensor cores cannot use.

#include "attention_gradient.cuh"
#include "pack.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
// A multiprocessor: 64 registers a thread. Left alone, ptxas aims at five blocks on some GPUs, and spills.
constexpr int BLOCKS = 4;
// A warp a query, or a key.
constexpr uint32_t OWN = THREADS / WARP;
// Keys, or queries, at a time: a lane each.
constexpr uint32_t OTHERS = WARP;
constexpr uint32_t MOST_HEAD_DIM = 256;
// Elements of a row that a lane holds.
constexpr uint32_t LANE_COLS = MOST_HEAD_DIM / WARP;

// `shared`: two of [OTHERS][head_dim + 1], then two of [OWN][head_dim], f32.
struct Rows {
    float* others[2];
    float* own[2];

    __device__ __forceinline__ Rows(unsigned char* shared, uint32_t head_dim) {
        others[0] = reinterpret_cast<float*>(shared);
        others[1] = others[0] + OTHERS * (head_dim + 1);
        own[0] = others[1] + OTHERS * (head_dim + 1);
        own[1] = own[0] + OWN * head_dim;
    }
};

// Copies `count` rows, which row(i) gives, to rows `stride` apart.
template <typename Row>
__device__ __forceinline__ void load_rows(float* shared, uint32_t stride, uint32_t count, uint32_t head_dim, Row row) {
    for (uint32_t i = threadIdx.x; i < count * head_dim; i += THREADS) {
        shared[i / head_dim * stride + i % head_dim] = to_f32(row(i / head_dim)[i % head_dim]);
    }
}

__device__ __forceinline__ float dot(const float* a, const float* b, uint32_t head_dim) {
    float sum = 0.0f;
    for (uint32_t d = 0; d < head_dim; ++d) {
        sum = fmaf(a[d], b[d], sum);
    }
    return sum;
}

// sums[i] += w row[lane + 32 i].
__device__ __forceinline__ void add_row(float (&sums)[LANE_COLS], float w, const float* row, uint32_t head_dim) {
#pragma unroll
    for (uint32_t i = 0; i < LANE_COLS; ++i) {
        const uint32_t d = threadIdx.x % WARP + i * WARP;
        if (d < head_dim) {
            sums[i] = fmaf(w, row[d], sums[i]);
        }
    }
}

// to[lane + 32 i] = factor sums[i].
template <typename T>
__device__ __forceinline__ void store_row(T* to, const float (&sums)[LANE_COLS], float factor, uint32_t head_dim) {
#pragma unroll
    for (uint32_t i = 0; i < LANE_COLS; ++i) {
        const uint32_t d = threadIdx.x % WARP + i * WARP;
        if (d < head_dim) {
            to[d] = from_f32<T>(factor * sums[i]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void gradient_of_queries(unsigned char* shared, T* d_qkv, float* kept, const T* y, const T* d_y,
                                                    const PackedQueries<T>& source) {
    const uint32_t head_dim = source.sizes.head_dim;
    const Rows rows(shared, head_dim);
    const uint32_t warp = threadIdx.x / WARP;
    const uint32_t lane = threadIdx.x % WARP;
    load_rows(rows.own[0], head_dim, source.queries, head_dim, [&](uint32_t i) { return source.query(i); });
    load_rows(rows.own[1], head_dim, source.queries, head_dim,
              [&](uint32_t i) { return d_y + source.output(i) * head_dim; });
    const bool active = warp < source.queries;
    float d_y_y = 0.0f;
    if (active) {
        const size_t at = source.output(warp) * head_dim;
        for (uint32_t d = lane; d < head_dim; d += WARP) {
            d_y_y = fmaf(to_f32(d_y[at + d]), to_f32(y[at + d]), d_y_y);
        }
        d_y_y = warp_sum(d_y_y);
    }
    const uint32_t own_keys = active ? source.keys(warp) : 0;
    float max = -INFINITY;
    float sum = 0.0f;
    float d_q[LANE_COLS] = {};
    for (uint32_t first = 0; first < source.most_keys(); first += OTHERS) {
        const uint32_t there = min(OTHERS, source.most_keys() - first);
        __syncthreads();
        load_rows(rows.others[0], head_dim + 1, there, head_dim, [&](uint32_t t) { return source.key(first + t); });
        load_rows(rows.others[1], head_dim + 1, there, head_dim, [&](uint32_t t) { return source.value(first + t); });
        __syncthreads();
        const uint32_t seen = own_keys > first ? min(there, own_keys - first) : 0;
        if (seen == 0) {
            continue;
        }
        float score = -INFINITY;
        float d_p = 0.0f;
        if (lane < seen) {
            score = source.sizes.scale * dot(rows.own[0] + warp * head_dim, rows.others[0] + lane * (head_dim + 1), head_dim);
            d_p = dot(rows.own[1] + warp * head_dim, rows.others[1] + lane * (head_dim + 1), head_dim);
        }
        const float new_max = fmaxf(max, warp_max(score));
        const float keep = expf(max - new_max);
        const float weight = lane < seen ? expf(score - new_max) : 0.0f;
        max = new_max;
        sum = fmaf(sum, keep, warp_sum(weight));
#pragma unroll
        for (uint32_t i = 0; i < LANE_COLS; ++i) {
            d_q[i] *= keep;
        }
        for (uint32_t t = 0; t < seen; ++t) {
            const float w = __shfl_sync(0xffffffffu, weight * (d_p - d_y_y), static_cast<int>(t));
            add_row(d_q, w, rows.others[0] + t * (head_dim + 1), head_dim);
        }
    }
    if (!active) {
        return;
    }
    // Where the query itself came from.
    store_row(d_qkv + (source.query(warp) - source.qkv), d_q, source.sizes.scale / sum, head_dim);
    if (lane == 0) {
        kept[KEPT * source.output(warp)] = max + logf(sum);
        kept[KEPT * source.output(warp) + 1] = d_y_y;
    }
}

template <typename T>
__device__ __forceinline__ void gradient_of_keys(unsigned char* shared, T* d_qkv, const float* kept, const PackedKeys<T>& source) {
    const uint32_t head_dim = source.sizes.head_dim;
    const Rows rows(shared, head_dim);
    const uint32_t warp = threadIdx.x / WARP;
    const uint32_t lane = threadIdx.x % WARP;
    load_rows(rows.own[0], head_dim, source.keys, head_dim,
              [&](uint32_t t) { return source.qkv + source.row(source.first + t) + source.key_col(); });
    load_rows(rows.own[1], head_dim, source.keys, head_dim,
              [&](uint32_t t) { return source.qkv + source.row(source.first + t) + source.value_col(); });
    const bool active = warp < source.keys;
    float d_k[LANE_COLS] = {};
    float d_v[LANE_COLS] = {};
    for (uint32_t head = source.first_head(); head < source.first_head() + source.group(); ++head) {
        for (uint32_t first = source.first; first < source.length; first += OTHERS) {
            const uint32_t there = min(OTHERS, source.length - first);
            __syncthreads();
            load_rows(rows.others[0], head_dim + 1, there, head_dim, [&](uint32_t i) { return source.query(first + i, head); });
            load_rows(rows.others[1], head_dim + 1, there, head_dim, [&](uint32_t i) { return source.d_output(first + i, head); });
            __syncthreads();
            if (!active) {
                continue;
            }
            float p = 0.0f;
            float d_s = 0.0f;
            // Queries before the key do not see it.
            if (lane < there && first + lane >= source.first + warp) {
                const float* of = kept + KEPT * source.item(first + lane, head);
                const float score = dot(rows.others[0] + lane * (head_dim + 1), rows.own[0] + warp * head_dim, head_dim);
                p = expf(source.sizes.scale * score - of[0]);
                d_s = p * (dot(rows.others[1] + lane * (head_dim + 1), rows.own[1] + warp * head_dim, head_dim) - of[1]);
            }
            for (uint32_t i = 0; i < there; ++i) {
                const float own_p = __shfl_sync(0xffffffffu, p, static_cast<int>(i));
                const float own_d_s = __shfl_sync(0xffffffffu, d_s, static_cast<int>(i));
                add_row(d_k, own_d_s, rows.others[0] + i * (head_dim + 1), head_dim);
                add_row(d_v, own_p, rows.others[1] + i * (head_dim + 1), head_dim);
            }
        }
    }
    if (active) {
        T* row = d_qkv + source.row(source.first + warp);
        store_row(row + source.key_col(), d_k, source.sizes.scale, head_dim);
        store_row(row + source.value_col(), d_v, 1.0f, head_dim);
    }
}

// attention_backward_queries_<x>: d_q, and what attention_backward_keys needs of each row.  qkv, d_qkv (=, its first heads * head_dim
// columns): [rows, (heads + 2 kv_heads) head_dim];  y, d_y: [rows, heads * head_dim];  kept: [rows, heads, 2] f32 (=);  tiles: [count,
// 4], see PackedQueries, at most OWN queries each.  f32 throughout.
// Geometry: grid (count * heads), 256 threads, shared memory as in Rows.  head_dim up to 256.
// Limit: 6 head_dim FLOPs a visible pair of query and key, at the rate of ordinary FMA units.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_backward_queries_f32(float* __restrict__ d_qkv, float* __restrict__ kept, const float* __restrict__ qkv,
                                   const float* __restrict__ y, const float* __restrict__ d_y, const uint32_t* __restrict__ tiles,
                                   AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_queries(shared, d_qkv, kept, y, d_y, PackedQueries<float>(qkv, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_queries_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_backward_queries_bf16(bf16* __restrict__ d_qkv, float* __restrict__ kept, const bf16* __restrict__ qkv,
                                    const bf16* __restrict__ y, const bf16* __restrict__ d_y, const uint32_t* __restrict__ tiles,
                                    AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_queries(shared, d_qkv, kept, y, d_y, PackedQueries<bf16>(qkv, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_queries_bf16, THREADS)

// attention_backward_keys_<x>: d_k and d_v, the other columns of d_qkv (=), summed over the queries that see a key, head after head
// in ascending order.  Arguments as above; tiles of at most OWN keys.
// Geometry: grid (count * kv_heads), 256 threads, shared memory as in Rows.
// Limit: 8 head_dim FLOPs a visible pair of query and key.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_backward_keys_f32(float* __restrict__ d_qkv, const float* __restrict__ kept, const float* __restrict__ qkv,
                                const float* __restrict__ d_y, const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_keys(shared, d_qkv, kept, PackedKeys<float>(qkv, d_y, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_keys_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_backward_keys_bf16(bf16* __restrict__ d_qkv, const float* __restrict__ kept, const bf16* __restrict__ qkv,
                                 const bf16* __restrict__ d_y, const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_keys(shared, d_qkv, kept, PackedKeys<bf16>(qkv, d_y, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_keys_bf16, THREADS)
