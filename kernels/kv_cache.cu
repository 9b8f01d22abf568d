// Pages of keys and values: [page][k, v][kv_head][PAGE_TOKENS][head_dim], so that what attention reads of a page for one head is
// one piece of memory.

#include "kv_pages.cuh"
#include "pack.cuh"

// Mirrors KvWriteSizes of src/backend/cuda/kv_cache.rs.
struct KvWriteSizes {
    uint32_t rows;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
};
static_assert(sizeof(KvWriteSizes) == 16 && offsetof(KvWriteSizes, head_dim) == 12, "layout shared with Rust");

constexpr int THREADS = 256;

template <int N, typename T>
__device__ __forceinline__ void kv_write_item(T* pages, const T* qkv, const uint32_t* slots, KvWriteSizes sizes) {
    const uint32_t in_row = 2 * sizes.kv_heads * sizes.head_dim / N;
    const size_t item = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (item >= static_cast<size_t>(sizes.rows) * in_row) {
        return;
    }
    const size_t row = item / in_row;
    // Column among those of k and v, which follow q's.
    const uint32_t col = static_cast<uint32_t>(item % in_row) * N;
    const uint32_t head = col / sizes.head_dim;
    const uint32_t slot = slots[row];
    const KvPages<T> view = {pages, sizes.kv_heads, sizes.head_dim};
    // k's heads and v's follow each other in a row as they do in a page.
    T* to = view.token(slot / PAGE_TOKENS, head, slot % PAGE_TOKENS) + col % sizes.head_dim;
    const size_t q_cols = static_cast<size_t>(sizes.heads) * sizes.head_dim;
    const T* from = qkv + row * (q_cols + 2 * sizes.kv_heads * sizes.head_dim) + q_cols + col;
    store_pack<N>(to, load_pack<N>(from));
}

template <typename T>
__device__ __forceinline__ void kv_write(T* pages, const T* qkv, const uint32_t* slots, KvWriteSizes sizes) {
    constexpr int N = 16 / sizeof(T);
    if (sizes.head_dim % N == 0) {
        kv_write_item<N>(pages, qkv, slots, sizes);
    } else {
        kv_write_item<1>(pages, qkv, slots, sizes);
    }
}

// kv_write_<x>: k and v of each row of qkv [rows, (heads + 2 kv_heads) head_dim] to its slot (page * PAGE_TOKENS + offset).
// Geometry: 256 threads a block, a thread for 16 bytes (one element where head_dim does not allow it).
// Limit: 1 read + 1 write of those columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    kv_write_f32(float* __restrict__ pages, const float* __restrict__ qkv, const uint32_t* __restrict__ slots, KvWriteSizes sizes) {
    kv_write(pages, qkv, slots, sizes);
}
EXPORT_KERNEL(kv_write_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    kv_write_bf16(bf16* __restrict__ pages, const bf16* __restrict__ qkv, const uint32_t* __restrict__ slots, KvWriteSizes sizes) {
    kv_write(pages, qkv, slots, sizes);
}
EXPORT_KERNEL(kv_write_bf16, THREADS)
