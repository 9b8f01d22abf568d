// Where a token's key and value lie in the KV cache.
#pragma once

#include "device.cuh"

// PAGE_TOKENS of src/ops/kv_cache.rs.
constexpr uint32_t PAGE_TOKENS = 16;

template <typename T>
struct KvPages {
    T* pages;
    uint32_t kv_heads;
    uint32_t head_dim;

    // `head`: kv_head for its key, kv_heads + kv_head for its value.
    __device__ __forceinline__ T* token(uint32_t page, uint32_t head, uint32_t offset) const {
        const size_t vector = (static_cast<size_t>(page) * 2 * kv_heads + head) * PAGE_TOKENS + offset;
        return pages + vector * head_dim;
    }
};
