// Pages of keys and values: [page][k, v][kv_head][PAGE_TOKENS][head_dim], so that what attention reads of a page for one head is
// one piece of memory. What writes them rotates q and k on the way: the columns of a row of q, k and v are read once.

#include "kv_pages.cuh"
#include "rotary.cuh"

// Mirrors KvWriteSizes of src/backend/cuda/kv_cache.rs.
struct KvWriteSizes {
    uint32_t rows;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t half;
};
static_assert(sizeof(KvWriteSizes) == 16 && offsetof(KvWriteSizes, half) == 12, "layout shared with Rust");

constexpr int THREADS = 256;

template <int N, bool INTERLEAVED, typename T>
__device__ __forceinline__ void kv_write_item(T* pages, T* qkv, const float* cos, const float* sin, const uint32_t* positions,
                                              const uint32_t* slots, KvWriteSizes sizes) {
    const uint32_t in_head = sizes.half / N;
    const uint32_t heads = sizes.heads + 2 * sizes.kv_heads;
    const uint32_t in_row = heads * in_head;
    const size_t item = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (item >= static_cast<size_t>(sizes.rows) * in_row) {
        return;
    }
    const size_t row = item / in_row;
    const uint32_t rest = static_cast<uint32_t>(item % in_row);
    // Heads of q, then k's and v's, which follow each other in a row as they do in a page.
    const uint32_t head = rest / in_head;
    const uint32_t first = rest % in_head * N;
    T* from = qkv + (row * heads + head) * 2 * sizes.half;
    T* to = from;
    if (head >= sizes.heads) {
        const KvPages<T> view = {pages, sizes.kv_heads, 2 * sizes.half};
        const uint32_t slot = slots[row];
        to = view.token(slot / PAGE_TOKENS, head - sizes.heads, slot % PAGE_TOKENS);
    }
    if (head >= sizes.heads + sizes.kv_heads) {
        constexpr int STEP = PACK<T, 2 * N>;
#pragma unroll
        for (int i = 0; i < 2 * N; i += STEP) {
            store_pack<STEP>(to + 2 * first + i, load_pack<STEP>(from + 2 * first + i));
        }
        return;
    }
    const size_t table = static_cast<size_t>(positions[row]) * sizes.half;
    rotate<N, INTERLEAVED, true>(to, from, cos + table, sin + table, first, sizes.half);
}

// A thread takes eight pairs where addresses allow it (16-byte accesses), else one: src/backend/cuda/kv_cache.rs chooses the same
// when it sizes the grid.
template <bool INTERLEAVED, typename T>
__device__ __forceinline__ void kv_write(T* pages, T* qkv, const float* cos, const float* sin, const uint32_t* positions,
                                         const uint32_t* slots, KvWriteSizes sizes) {
    if (sizes.half % 8 == 0) {
        kv_write_item<8, INTERLEAVED>(pages, qkv, cos, sin, positions, slots, sizes);
    } else {
        kv_write_item<1, INTERLEAVED>(pages, qkv, cos, sin, positions, slots, sizes);
    }
}

// kv_write_<pairing>_<x>: of each row of qkv [rows, (heads + 2 kv_heads) 2 half], q rotated in place, k rotated and v to the row's
// slot (page * PAGE_TOKENS + offset); k and v stay in qkv as they were.  cos, sin: [positions, half] f32; positions, slots: one a
// row.  Pairings as in rope.cu.
// Geometry: 256 threads a block, a thread for eight pairs (one where half is no multiple of 8).
// Limit: 1 read + 1 write of qkv; [64, 6144] bf16, a step of 64 sequences, at 4.3 TB/s: 0.4 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    kv_write_half_f32(float* __restrict__ pages, float* __restrict__ qkv, const float* __restrict__ cos,
                      const float* __restrict__ sin, const uint32_t* __restrict__ positions,
                      const uint32_t* __restrict__ slots, KvWriteSizes sizes) {
    kv_write<false>(pages, qkv, cos, sin, positions, slots, sizes);
}
EXPORT_KERNEL(kv_write_half_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    kv_write_half_bf16(bf16* __restrict__ pages, bf16* __restrict__ qkv, const float* __restrict__ cos,
                       const float* __restrict__ sin, const uint32_t* __restrict__ positions,
                       const uint32_t* __restrict__ slots, KvWriteSizes sizes) {
    kv_write<false>(pages, qkv, cos, sin, positions, slots, sizes);
}
EXPORT_KERNEL(kv_write_half_bf16, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    kv_write_interleaved_f32(float* __restrict__ pages, float* __restrict__ qkv, const float* __restrict__ cos,
                             const float* __restrict__ sin, const uint32_t* __restrict__ positions,
                             const uint32_t* __restrict__ slots, KvWriteSizes sizes) {
    kv_write<true>(pages, qkv, cos, sin, positions, slots, sizes);
}
EXPORT_KERNEL(kv_write_interleaved_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    kv_write_interleaved_bf16(bf16* __restrict__ pages, bf16* __restrict__ qkv, const float* __restrict__ cos,
                              const float* __restrict__ sin, const uint32_t* __restrict__ positions,
                              const uint32_t* __restrict__ slots, KvWriteSizes sizes) {
    kv_write<true>(pages, qkv, cos, sin, positions, slots, sizes);
}
EXPORT_KERNEL(kv_write_interleaved_bf16, THREADS)
