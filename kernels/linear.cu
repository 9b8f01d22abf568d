// Linear: y = x W^T (+ bias) (+ y), the matrix product that is nearly all the work. bf16 on tensor cores; f32 on ordinary ones.
//
// Every output is one chain of f32 sums over k in one order, whatever the tile: the kernels of one family differ in how many
// outputs a block computes, not in how. So a row has the same bits in a batch of one and of ten thousand, and k is never split.

#include "fma_tiles.cuh"
#include "linear_tile.cuh"

// ---- bf16

// Rows for thousands of tokens: 2 * 128 * 128 / (2 * (128 + 128)) = 64 FLOPs a byte of shared memory.
using ManyRows = MmaTiles<128, 128, 64, 64, 32, 3>;
// Some dozens: more, smaller blocks, so that they cover the multiprocessors.
using SomeRows = MmaTiles<64, 64, 64, 32, 32, 4>;
// Decoding: the weights are read once and that is the cost, so blocks are narrow and deep.
using FewRows = MmaTiles<16, 32, 128, 16, 8, 6>;

// One k step of 16 of a warp's tile: fragments from shared memory, then the tensor cores.
template <typename T>
__device__ __forceinline__ void multiply_step(float (&sums)[T::WM / 16][T::WN / 8][4], const bf16* a_tile, const bf16* b_tile,
                                              int warp_m, int warp_n, int k) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    uint32_t a[T::WM / 16][4];
    uint32_t b[T::WN / 8][2];
#pragma unroll
    for (int i = 0; i < T::WM / 16; ++i) {
        // Matrices: rows 0-7 and 8-15 of k 0-7, then of k 8-15.
        ldmatrix_x4(a[i], a_tile + swizzled<T>(warp_m + i * 16 + lane % 16, k + lane / 16 * 8));
    }
    if constexpr (T::WN % 16 == 0) {
#pragma unroll
        for (int j = 0; j < T::WN / 8; j += 2) {
            // Matrices: outputs 0-7 of k 0-7 and 8-15, then outputs 8-15.
            uint32_t both[4];
            ldmatrix_x4(both, b_tile + swizzled<T>(warp_n + j * 8 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
            b[j][0] = both[0];
            b[j][1] = both[1];
            b[j + 1][0] = both[2];
            b[j + 1][1] = both[3];
        }
    } else {
#pragma unroll
        for (int j = 0; j < T::WN / 8; ++j) {
            ldmatrix_x2(b[j], b_tile + swizzled<T>(warp_n + j * 8 + lane % 8, k + lane / 8 % 2 * 8));
        }
    }
    mma_tile_bf16<T::WM / 16, T::WN / 8>(sums, a, b);
}

template <typename T, typename Out>
__device__ __forceinline__ void linear_mma(unsigned char* shared_bytes, Out* y, const bf16* x, const bf16* weight,
                                           const float* bias, LinearSizes sizes) {
    bf16* shared = reinterpret_cast<bf16*>(shared_bytes);
    const Tile tile = tile_of_block<T::BM, T::BN>(sizes);
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    const int warp_m = warp / T::WARPS_N * T::WM;
    const int warp_n = warp % T::WARPS_N * T::WN;
    const bf16* weights = weight + static_cast<size_t>(sizes.first_out) * sizes.in_features;
    const uint32_t steps = (sizes.in_features + T::BK - 1) / T::BK;
    float sums[T::WM / 16][T::WN / 8][4] = {};
    const auto load = [&](uint32_t step) {
        bf16* stage = shared + step % T::STAGES * T::STAGE_ELEMENTS;
        load_stage<T, T::BM>(stage, x, tile.row, sizes.rows, step * T::BK, sizes.in_features);
        load_stage<T, T::BN>(stage + T::BM * T::BK, weights, tile.col, sizes.out_features, step * T::BK, sizes.in_features);
    };
    walk_stages<T::STAGES>(steps, load, [&](uint32_t step) {
        const bf16* a_tile = shared + step % T::STAGES * T::STAGE_ELEMENTS;
#pragma unroll
        for (int k = 0; k < T::BK; k += 16) {
            multiply_step<T>(sums, a_tile, a_tile + T::BM * T::BK, warp_m, warp_n, k);
        }
    });
    finish_tile<T>(y, bias, sums, tile, warp_m, warp_n, sizes);
}

// linear_<rows>_<y>_bf16: y = x W^T (+ bias) (+ y).  x: [rows, in_features] bf16;  weight: [any, in_features] bf16;
// bias: [out_features] f32;  y: [rows, out_features], written (=) or added to (+=). Products exact, sums in f32, k in steps of 16
// in ascending order by mma.m16n8k16; y is rounded once.
// Geometry: a block a tile of y, tiles numbered as in tile_of_block; THREADS and SHARED_BYTES of the tile, which
// src/backend/cuda/linear.rs repeats.  Any sizes; in_features a multiple of 8 (the caller pads with zeros).
// Limit: 2 rows out_features in_features FLOPs; for few rows 2 out_features in_features bytes of weights.
extern "C" __global__ void __launch_bounds__(ManyRows::THREADS, 1)
    linear_many_f32_bf16(float* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight,
                         const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_mma<ManyRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_many_f32_bf16, ManyRows::THREADS)

extern "C" __global__ void __launch_bounds__(ManyRows::THREADS, 1)
    linear_many_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight,
                          const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_mma<ManyRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_many_bf16_bf16, ManyRows::THREADS)

