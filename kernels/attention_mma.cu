// Causal grouped-query attention on tensor cores, bf16 (Dao 2023, arXiv 2307.08691). A block holds some queries in shared memory
// and walks their keys and values 64 at a time; scores and weights live in registers.
//
// One row has the same bits from every kernel here: 64-key blocks from the sequence's first token on, SPLIT keys a chain, chains
// put together in ascending order. A block whose keys a row does not see leaves that row's maximum, sum and output as they are,
// bit for bit (the weight of the old is e^0, what is added is 0). Values that are not finite are kept from rows that do not see
// them, for which 0 NaN would be NaN (take_out_not_finite).

#include "attention_source.cuh"
#include "attention_tiles.cuh"

constexpr uint32_t BLOCK_KEYS = 64;
static_assert(SPLIT % BLOCK_KEYS == 0 && BLOCK_KEYS % PAGE_TOKENS == 0, "chains of whole blocks, blocks of whole pages");

// WARPS_M warps have 16 queries each; of the WARPS_D warps that share 16 queries each computes all their scores, and its part of
// the output's columns. HEAD_DIM: that of the model, rounded up to one there is a kernel for (zeros behind).
template <int HEAD_DIM_, int WARPS_M_, int WARPS_D_>
struct AttentionTiles {
    static constexpr int HEAD_DIM = HEAD_DIM_;
    static constexpr int WARPS_M = WARPS_M_;
    static constexpr int WARPS_D = WARPS_D_;
    static constexpr int THREADS = WARP * WARPS_M * WARPS_D;
    static constexpr uint32_t QUERIES = 16 * WARPS_M;
    // 16 bytes more than a row needs: the eight rows that ldmatrix reads at one column then lie in different banks.
    static constexpr int STRIDE = HEAD_DIM + 8;
    // Pairs of 8 output columns, and the most that one warp has of them.
    static constexpr int COLUMN_PAIRS = HEAD_DIM / 16;
    static constexpr int OWN_PAIRS = (COLUMN_PAIRS + WARPS_D - 1) / WARPS_D;
    static constexpr int SHARED_BYTES = (static_cast<int>(QUERIES) + 2 * static_cast<int>(BLOCK_KEYS)) * STRIDE * 2;
    static_assert(HEAD_DIM % 16 == 0, "whole steps of tensor cores");
};

// Largest score, sum of weights and weighted values of two rows (g = lane / 4 and g + 8 of the warp's 16), for one chain. A lane
// holds the columns that mma gives it: o[p][0][half][2 h + e] = O[g + 8 h][16 (pair p) + 8 half + 2 (lane % 4) + e].
template <typename T>
struct Chain {
    float max[2];
    float sum[2];
    float o[T::OWN_PAIRS][1][2][4];
};

template <typename T>
__device__ __forceinline__ Chain<T> empty_chain() {
    Chain<T> chain = {};
    chain.max[0] = -INFINITY;
    chain.max[1] = -INFINITY;
    return chain;
}

// Turns scores into weights 2^(scale (score - max)), the chain's maximum and sum brought up to date, its output rescaled.
// `seen`: keys of this block that each of the lane's two rows sees. `scale` includes log2 e and is positive.
template <typename T>
__device__ __forceinline__ void softmax_of_block(float (&scores)[1][BLOCK_KEYS / 8][4], Chain<T>& chain, const uint32_t (&seen)[2],
                                                 float scale) {
    const uint32_t first_col = threadIdx.x % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float max = chain.max[h];
#pragma unroll
        for (int j = 0; j < static_cast<int>(BLOCK_KEYS) / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& score = scores[0][j][2 * h + e];
                score = j * 8 + first_col + e < seen[h] ? score : -INFINITY;
                max = fmaxf(max, score);
            }
        }
        // The four lanes of a row.
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
        // Where nothing was seen yet there is no maximum to subtract, and all weights are 0.
        // Products are rounded before they are subtracted: fused, equal maxima would not give 2^0.
        const float shift = max == -INFINITY ? 0.0f : __fmul_rn(max, scale);
        const float keep = chain.max[h] == -INFINITY ? 1.0f : exp2_approx(__fmul_rn(chain.max[h], scale) - shift);
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < static_cast<int>(BLOCK_KEYS) / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& score = scores[0][j][2 * h + e];
                score = exp2_approx(fmaf(score, scale, -shift));
                sum += score;
            }
        }
        chain.max[h] = max;
        chain.sum[h] = fmaf(chain.sum[h], keep, sum);
