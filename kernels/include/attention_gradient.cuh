// What the two kernels of attention's gradient have in common, on tensor cores or without. For query row i of one head, which sees
// keys t <= i of its sequence:
//   s[t] = scale q[i] k[t];  p = softmax(s);  D = d_y[i] y[i];  ds[t] = p[t] (d_y[i] v[t] - D) scale
//   d_q[i] = sum over t of ds[t] k[t];  d_k[t] += ds[t] q[i];  d_v[t] += p[t] d_y[i]
//
// Nothing of a forward pass is kept but y. The first kernel walks a query's keys with a running maximum and sum, as the forward
// pass does, and leaves both in one number (the logarithm of the sum) beside D; the second walks the queries that see a key, head
// after head, and gets p from that number. So every sum has one owner and one order, for 7 products where 5 would do.
#pragma once

#include "attention_source.cuh"

// What is kept of a row and head: the logarithm of the sum of its softmax (base e, or 2 on tensor cores), and D.
constexpr uint32_t KEPT = 2;

// Keys of one sequence and one key head, and the queries that see them. Entries of `tiles` as for PackedQueries, of keys.
template <typename T>
struct PackedKeys {
    const T* qkv;
    const T* d_y;
    AttentionSizes sizes;
    uint32_t start;
    // First key of the tile within the sequence, number of keys, and of queries in the sequence.
    uint32_t first;
    uint32_t keys;
    uint32_t length;
    uint32_t kv_head;

    __device__ __forceinline__ PackedKeys(const T* qkv, const T* d_y, const uint32_t* tiles, AttentionSizes sizes)
        : qkv(qkv), d_y(d_y), sizes(sizes), kv_head(blockIdx.x % sizes.kv_heads) {
        const uint32_t* tile = tiles + static_cast<size_t>(blockIdx.x / sizes.kv_heads) * 4;
        start = tile[0];
        first = tile[1];
        keys = tile[2];
        length = tile[3];
    }
    // Query heads that read this key head, and the first of them.
    __device__ __forceinline__ uint32_t group() const { return sizes.heads / sizes.kv_heads; }
    __device__ __forceinline__ uint32_t first_head() const { return kv_head * group(); }
    // Where row i of the sequence begins in qkv and in its gradient.
    __device__ __forceinline__ size_t row(uint32_t i) const {
        return static_cast<size_t>(start + i) * ((sizes.heads + 2 * sizes.kv_heads) * static_cast<size_t>(sizes.head_dim));
    }
    // Where in such a row the key head's key and value begin.
    __device__ __forceinline__ uint32_t key_col() const { return (sizes.heads + kv_head) * sizes.head_dim; }
    __device__ __forceinline__ uint32_t value_col() const { return key_col() + sizes.kv_heads * sizes.head_dim; }
    __device__ __forceinline__ const T* query(uint32_t i, uint32_t head) const { return qkv + row(i) + head * sizes.head_dim; }
    // Row i and a head, as an index of [rows, heads].
    __device__ __forceinline__ size_t item(uint32_t i, uint32_t head) const {
        return static_cast<size_t>(start + i) * sizes.heads + head;
    }
    __device__ __forceinline__ const T* d_output(uint32_t i, uint32_t head) const { return d_y + item(i, head) * sizes.head_dim; }
};
