// Gradient of attention (attention_gradient.cuh) on tensor cores, bf16 (Dao 2023, arXiv 2307.08691). A block has 64 rows of its own
// (queries, or keys) in shared memory and walks those on the other side a block at a time, the next on its way meanwhile; scores and
// their gradients live in registers.

#include "attention_gradient.cuh"
#include "attention_tiles.cuh"
#include "linear_tile.cuh"

constexpr uint32_t OWN = 64;

// Heads of up to HEAD_DIM elements, OTHERS rows of the other side at a time, WARPS_D warps for each 16 own rows: all compute the
// scores, each its part of the result's columns.
template <int HEAD_DIM_, int OTHERS_, int WARPS_D_>
struct GradientTiles {
    static constexpr int HEAD_DIM = HEAD_DIM_;
    static constexpr int OTHERS = OTHERS_;
    static constexpr int WARPS_D = WARPS_D_;
    static constexpr int THREADS = WARP * static_cast<int>(OWN) / 16 * WARPS_D;
    // 16 bytes more than a row needs: the eight rows that ldmatrix reads at one column then lie in different banks.
    static constexpr int STRIDE = HEAD_DIM + 8;
    static constexpr int COLUMN_PAIRS = HEAD_DIM / 16;
    static constexpr int OWN_PAIRS = COLUMN_PAIRS / WARPS_D;
    // Two tensors' rows, those of the other side twice.
    static constexpr int SHARED_BYTES = (2 * static_cast<int>(OWN) + 4 * OTHERS) * STRIDE * 2;
    static_assert(COLUMN_PAIRS % WARPS_D == 0 && OTHERS % 16 == 0 && OWN % OTHERS == 0, "whole steps of tensor cores");
};

// OTHERS as registers allow it: one result of HEAD_DIM columns (queries) or two (keys) stay in them beside two blocks of scores.
template <int HEAD_DIM>
using QueryTiles = GradientTiles<HEAD_DIM, HEAD_DIM <= 64 ? 64 : HEAD_DIM <= 128 ? 32 : 16, 1>;
template <int HEAD_DIM>
using KeyTiles = GradientTiles<HEAD_DIM, HEAD_DIM <= 64 ? 64 : HEAD_DIM <= 96 ? 32 : 16, HEAD_DIM <= 128 ? 1 : 2>;

// Shared memory: own rows of two tensors, and two stages of the other side's.
template <typename T>
struct SharedRows {
    bf16* memory;

    __device__ __forceinline__ bf16* own(int tensor) const { return memory + tensor * static_cast<int>(OWN) * T::STRIDE; }
    __device__ __forceinline__ bf16* others(uint32_t step, int tensor) const {
        return memory + (2 * static_cast<int>(OWN) + (static_cast<int>(step % 2) * 2 + tensor) * T::OTHERS) * T::STRIDE;
    }
    // Of this warp's 16 own rows.
    __device__ __forceinline__ bf16* own_of_warp(int tensor) const { return own(tensor) + own_row() * T::STRIDE; }
    static __device__ __forceinline__ int own_row() { return static_cast<int>(threadIdx.x) / WARP / T::WARPS_D * 16; }
};

// Writes factor[h] * o for rows g + 8 h of the warp that exist, at `to(row)`.
template <typename T, typename To>
__device__ __forceinline__ void store_columns(const OwnColumns<T>& o, const float (&factor)[2], uint32_t rows, uint32_t head_dim, To to) {
    const uint32_t first = SharedRows<T>::own_row() + threadIdx.x % WARP / 4;
#pragma unroll
    for (int own = 0; own < T::OWN_PAIRS; ++own) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t col = static_cast<uint32_t>(column_pair<T>(own) * 16 + half * 8) + threadIdx.x % 4 * 2;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (col < head_dim && first + 8 * h < rows) {
                    const float value[2] = {factor[h] * o[own][0][half][2 * h], factor[h] * o[own][0][half][2 * h + 1]};
                    store_f32<2>(to(first + 8 * h) + col, value);
                }
            }
        }
    }
}

