// Matrices in four bits: NF4 (QLoRA, arXiv 2305.14314). A row of a matrix is its codes, two a byte, the first in the upper half, then
// a magnitude (f32) for each 64 of them, filled up to a multiple of four magnitudes. Rows are whole blocks of 64 and begin at
// multiples of 16 bytes.
//
// A weight is the value of its code times the magnitude of its block, rounded once to f32; in bf16 arithmetic that is rounded to
// bf16. All kernels make the same number of it, and the fused products add up in the order and by the instruction of the products
// with dense weights on the same GPU: a row has the bits that the restored matrix gives it.
#pragma once

#include "linear_tile.cuh"

// Mirrors Nf4Sizes of src/backend/cuda/nf4.rs.
struct Nf4Sizes {
    LinearSizes linear;
    // Values of the codes 0 to 15.
    float codebook[16];
};
static_assert(sizeof(Nf4Sizes) == 88 && offsetof(Nf4Sizes, codebook) == 24, "layout shared with Rust");

constexpr int CODES = 16;
// Weights that share a magnitude.
constexpr int BLOCK = 64;

// Bytes from one row of a matrix to the next.
__device__ __forceinline__ size_t row_bytes(uint32_t in_features) {
    return in_features / 2 + (in_features / BLOCK + 3) / 4 * 16;
}

// The codebook in shared memory, where the lanes of a warp look different codes up in one access. Ends in a barrier. One thread
// writes it all: a parameter that is indexed by thread would be copied to local memory first.
__device__ __forceinline__ void load_codebook(float* codebook, const Nf4Sizes& sizes) {
    if (threadIdx.x == 0) {
#pragma unroll
        for (int code = 0; code < CODES; ++code) {
            codebook[code] = sizes.codebook[code];
        }
    }
    __syncthreads();
}

// The weights of a byte's two codes as a register of a fragment: the first in the lower half.
__device__ __forceinline__ uint32_t weight_pair(const float* codebook, float magnitude, uint32_t byte) {
    return pack_bf16(codebook[byte >> 4 & 15] * magnitude, codebook[byte & 15] * magnitude);
}
