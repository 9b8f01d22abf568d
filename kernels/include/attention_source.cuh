// Which queries a block of an attention kernel computes and where their keys lie: packed sequences, or pages of a cache. The
// arithmetic (attention.cu, attention_mma.cu) is the same code for both, so a row has the same bits from either.
#pragma once

#include "kv_pages.cuh"

// Mirrors AttentionSizes of src/backend/cuda/attention.rs.
struct AttentionSizes {
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    // Factor on q . k.
    float scale;
    // Packed: number of tiles. Paged: number of rows.
    uint32_t count;
    // Runs of SPLIT keys that the longest sequence has.
    uint32_t splits;
};
static_assert(sizeof(AttentionSizes) == 24 && offsetof(AttentionSizes, splits) == 20, "layout shared with Rust");

// Keys whose softmax is one chain. A longer row is put together from such runs in ascending order (merge in attention_mma.cu),
// whether one block walks them all or each has its own.
constexpr uint32_t SPLIT = 1024;

// Queries of one sequence and one head, the sequence's keys in rows of the same tensor. Entry of `tiles`: row of the sequence's
// first token, first query of the tile within the sequence, number of queries, the sequence's length.
template <typename T>
struct PackedQueries {
    const T* qkv;
    AttentionSizes sizes;
    uint32_t start;
    uint32_t first;
    uint32_t queries;
    uint32_t head;
    uint32_t kv_head;

    __device__ __forceinline__ PackedQueries(const T* qkv, const uint32_t* tiles, AttentionSizes sizes)
        : qkv(qkv), sizes(sizes), head(blockIdx.x % sizes.heads), kv_head(head / (sizes.heads / sizes.kv_heads)) {
        const uint32_t* tile = tiles + static_cast<size_t>(blockIdx.x / sizes.heads) * 4;
        start = tile[0];
        first = tile[1];
        queries = tile[2];
    }
    __device__ __forceinline__ size_t qkv_cols() const {
        return static_cast<size_t>(sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
    }
    // Query i of the tile.
    __device__ __forceinline__ const T* query(uint32_t i) const {
        return qkv + static_cast<size_t>(start + first + i) * qkv_cols() + static_cast<size_t>(head) * sizes.head_dim;
    }
    // Keys that query i sees.
    __device__ __forceinline__ uint32_t keys(uint32_t i) const { return first + i + 1; }
    // Keys that any query of the tile sees.
    __device__ __forceinline__ uint32_t most_keys() const { return first + queries; }
    __device__ __forceinline__ const T* key(uint32_t t) const {
        return qkv + static_cast<size_t>(start + t) * qkv_cols() + static_cast<size_t>(sizes.heads + kv_head) * sizes.head_dim;
    }
    __device__ __forceinline__ const T* value(uint32_t t) const {
        return key(t) + static_cast<size_t>(sizes.kv_heads) * sizes.head_dim;
    }
    // Row and head of query i, as an index of [rows, heads].
    __device__ __forceinline__ size_t output(uint32_t i) const {
        return static_cast<size_t>(start + first + i) * sizes.heads + head;
    }
};

// The query heads of one row that share a key head (at most `TILE` of them), the row's keys in pages. `rows`: for each row where
// its page numbers begin in `tables`, and how many keys it sees. blockIdx.y: which part of the group.
template <typename T, uint32_t TILE>
struct PagedQueries {
    KvPages<const T> pages;
    const T* qkv;
    const uint32_t* table;
    AttentionSizes sizes;
    uint32_t row;
    uint32_t length;
    uint32_t kv_head;
    uint32_t head;
    uint32_t queries;

    __device__ __forceinline__ PagedQueries(const T* qkv, const T* memory, const uint32_t* tables, const uint32_t* rows,
                                            AttentionSizes sizes)
        : pages{memory, sizes.kv_heads, sizes.head_dim},
          qkv(qkv),
          sizes(sizes),
          row(blockIdx.x / sizes.kv_heads),
          kv_head(blockIdx.x % sizes.kv_heads) {
        table = tables + rows[2 * static_cast<size_t>(row)];
        length = rows[2 * static_cast<size_t>(row) + 1];
        const uint32_t group = sizes.heads / sizes.kv_heads;
        head = kv_head * group + blockIdx.y * TILE;
        queries = min(TILE, group - blockIdx.y * TILE);
    }
    __device__ __forceinline__ const T* query(uint32_t i) const {
        const size_t cols = static_cast<size_t>(sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
        return qkv + row * cols + static_cast<size_t>(head + i) * sizes.head_dim;
    }
    __device__ __forceinline__ uint32_t keys(uint32_t) const { return length; }
    __device__ __forceinline__ uint32_t most_keys() const { return length; }
    __device__ __forceinline__ const T* key(uint32_t t) const {
        return pages.token(table[t / PAGE_TOKENS], kv_head, t % PAGE_TOKENS);
    }
    __device__ __forceinline__ const T* value(uint32_t t) const {
        return pages.token(table[t / PAGE_TOKENS], sizes.kv_heads + kv_head, t % PAGE_TOKENS);
    }
    __device__ __forceinline__ size_t output(uint32_t i) const { return static_cast<size_t>(row) * sizes.heads + head + i; }
};
