// Gradient of the embedding. The rows that share a token id are added by the same threads, one after the other: no atomics.

#include "pack.cuh"

// Mirrors EmbeddingBackwardSizes of src/backend/cuda/embedding_backward.rs.
struct EmbeddingBackwardSizes {
    // Different token ids.
    uint32_t ids;
    uint32_t hidden;
};
static_assert(sizeof(EmbeddingBackwardSizes) == 8 && offsetof(EmbeddingBackwardSizes, hidden) == 4, "layout shared with Rust");

constexpr int THREADS = 256;

// embedding_backward: d_table[id] += d_y[r] for the rows r of each id, in their order.  d_table: [vocab, hidden] f32;  d_y: [rows,
// hidden] f32;  ids: [ids, 2], a token id and where its rows begin in `rows`, then [., end];  rows: rows of d_y by id.
// Geometry: grid (ids, parts of 256 columns), 256 threads.  Limit: d_y read once, the rows of d_table that are named read and written.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward(float* __restrict__ d_table, const float* __restrict__ d_y, const uint32_t* __restrict__ ids,
                       const uint32_t* __restrict__ rows, EmbeddingBackwardSizes sizes) {
    const uint32_t col = blockIdx.y * THREADS + threadIdx.x;
    if (blockIdx.x >= sizes.ids || col >= sizes.hidden) {
        return;
    }
    const uint32_t* own = ids + 2 * static_cast<size_t>(blockIdx.x);
    float* to = d_table + static_cast<size_t>(own[0]) * sizes.hidden + col;
    float sum = *to;
    for (uint32_t i = own[1]; i < own[3]; ++i) {
        sum += d_y[static_cast<size_t>(rows[i]) * sizes.hidden + col];
    }
    *to = sum;
}
EXPORT_KERNEL(embedding_backward, THREADS)