#pragma unroll
        for (int p = 0; p < T::OWN_PAIRS; ++p) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                chain.o[p][0][half][2 * h] *= keep;
                chain.o[p][0][half][2 * h + 1] *= keep;
            }
        }
    }
}

// Which of two bf16 in a register are Inf or NaN: 0xffff in the place of each.
__device__ __forceinline__ uint32_t not_finite(uint32_t pair) {
    // An exponent of ones carries into the sign's place, which was cleared.
    return (((pair & 0x7f807f80u) + 0x00800080u) >> 15 & 0x00010001u) * 0xffffu;
}

// Pair `index` of the block's values.
template <typename T>
__device__ __forceinline__ uint32_t& value_pair(bf16* values, int index) {
    constexpr int ROW_PAIRS = T::HEAD_DIM / 2;
    return *reinterpret_cast<uint32_t*>(values + index / ROW_PAIRS * T::STRIDE + index % ROW_PAIRS * 2);
}

// Sets the values of this block that are not finite to 0, and returns whether there was one; the same in all warps, each of which
// looks at all of them.
template <typename T>
__device__ __forceinline__ bool take_out_not_finite(bf16* values) {
    constexpr int PAIRS = static_cast<int>(BLOCK_KEYS) * T::HEAD_DIM / 2;
    uint32_t found = 0;
    for (int index = static_cast<int>(threadIdx.x) % WARP; index < PAIRS; index += WARP) {
        found |= not_finite(value_pair<T>(values, index));
    }
    if (!__any_sync(0xffffffffu, found != 0)) {
        return false;
    }
    // All warps have looked before one of them changes something.
    __syncthreads();
    for (int index = static_cast<int>(threadIdx.x); index < PAIRS; index += T::THREADS) {
        uint32_t& pair = value_pair<T>(values, index);
        pair &= ~not_finite(pair);
    }
    __syncthreads();
    return true;
}

// Adds what take_out_not_finite took out, of keys `from` .. `to`, to the rows that see it, from memory: NaN to NaN, an infinity
// whatever its weight. `keys`: how many of the sequence each of the lane's two rows sees.
template <typename T, typename Source>
__device__ __forceinline__ void add_not_finite(Chain<T>& chain, const Source& source, uint32_t from, uint32_t to,
                                               const uint32_t (&keys)[2]) {
    const uint32_t lane_col = threadIdx.x % 4 * 2;
#pragma unroll 1
    for (uint32_t t = from; t < to; ++t) {
        const bf16* values = source.value(t);
#pragma unroll
        for (int own = 0; own < T::OWN_PAIRS; ++own) {
#pragma unroll
            for (int part = 0; part < 8; ++part) {
                const uint32_t col = static_cast<uint32_t>(column_pair<T>(own) * 16 + part / 4 * 8 + part % 2) + lane_col;
                if (t < keys[part / 2 % 2] && col < source.sizes.head_dim) {
                    const float value = to_f32(values[col]);
                    float& o = chain.o[own][0][part / 4][part % 4];
                    o = isfinite(value) ? o : o + value;
                }
            }
        }
    }
}