extern "C" __global__ void __launch_bounds__(SomeRows::THREADS)
    linear_some_f32_bf16(float* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight,
                         const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_mma<SomeRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_some_f32_bf16, SomeRows::THREADS)

extern "C" __global__ void __launch_bounds__(SomeRows::THREADS)
    linear_some_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight,
                          const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_mma<SomeRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_some_bf16_bf16, SomeRows::THREADS)

extern "C" __global__ void __launch_bounds__(FewRows::THREADS)
    linear_few_f32_bf16(float* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight,
                        const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_mma<FewRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_few_f32_bf16, FewRows::THREADS)

extern "C" __global__ void __launch_bounds__(FewRows::THREADS)
    linear_few_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight,
                         const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_mma<FewRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_few_bf16_bf16, FewRows::THREADS)

// ---- f32

using ManyRowsF32 = FmaTiles<64, 64, 4, 4>;
using FewRowsF32 = FmaTiles<8, 128, 1, 4>;

template <typename T>
__device__ __forceinline__ void linear_fma(float* a_tile, float* b_tile, float* y, const float* x, const float* weight,
                                           const float* bias, LinearSizes sizes) {
    const Tile tile = tile_of_block<T::BM, T::BN>(sizes);
    const float* weights = weight + static_cast<size_t>(sizes.first_out) * sizes.in_features;
    const Operand<float, Depth::Inner> a = {x, sizes.rows, sizes.in_features};
    const Operand<float, Depth::Inner> b = {weights, sizes.out_features, sizes.in_features};
    float sums[T::TM][T::TN] = {};
    multiply_fma<T>(sums, a_tile, b_tile, a, b, tile, 0, sizes.in_features);
    each_element<T>(sums, tile, [&](uint32_t row, uint32_t col, float sum) {
        if (row < sizes.rows && col < sizes.out_features) {
            finish(y, bias, sum, row, col, sizes);
        }
    });
}

// linear_<rows>_f32_f32: the same in f32: one fused multiply-add a product, k ascending from 0, the bits of the CPU backend.
// Geometry: a block a tile of y; static shared memory.  Any sizes.
// Limit: as above, at the rate of ordinary FMA units: for checks and for models that are kept in f32.
extern "C" __global__ void __launch_bounds__(ManyRowsF32::THREADS)
    linear_many_f32_f32(float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ weight,
                        const float* __restrict__ bias, LinearSizes sizes) {
    SHARED_ARRAY(float, a_tile, ManyRowsF32::A_ELEMENTS);
    SHARED_ARRAY(float, b_tile, ManyRowsF32::B_ELEMENTS);
    linear_fma<ManyRowsF32>(a_tile, b_tile, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_many_f32_f32, ManyRowsF32::THREADS)

extern "C" __global__ void __launch_bounds__(FewRowsF32::THREADS)
    linear_few_f32_f32(float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ weight,
                       const float* __restrict__ bias, LinearSizes sizes) {
    SHARED_ARRAY(float, a_tile, FewRowsF32::A_ELEMENTS);
    SHARED_ARRAY(float, b_tile, FewRowsF32::B_ELEMENTS);
    linear_fma<FewRowsF32>(a_tile, b_tile, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_few_f32_f32, FewRowsF32::THREADS)
