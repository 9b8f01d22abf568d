// Dropout by a counter-based generator: the mask of a seed and a stream is the same here as on the CPU, bit for bit. The gradient
// is the same kernel on d_y.

#include "pack.cuh"

// Mirrors DropoutSizes of src/backend/cuda/dropout.rs.
struct DropoutSizes {
    uint32_t rows;
    uint32_t cols;
    // Low and high word.
    uint32_t seed[2];
    uint32_t stream[2];
    // An element is kept when its 32 random bits are at least this.
    uint32_t threshold;
    // What a kept element is multiplied with.
    float factor;
};
static_assert(sizeof(DropoutSizes) == 32 && offsetof(DropoutSizes, factor) == 28, "layout shared with Rust");

constexpr int THREADS = 256;
// Elements a thread computes: one block of random words.
constexpr int STEP = 4;

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), as src/random.rs has it:
// four words of block `index` of a stream.
__device__ __forceinline__ void philox(uint32_t (&counter)[STEP], uint64_t index, DropoutSizes sizes) {
    uint32_t key[2] = {sizes.seed[0], sizes.seed[1]};
    counter[0] = static_cast<uint32_t>(index);
    counter[1] = static_cast<uint32_t>(index >> 32);
    counter[2] = sizes.stream[0];
    counter[3] = sizes.stream[1];
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t product_0 = uint64_t{0xd2511f53} * counter[0];
        const uint64_t product_1 = uint64_t{0xcd9e8d57} * counter[2];
        counter[0] = static_cast<uint32_t>(product_1 >> 32) ^ counter[1] ^ key[0];
        counter[1] = static_cast<uint32_t>(product_1);
        counter[2] = static_cast<uint32_t>(product_0 >> 32) ^ counter[3] ^ key[1];
        counter[3] = static_cast<uint32_t>(product_0);
        key[0] += 0x9e3779b9;
        key[1] += 0xbb67ae85;
    }
}

template <typename T>
__device__ __forceinline__ void dropout(T* y, const T* x, DropoutSizes sizes) {
    const size_t count = static_cast<size_t>(sizes.rows) * sizes.cols;
    const size_t block = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    const size_t first = block * STEP;
    if (first >= count) {
        return;
    }
    uint32_t words[STEP];
    philox(words, block, sizes);
    if (first + STEP <= count) {
        float value[STEP];
        load_f32<STEP>(value, x + first);
#pragma unroll
        for (int k = 0; k < STEP; ++k) {
            value[k] = words[k] >= sizes.threshold ? value[k] * sizes.factor : 0.0f;
        }
        store_f32<STEP>(y + first, value);
    } else {
#pragma unroll
        for (int k = 0; k < STEP; ++k) {
            if (first + k < count) {
                y[first + k] = from_f32<T>(words[k] >= sizes.threshold ? to_f32(x[first + k]) * sizes.factor : 0.0f);
            }
        }
    }
}

// dropout_<x>: y = x * factor where the element is kept, else 0; element i = row * cols + column takes word i % 4 of block i / 4.
// x, y (=): [rows, cols].  Geometry: 256 threads a block, a thread for four elements.
// Limit: 1 read + 1 write; the generator's 20 wide products a thread hide behind them.
extern "C" __global__ void __launch_bounds__(THREADS)
    dropout_f32(float* __restrict__ y, const float* __restrict__ x, DropoutSizes sizes) {
    dropout(y, x, sizes);
}
EXPORT_KERNEL(dropout_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    dropout_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, DropoutSizes sizes) {
    dropout(y, x, sizes);
}
EXPORT_KERNEL(dropout_bf16, THREADS)