// Walks keys `from` .. `to` of `source` (both multiples of BLOCK_KEYS but for the end) as one chain. Queries are in shared memory
// or on their way there. On return all copies have arrived and all warps are past their last read. ROWS_DIFFER: some rows see keys
// that others do not.
template <typename T, bool ROWS_DIFFER, typename Source>
__device__ __forceinline__ Chain<T> walk(bf16* queries, bf16* keys, bf16* values, const Source& source, uint32_t from, uint32_t to) {
    const uint32_t head_dim = source.sizes.head_dim;
    const uint32_t warp_m = threadIdx.x / WARP / T::WARPS_D;
    const uint32_t row = warp_m * 16 + threadIdx.x % WARP / 4;
    const float scale = source.sizes.scale * LOG2_E;
    uint32_t own_keys[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        own_keys[h] = row + 8 * h < source.queries ? source.keys(row + 8 * h) : 0;
    }
    const auto load_keys = [&](uint32_t first) {
        if (first < to) {
            load_rows<T, BLOCK_KEYS>(keys, min(BLOCK_KEYS, to - first), head_dim, [&](uint32_t t) { return source.key(first + t); });
        }
        cp_async_commit();
    };
    const auto load_values = [&](uint32_t first) {
        if (first < to) {
            load_rows<T, BLOCK_KEYS>(values, min(BLOCK_KEYS, to - first), head_dim,
                                     [&](uint32_t t) { return source.value(first + t); });
        }
        cp_async_commit();
    };
    Chain<T> chain = empty_chain<T>();
    // The first key of a block from which values were taken out.
    uint32_t taken_from = to;
    load_keys(from);
    load_values(from);
    for (uint32_t first = from; first < to; first += BLOCK_KEYS) {
        // All but the newest group: the keys (and, the first time, the queries).
        cp_async_wait<1>();
        __syncthreads();
        float scores[1][BLOCK_KEYS / 8][4] = {};
        scores_of_block<T, BLOCK_KEYS>(scores, queries + warp_m * 16 * T::STRIDE, keys);
        // Everyone has read the keys: the next may come.
        __syncthreads();
        load_keys(first + BLOCK_KEYS);
        uint32_t seen[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            seen[h] = own_keys[h] > first ? own_keys[h] - first : 0;
        }
        softmax_of_block<T>(scores, chain, seen, scale);
        cp_async_wait<1>();
        // The values are there for everyone.
        __syncthreads();
        // Where a row does not see a key that others see, its weight of 0 must not meet a NaN.
        if (ROWS_DIFFER && source.keys(0) < min(first + BLOCK_KEYS, to) && take_out_not_finite<T>(values)) {
            taken_from = min(taken_from, first);
        }
        add_values<T, BLOCK_KEYS>(chain.o, scores, values);
        // And have been read by everyone.
        __syncthreads();
        load_values(first + BLOCK_KEYS);
    }
    cp_async_wait<0>();
    if (ROWS_DIFFER) {
        add_not_finite<T>(chain, source, taken_from, to, own_keys);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        chain.sum[h] += __shfl_xor_sync(0xffffffffu, chain.sum[h], 1);
        chain.sum[h] += __shfl_xor_sync(0xffffffffu, chain.sum[h], 2);
    }
    return chain;
}

// Weights of the chains so far and of the next one when they are put together: rescaled to the larger maximum.
struct MergeWeights {
    float max;
    float old_chains;
    float next;

    // Written out, because a compiler may fuse either product with the sum: two kernels do this and must agree.
    __device__ __forceinline__ float merged(float a, float b) const { return fmaf(a, old_chains, __fmul_rn(b, next)); }
};

__device__ __forceinline__ MergeWeights merge_weights(float old_max, float next_max, float scale) {
    const float max = fmaxf(old_max, next_max);
    // A chain of which the row saw nothing changes nothing.
    const float old_chains = next_max == -INFINITY ? 1.0f : old_max == -INFINITY ? 0.0f : exp2_approx((old_max - max) * scale);
    const float next = next_max == -INFINITY ? 0.0f : old_max == -INFINITY ? 1.0f : exp2_approx((next_max - max) * scale);
    return {max, old_chains, next};
}

// Visits what a lane holds of a chain: visit(h, column, value) for row g + 8 h.
template <typename T, typename Visit>
__device__ __forceinline__ void each_column(Chain<T>& chain, uint32_t head_dim, Visit visit) {
#pragma unroll
    for (int own = 0; own < T::OWN_PAIRS; ++own) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t col = static_cast<uint32_t>(column_pair<T>(own) * 16 + half * 8) + threadIdx.x % 4 * 2;
            if (col < head_dim) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    visit(h, col, chain.o[own][0][half][2 * h], chain.o[own][0][half][2 * h + 1]);
                }
            }
        }
    }
}

// A chain in memory: head_dim values, the maximum, the sum.
constexpr uint32_t CHAIN_TAIL = 2;