// The sum over the four lanes that share a row of mma's result.
__device__ __forceinline__ float sum_of_row(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

template <typename T>
__device__ __forceinline__ void gradient_of_queries(unsigned char* shared_bytes, bf16* d_qkv, float* kept, const bf16* y,
                                                    const bf16* d_y, const PackedQueries<bf16>& source) {
    constexpr int OTHERS = T::OTHERS;
    const uint32_t head_dim = source.sizes.head_dim;
    const SharedRows<T> shared{reinterpret_cast<bf16*>(shared_bytes)};
    const uint32_t lane = threadIdx.x % WARP;
    load_rows<T, OWN>(shared.own(0), source.queries, head_dim, [&](uint32_t i) { return source.query(i); });
    load_rows<T, OWN>(shared.own(1), source.queries, head_dim, [&](uint32_t i) { return d_y + source.output(i) * head_dim; });
    uint32_t own_keys[2];
    float d_y_y[2] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const uint32_t row = SharedRows<T>::own_row() + lane / 4 + 8 * h;
        own_keys[h] = row < source.queries ? source.keys(row) : 0;
        if (row < source.queries) {
            const size_t at = source.output(row) * head_dim;
            for (uint32_t d = lane % 4; d < head_dim; d += 4) {
                d_y_y[h] = fmaf(to_f32(d_y[at + d]), to_f32(y[at + d]), d_y_y[h]);
            }
        }
        d_y_y[h] = sum_of_row(d_y_y[h]);
    }
    const float scale = source.sizes.scale * LOG2_E;
    const uint32_t most = source.most_keys();
    float max[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};
    OwnColumns<T> d_q = {};
    const auto load = [&](uint32_t step) {
        const uint32_t first = step * OTHERS;
        const uint32_t there = min(static_cast<uint32_t>(OTHERS), most - first);
        load_rows<T, OTHERS>(shared.others(step, 0), there, head_dim, [&](uint32_t t) { return source.key(first + t); });
        load_rows<T, OTHERS>(shared.others(step, 1), there, head_dim, [&](uint32_t t) { return source.value(first + t); });
    };
    walk_stages<2>((most + OTHERS - 1) / OTHERS, load, [&](uint32_t step) {
        BlockScores<OTHERS> scores = {};
        BlockScores<OTHERS> d_p = {};
        scores_of_block<T, OTHERS>(scores, shared.own_of_warp(0), shared.others(step, 0));
        scores_of_block<T, OTHERS>(d_p, shared.own_of_warp(1), shared.others(step, 1));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t seen = own_keys[h] > step * OTHERS ? own_keys[h] - step * OTHERS : 0;
            float new_max = max[h];
#pragma unroll
            for (int j = 0; j < OTHERS / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& score = scores[0][j][2 * h + e];
                    score = j * 8 + lane % 4 * 2 + e < seen ? score : -INFINITY;
                    new_max = fmaxf(new_max, score);
                }
            }
            new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffffu, new_max, 1));
            new_max = fmaxf(new_max, __shfl_xor_sync(0xffffffffu, new_max, 2));
            // Rows beyond the tile see nothing: there is no maximum to subtract, and all weights are 0.
            const float shift = new_max == -INFINITY ? 0.0f : new_max * scale;
            const float keep = max[h] == -INFINITY ? 1.0f : exp2_approx(fmaf(max[h], scale, -shift));
            max[h] = new_max;
            sum[h] *= keep;
#pragma unroll
            for (int j = 0; j < OTHERS / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& score = scores[0][j][2 * h + e];
                    const float weight = exp2_approx(fmaf(score, scale, -shift));
                    sum[h] += weight;
                    score = weight * (d_p[0][j][2 * h + e] - d_y_y[h]);
                }
            }
#pragma unroll
            for (int p = 0; p < T::OWN_PAIRS; ++p) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    d_q[p][0][half][2 * h] *= keep;
                    d_q[p][0][half][2 * h + 1] *= keep;
                }
            }
        }
        add_values<T, OTHERS>(d_q, scores, shared.others(step, 0));
    });
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float total = sum_of_row(sum[h]);
        const uint32_t row = SharedRows<T>::own_row() + lane / 4 + 8 * h;
        factor[h] = source.sizes.scale / total;
        if (lane % 4 == 0 && row < source.queries) {
            kept[KEPT * source.output(row)] = fmaf(max[h], scale, log2f(total));
            kept[KEPT * source.output(row) + 1] = d_y_y[h];
        }
    }
    // Where the queries themselves came from.
    store_columns<T>(d_q, factor, source.queries, head_dim, [&](uint32_t i) { return d_qkv + (source.query(i) - source.qkv); });
}