// y = o / sum for the rows that exist.
template <typename T, typename Source>
__device__ __forceinline__ void write_output(bf16* y, Chain<T>& chain, const Source& source) {
    const uint32_t row = threadIdx.x / WARP / T::WARPS_D * 16 + threadIdx.x % WARP / 4;
    each_column<T>(chain, source.sizes.head_dim, [&](int h, uint32_t col, float a, float b) {
        if (row + 8 * h < source.queries) {
            const float value[2] = {a / chain.sum[h], b / chain.sum[h]};
            store_f32<2>(y + source.output(row + 8 * h) * source.sizes.head_dim + col, value);
        }
    });
}

// Writes a chain to memory, at `slot(i)` (in chains) for query i.
template <typename T, typename Source, typename Slot>
__device__ __forceinline__ void write_chain(float* chains, Chain<T>& chain, const Source& source, Slot slot) {
    const uint32_t row = threadIdx.x / WARP / T::WARPS_D * 16 + threadIdx.x % WARP / 4;
    const uint32_t head_dim = source.sizes.head_dim;
    each_column<T>(chain, head_dim, [&](int h, uint32_t col, float a, float b) {
        if (row + 8 * h < source.queries) {
            float* to = chains + slot(row + 8 * h) * (head_dim + CHAIN_TAIL);
            to[col] = a;
            to[col + 1] = b;
            if (col == 0) {
                to[head_dim] = chain.max[h];
                to[head_dim + 1] = chain.sum[h];
            }
        }
    });
}

// Packed sequences: a block walks all keys of its queries. Rows longer than SPLIT park the chains so far in `parked`, each lane
// what it holds itself, once every SPLIT keys: keeping two chains in registers would cost every step.
template <typename T>
__device__ __forceinline__ void attend_packed(unsigned char* shared_bytes, bf16* y, float* parked, const bf16* qkv,
                                              const uint32_t* tiles, AttentionSizes sizes) {
    const PackedQueries<bf16> source(qkv, tiles, sizes);
    bf16* queries = reinterpret_cast<bf16*>(shared_bytes);
    bf16* keys = queries + T::QUERIES * T::STRIDE;
    bf16* values = keys + BLOCK_KEYS * T::STRIDE;
    load_rows<T, T::QUERIES>(queries, source.queries, sizes.head_dim, [&](uint32_t i) { return source.query(i); });
    const float scale = sizes.scale * LOG2_E;
    const uint32_t most = source.most_keys();
    const uint32_t row = threadIdx.x / WARP / T::WARPS_D * 16 + threadIdx.x % WARP / 4;
    const uint32_t stride = sizes.head_dim + CHAIN_TAIL;
    for (uint32_t from = 0;; from += SPLIT) {
        Chain<T> chain = walk<T, true>(queries, keys, values, source, from, min(from + SPLIT, most));
        if (from != 0) {
            // Each lane of a row has the row's maximum and sum; only the values differ.
            MergeWeights weights[2] = {};
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (row + 8 * h < source.queries) {
                    const float* old = parked + source.output(row + 8 * h) * stride;
                    weights[h] = merge_weights(old[sizes.head_dim], chain.max[h], scale);
                    chain.max[h] = weights[h].max;
                    chain.sum[h] = weights[h].merged(old[sizes.head_dim + 1], chain.sum[h]);
                }
            }
#pragma unroll
            for (int own = 0; own < T::OWN_PAIRS; ++own) {
#pragma unroll
                for (int part = 0; part < 8; ++part) {
                    const int h = part / 2 % 2;
                    const uint32_t col =
                        static_cast<uint32_t>(column_pair<T>(own) * 16 + part / 4 * 8 + part % 2) + threadIdx.x % 4 * 2;
                    if (col < sizes.head_dim && row + 8 * h < source.queries) {
                        float& o = chain.o[own][0][part / 4][part % 4];
                        const float old = parked[source.output(row + 8 * h) * stride + col];
                        o = weights[h].merged(old, o);
                    }
                }
            }
        }
        if (from + SPLIT >= most) {
            write_output<T>(y, chain, source);
            return;
        }
        // The lanes of a row read its maximum and sum: not before all have read the old ones.
        __syncthreads();
        write_chain<T>(parked, chain, source, [&](uint32_t i) { return source.output(i); });
        __syncthreads();
    }
}

// Paged rows: a block has one chain of one row (blockIdx.z) for the query heads that share a key head.
template <typename T>
__device__ __forceinline__ void attend_paged(unsigned char* shared_bytes, bf16* y, float* chains, const bf16* qkv, const bf16* pages,
                                             const uint32_t* tables, const uint32_t* rows, AttentionSizes sizes) {
    const PagedQueries<bf16, T::QUERIES> source(qkv, pages, tables, rows, sizes);
    const uint32_t from = blockIdx.z * SPLIT;
    if (from >= source.length) {
        return;
    }
    bf16* queries = reinterpret_cast<bf16*>(shared_bytes);
    bf16* keys = queries + T::QUERIES * T::STRIDE;
    bf16* values = keys + BLOCK_KEYS * T::STRIDE;
    load_rows<T, T::QUERIES>(queries, source.queries, sizes.head_dim, [&](uint32_t i) { return source.query(i); });
    Chain<T> chain = walk<T, false>(queries, keys, values, source, from, min(from + SPLIT, source.length));
    if (sizes.splits == 1) {
        write_output<T>(y, chain, source);
    } else {
        write_chain<T>(chains, chain, source, [&](uint32_t i) { return source.output(i) * sizes.splits + blockIdx.z; });
    }
}

template <int HEAD_DIM>
using Packed = AttentionTiles<HEAD_DIM, 4, 1>;
template <int HEAD_DIM>
using Paged = AttentionTiles<HEAD_DIM, 1, 4>;
constexpr int THREADS = 128;
// Where blocks a multiprocessor are asked for, ptxas would aim at one more and spill.