template <typename T>
__device__ __forceinline__ void gradient_of_keys(unsigned char* shared_bytes, bf16* d_qkv, const float* kept,
                                                 const PackedKeys<bf16>& source) {
    constexpr int OTHERS = T::OTHERS;
    const uint32_t head_dim = source.sizes.head_dim;
    const SharedRows<T> shared{reinterpret_cast<bf16*>(shared_bytes)};
    const uint32_t lane = threadIdx.x % WARP;
    load_rows<T, OWN>(shared.own(0), source.keys, head_dim,
                      [&](uint32_t t) { return source.qkv + source.row(source.first + t) + source.key_col(); });
    load_rows<T, OWN>(shared.own(1), source.keys, head_dim,
                      [&](uint32_t t) { return source.qkv + source.row(source.first + t) + source.value_col(); });
    const float scale = source.sizes.scale * LOG2_E;
    // Head after head, the queries from the first key on.
    const uint32_t blocks = (source.length - source.first + OTHERS - 1) / OTHERS;
    const auto head_of = [&](uint32_t step) { return source.first_head() + step / blocks; };
    const auto query_of = [&](uint32_t step) { return source.first + step % blocks * OTHERS; };
    OwnColumns<T> d_k = {};
    OwnColumns<T> d_v = {};
    const auto load = [&](uint32_t step) {
        const uint32_t head = head_of(step);
        const uint32_t first = query_of(step);
        const uint32_t there = min(static_cast<uint32_t>(OTHERS), source.length - first);
        load_rows<T, OTHERS>(shared.others(step, 0), there, head_dim, [&](uint32_t i) { return source.query(first + i, head); });
        load_rows<T, OTHERS>(shared.others(step, 1), there, head_dim, [&](uint32_t i) { return source.d_output(first + i, head); });
    };
    walk_stages<2>(blocks * source.group(), load, [&](uint32_t step) {
        // Rows are keys here, columns queries.
        BlockScores<OTHERS> weights = {};
        BlockScores<OTHERS> d_s = {};
        scores_of_block<T, OTHERS>(weights, shared.own_of_warp(0), shared.others(step, 0));
        scores_of_block<T, OTHERS>(d_s, shared.own_of_warp(1), shared.others(step, 1));
        const uint32_t head = head_of(step);
        const uint32_t key = source.first + SharedRows<T>::own_row() + lane / 4;
#pragma unroll
        for (int j = 0; j < OTHERS / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const uint32_t query = query_of(step) + j * 8 + lane % 4 * 2 + e;
                float of[KEPT] = {};
                if (query < source.length) {
                    load_f32<KEPT>(of, kept + KEPT * source.item(query, head));
                }
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float& weight = weights[0][j][2 * h + e];
                    float& gradient = d_s[0][j][2 * h + e];
                    const bool seen = query < source.length && query >= key + 8 * h;
                    weight = seen ? exp2_approx(fmaf(weight, scale, -of[0])) : 0.0f;
                    gradient = weight * (gradient - of[1]);
                }
            }
        }
        add_values<T, OTHERS>(d_v, weights, shared.others(step, 1));
        add_values<T, OTHERS>(d_k, d_s, shared.others(step, 0));
    });
    const auto row = [&](uint32_t t) { return d_qkv + source.row(source.first + t); };
    const float scaled[2] = {source.sizes.scale, source.sizes.scale};
    const float as_is[2] = {1.0f, 1.0f};
    store_columns<T>(d_k, scaled, source.keys, head_dim, [&](uint32_t t) { return row(t) + source.key_col(); });
    store_columns<T>(d_v, as_is, source.keys, head_dim, [&](uint32_t t) { return row(t) + source.value_col(); });
}