// attention_mma_<d>: y = softmax(scale q k^T, causal within each sequence) v, for head_dim up to d (a multiple of 8).
// qkv: [rows, (heads + 2 kv_heads) head_dim] bf16;  y: [rows, heads * head_dim] bf16 (=);  tiles: [count, 4], see PackedQueries, at
// most 64 queries each;  parked: [rows, heads, head_dim + 2] f32, used where splits > 1.  Scores, softmax and sums in f32, weights
// rounded to bf16 before they meet the values; 2^x with relative error below 2^-22.
// Geometry: grid (count * heads), 128 threads, SHARED_BYTES of the tile (head_attention in src/backend/cuda/attention.rs).
// Limit: 4 head_dim FLOPs a visible pair of query and key on tensor cores.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_mma_32(bf16* __restrict__ y, float* __restrict__ parked, const bf16* __restrict__ qkv,
                     const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_packed<Packed<32>>(shared, y, parked, qkv, tiles, sizes);
}
EXPORT_KERNEL(attention_mma_32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_mma_64(bf16* __restrict__ y, float* __restrict__ parked, const bf16* __restrict__ qkv,
                     const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_packed<Packed<64>>(shared, y, parked, qkv, tiles, sizes);
}
EXPORT_KERNEL(attention_mma_64, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    attention_mma_80(bf16* __restrict__ y, float* __restrict__ parked, const bf16* __restrict__ qkv,
                     const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_packed<Packed<80>>(shared, y, parked, qkv, tiles, sizes);
}
EXPORT_KERNEL(attention_mma_80, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_mma_96(bf16* __restrict__ y, float* __restrict__ parked, const bf16* __restrict__ qkv,
                     const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_packed<Packed<96>>(shared, y, parked, qkv, tiles, sizes);
}
EXPORT_KERNEL(attention_mma_96, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_mma_128(bf16* __restrict__ y, float* __restrict__ parked, const bf16* __restrict__ qkv,
                      const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_packed<Packed<128>>(shared, y, parked, qkv, tiles, sizes);
}
EXPORT_KERNEL(attention_mma_128, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_mma_256(bf16* __restrict__ y, float* __restrict__ parked, const bf16* __restrict__ qkv,
                      const uint32_t* __restrict__ tiles, AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_packed<Packed<256>>(shared, y, parked, qkv, tiles, sizes);
}
EXPORT_KERNEL(attention_mma_256, THREADS)

// attention_paged_mma_<d>: the same for rows over pages (kv_cache.cu); q is read from qkv.  tables, rows: see PagedQueries.
// chains: [rows, heads, splits, head_dim + 2] f32, written where splits > 1, for attention_paged_merge to put together.
// Geometry: grid (rows * kv_heads, parts of 16 of a group, splits), 128 threads, SHARED_BYTES of the tile.
// Limit: the keys and values of each row, read once.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_paged_mma_32(bf16* __restrict__ y, float* __restrict__ chains, const bf16* __restrict__ qkv,
                           const bf16* __restrict__ pages, const uint32_t* __restrict__ tables, const uint32_t* __restrict__ rows,
                           AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_paged<Paged<32>>(shared, y, chains, qkv, pages, tables, rows, sizes);
}
EXPORT_KERNEL(attention_paged_mma_32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS, 6)
    attention_paged_mma_64(bf16* __restrict__ y, float* __restrict__ chains, const bf16* __restrict__ qkv,
                           const bf16* __restrict__ pages, const uint32_t* __restrict__ tables, const uint32_t* __restrict__ rows,
                           AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_paged<Paged<64>>(shared, y, chains, qkv, pages, tables, rows, sizes);
}
EXPORT_KERNEL(attention_paged_mma_64, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_paged_mma_80(bf16* __restrict__ y, float* __restrict__ chains, const bf16* __restrict__ qkv,
                           const bf16* __restrict__ pages, const uint32_t* __restrict__ tables, const uint32_t* __restrict__ rows,
                           AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_paged<Paged<80>>(shared, y, chains, qkv, pages, tables, rows, sizes);
}
EXPORT_KERNEL(attention_paged_mma_80, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_paged_mma_96(bf16* __restrict__ y, float* __restrict__ chains, const bf16* __restrict__ qkv,
                           const bf16* __restrict__ pages, const uint32_t* __restrict__ tables, const uint32_t* __restrict__ rows,
                           AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_paged<Paged<96>>(shared, y, chains, qkv, pages, tables, rows, sizes);
}
EXPORT_KERNEL(attention_paged_mma_96, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_paged_mma_128(bf16* __restrict__ y, float* __restrict__ chains, const bf16* __restrict__ qkv,
                            const bf16* __restrict__ pages, const uint32_t* __restrict__ tables, const uint32_t* __restrict__ rows,
                            AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_paged<Paged<128>>(shared, y, chains, qkv, pages, tables, rows, sizes);
}
EXPORT_KERNEL(attention_paged_mma_128, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_paged_mma_256(bf16* __restrict__ y, float* __restrict__ chains, const bf16* __restrict__ qkv,
                            const bf16* __restrict__ pages, const uint32_t* __restrict__ tables, const uint32_t* __restrict__ rows,
                            AttentionSizes sizes) {
    DYN_SMEM(shared);
    attend_paged<Paged<256>>(shared, y, chains, qkv, pages, tables, rows, sizes);
}
EXPORT_KERNEL(attention_paged_mma_256, THREADS)

// attention_paged_merge: puts the chains of each row and head together in ascending order, as attend_packed does, and divides.
// chains: as above;  rows: as above;  y: [rows, heads * head_dim] bf16 (=).
// Geometry: grid (rows * heads), 128 threads over the columns.  Limit: the chains read once.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_paged_merge(bf16* __restrict__ y, const float* __restrict__ chains, const uint32_t* __restrict__ rows,
                          AttentionSizes sizes) {
    const size_t item = blockIdx.x;
    const uint32_t length = rows[2 * (item / sizes.heads) + 1];
    const uint32_t stride = sizes.head_dim + CHAIN_TAIL;
    const float* first = chains + item * sizes.splits * stride;
    for (uint32_t col = threadIdx.x; col < sizes.head_dim; col += THREADS) {
        float max = first[sizes.head_dim];
        float sum = first[sizes.head_dim + 1];
        float o = first[col];
        for (uint32_t split = 1; split * SPLIT < length; ++split) {
            const float* next = first + split * stride;
            const MergeWeights weights = merge_weights(max, next[sizes.head_dim], sizes.scale * LOG2_E);
            max = weights.max;
            sum = weights.merged(sum, next[sizes.head_dim + 1]);
            o = weights.merged(o, next[col]);
        }
        y[item * sizes.head_dim + col] = to_bf16(o / sum);
    }
}
EXPORT_KERNEL(attention_paged_merge, THREADS)