// attention_backward_queries_mma_<d>: d_q, and what attention_backward_keys_mma needs of each row, for head_dim up to d (a multiple
// of 8).  qkv, d_qkv (=, its first heads * head_dim columns): [rows, (heads + 2 kv_heads) head_dim] bf16;  y, d_y: [rows, heads *
// head_dim] bf16;  kept: [rows, heads, 2] f32 (=);  tiles: [count, 4], see PackedQueries, at most 64 queries each.  Scores, softmax and
// sums in f32; ds is rounded to bf16 before it meets the keys; 2^x with relative error below 2^-22.
// Geometry: grid (count * heads), THREADS and SHARED_BYTES of the tile.
// Limit: 6 head_dim FLOPs a visible pair of query and key on tensor cores.
extern "C" __global__ void __launch_bounds__(QueryTiles<64>::THREADS)
    attention_backward_queries_mma_64(bf16* __restrict__ d_qkv, float* __restrict__ kept, const bf16* __restrict__ qkv,
                                      const bf16* __restrict__ y, const bf16* __restrict__ d_y,
                                      const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_queries<QueryTiles<64>>(shared, d_qkv, kept, y, d_y, PackedQueries<bf16>(qkv, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_queries_mma_64, QueryTiles<64>::THREADS)

extern "C" __global__ void __launch_bounds__(QueryTiles<96>::THREADS)
    attention_backward_queries_mma_96(bf16* __restrict__ d_qkv, float* __restrict__ kept, const bf16* __restrict__ qkv,
                                      const bf16* __restrict__ y, const bf16* __restrict__ d_y,
                                      const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_queries<QueryTiles<96>>(shared, d_qkv, kept, y, d_y, PackedQueries<bf16>(qkv, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_queries_mma_96, QueryTiles<96>::THREADS)

extern "C" __global__ void __launch_bounds__(QueryTiles<128>::THREADS)
    attention_backward_queries_mma_128(bf16* __restrict__ d_qkv, float* __restrict__ kept, const bf16* __restrict__ qkv,
                                       const bf16* __restrict__ y, const bf16* __restrict__ d_y,
                                       const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_queries<QueryTiles<128>>(shared, d_qkv, kept, y, d_y, PackedQueries<bf16>(qkv, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_queries_mma_128, QueryTiles<128>::THREADS)

extern "C" __global__ void __launch_bounds__(QueryTiles<256>::THREADS)
    attention_backward_queries_mma_256(bf16* __restrict__ d_qkv, float* __restrict__ kept, const bf16* __restrict__ qkv,
                                       const bf16* __restrict__ y, const bf16* __restrict__ d_y,
                                       const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_queries<QueryTiles<256>>(shared, d_qkv, kept, y, d_y, PackedQueries<bf16>(qkv, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_queries_mma_256, QueryTiles<256>::THREADS)

// attention_backward_keys_mma_<d>: d_k and d_v, the other columns of d_qkv (=), summed over the queries that see a key, head after
// head in ascending order.  Arguments as above; tiles of at most 64 keys.  p and ds are rounded to bf16 before they meet d_y and q.
// Geometry: grid (count * kv_heads), THREADS and SHARED_BYTES of the tile.
// Limit: 8 head_dim FLOPs a visible pair of query and key on tensor cores (12 for heads of more than 128 elements, whose scores two
// warps compute).
extern "C" __global__ void __launch_bounds__(KeyTiles<64>::THREADS)
    attention_backward_keys_mma_64(bf16* __restrict__ d_qkv, const float* __restrict__ kept, const bf16* __restrict__ qkv,
                                   const bf16* __restrict__ d_y, const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_keys<KeyTiles<64>>(shared, d_qkv, kept, PackedKeys<bf16>(qkv, d_y, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_keys_mma_64, KeyTiles<64>::THREADS)

extern "C" __global__ void __launch_bounds__(KeyTiles<96>::THREADS)
    attention_backward_keys_mma_96(bf16* __restrict__ d_qkv, const float* __restrict__ kept, const bf16* __restrict__ qkv,
                                   const bf16* __restrict__ d_y, const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_keys<KeyTiles<96>>(shared, d_qkv, kept, PackedKeys<bf16>(qkv, d_y, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_keys_mma_96, KeyTiles<96>::THREADS)

extern "C" __global__ void __launch_bounds__(KeyTiles<128>::THREADS)
    attention_backward_keys_mma_128(bf16* __restrict__ d_qkv, const float* __restrict__ kept, const bf16* __restrict__ qkv,
                                    const bf16* __restrict__ d_y, const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_keys<KeyTiles<128>>(shared, d_qkv, kept, PackedKeys<bf16>(qkv, d_y, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_keys_mma_128, KeyTiles<128>::THREADS)

extern "C" __global__ void __launch_bounds__(KeyTiles<256>::THREADS)
    attention_backward_keys_mma_256(bf16* __restrict__ d_qkv, const float* __restrict__ kept, const bf16* __restrict__ qkv,
                                    const bf16* __restrict__ d_y, const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    gradient_of_keys<KeyTiles<256>>(shared, d_qkv, kept, PackedKeys<bf16>(qkv, d_y, tiles, sizes));
}
EXPORT_KERNEL(attention_backward_keys_mma_256, KeyTiles<256>::THREADS)
