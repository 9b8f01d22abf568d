// Weights in four bits (nf4_matrix.cuh): a matrix restored, and the product with few rows by mma.sync.

#include "nf4_matrix.cuh"

// ---- Restoring a matrix

constexpr int RESTORE_THREADS = 256;

// Eight neighbouring weights a thread.
template <typename Out>
__device__ __forceinline__ void dequantise(Out* y, const uint8_t* weight, const float* codebook, const Nf4Sizes& sizes) {
    const uint32_t in_features = sizes.linear.in_features;
    const uint32_t in_row = in_features / 8;
    const size_t item = static_cast<size_t>(blockIdx.x) * RESTORE_THREADS + threadIdx.x;
    if (item >= static_cast<size_t>(sizes.linear.out_features) * in_row) {
        return;
    }
    const size_t row = item / in_row;
    const uint32_t col = static_cast<uint32_t>(item % in_row) * 8;
    const uint8_t* from = weight + row * row_bytes(in_features);
    const uint32_t codes = load_pack<1>(reinterpret_cast<const uint32_t*>(from + col / 2)).element[0];
    const float magnitude = load_pack<1>(reinterpret_cast<const float*>(from + in_features / 2) + col / BLOCK).element[0];
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        value[i] = codebook[codes >> (i / 2 * 8 + (i % 2 == 0 ? 4 : 0)) & 15] * magnitude;
    }
    store_f32<8>(y + row * in_features + col, value);
}

// nf4_dequantise_<y>: y[n, k] = codebook[code[n, k]] * magnitude[n, k / 64], rounded to y's type.  weight: out_features rows as
// above;  y: [out_features, in_features].
// Geometry: 256 threads a block, a thread for eight weights: 4 bytes of codes, 16 bytes of bf16 (32 of f32), both without gaps
// within a warp.
// Limit: 0.5625 bytes read and 2 (f32: 4) written a weight.
extern "C" __global__ void __launch_bounds__(RESTORE_THREADS)
    nf4_dequantise_bf16(bf16* __restrict__ y, const uint8_t* __restrict__ weight, Nf4Sizes sizes) {
    SHARED_ARRAY(float, codebook, CODES);
    load_codebook(codebook, sizes);
    dequantise(y, weight, codebook, sizes);
}
EXPORT_KERNEL(nf4_dequantise_bf16, RESTORE_THREADS)

extern "C" __global__ void __launch_bounds__(RESTORE_THREADS)
    nf4_dequantise_f32(float* __restrict__ y, const uint8_t* __restrict__ weight, Nf4Sizes sizes) {
    SHARED_ARRAY(float, codebook, CODES);
    load_codebook(codebook, sizes);
    dequantise(y, weight, codebook, sizes);
}
EXPORT_KERNEL(nf4_dequantise_f32, RESTORE_THREADS)

// ---- Few rows

// The tile of linear.cu's few rows, with a k step of whole chunks of magnitudes. A stage holds x, codes, magnitudes.
struct Nf4Tiles : MmaTiles<16, 32, 256, 16, 8, 6> {
    static constexpr int CODE_BYTES = BK / 2;
    static constexpr int MAGNITUDES = BK / BLOCK;
    static constexpr int X_BYTES = BM * BK * static_cast<int>(sizeof(bf16));
    static constexpr int STAGE_BYTES = X_BYTES + BN * (CODE_BYTES + MAGNITUDES * static_cast<int>(sizeof(float)));
    static_assert(WM == 16 && WN == 8 && BM == WM, "one tensor core's tile a warp");
    static_assert(CODE_BYTES == 8 * 16 && MAGNITUDES * sizeof(float) == 16, "eight chunks of codes a row, one of magnitudes");
};

// Where the 16 bytes with codes of k 32 chunk .. 32 chunk + 31 of a row lie among a stage's codes: permuted within the row, so that
// eight rows at one k lie in different banks.
__device__ __forceinline__ int code_offset(int row, int chunk) { return row * Nf4Tiles::CODE_BYTES + (chunk ^ row % 8) * 16; }

// Starts copying codes and magnitudes of a stage's outputs; what lies outside is zero.
__device__ __forceinline__ void load_weights(unsigned char* codes, unsigned char* magnitudes, const uint8_t* weight,
                                             uint32_t first_row, uint32_t first_k, const LinearSizes& sizes) {
    using T = Nf4Tiles;
    const size_t stride = row_bytes(sizes.in_features);
#pragma unroll
    for (int index = static_cast<int>(threadIdx.x); index < T::BN * 8; index += T::THREADS) {
        const int row = index / 8;
        const int chunk = index % 8;
        const uint32_t at = first_k / 2 + chunk * 16;
        const bool valid = first_row + row < sizes.out_features && at < sizes.in_features / 2;
        const size_t from = valid ? (first_row + row) * stride + at : 0;
        cp_async16_zfill(codes + code_offset(row, chunk), weight + from, valid);
    }
    if (threadIdx.x < T::BN) {
        const uint32_t row = first_row + threadIdx.x;
        const bool valid = row < sizes.out_features;
        const size_t from = valid ? row * stride + sizes.in_features / 2 + first_k / BLOCK * sizeof(float) : 0;
        cp_async16_zfill(magnitudes + threadIdx.x * 16, weight + from, valid);
    }
}

// 64 of k: codes become the fragment of tensor cores in registers. Lanes 4g to 4g + 3 hold output g of the warp's eight, lane t of
// them k 2t, 2t + 1, 2t + 8 and 2t + 9 of each 16: a byte and the byte four further.
__device__ __forceinline__ void multiply_block(float (&sums)[1][1][4], const bf16* x, const unsigned char* codes, float magnitude,
                                               const float* codebook, int output, int block) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const int shift = lane % 4 * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int chunk = block * 2 + half;
        const Pack<uint32_t, 4> word = load_pack<4>(reinterpret_cast<const uint32_t*>(codes + code_offset(output, chunk)));
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t a[1][4];
            ldmatrix_x4(a[0], x + swizzled<Nf4Tiles>(lane % 16, chunk * 32 + step * 16 + lane / 16 * 8));
            const uint32_t b[1][2] = {{weight_pair(codebook, magnitude, word.element[2 * step] >> shift),
                                       weight_pair(codebook, magnitude, word.element[2 * step + 1] >> shift)}};
            mma_tile_bf16<1, 1>(sums, a, b);
        }
    }
}

template <typename Out>
__device__ __forceinline__ void linear_few(unsigned char* shared, float* codebook, Out* y, const bf16* x, const uint8_t* weight,
                                           const float* bias, const Nf4Sizes& nf4) {
    using T = Nf4Tiles;
    const LinearSizes sizes = nf4.linear;
    load_codebook(codebook, nf4);
    const Tile tile = tile_of_block<T::BM, T::BN>(sizes);
    const int warp_n = static_cast<int>(threadIdx.x) / WARP * T::WN;
    const int output = warp_n + static_cast<int>(threadIdx.x) % WARP / 4;
    float sums[1][1][4] = {};
    const auto load = [&](uint32_t step) {
        unsigned char* stage = shared + step % T::STAGES * T::STAGE_BYTES;
        unsigned char* codes = stage + T::X_BYTES;
        load_stage<T, T::BM>(reinterpret_cast<bf16*>(stage), x, tile.row, sizes.rows, step * T::BK, sizes.in_features);
        load_weights(codes, codes + T::BN * T::CODE_BYTES, weight, tile.col, step * T::BK, sizes);
    };
    walk_stages<T::STAGES>((sizes.in_features + T::BK - 1) / T::BK, load, [&](uint32_t step) {
        const unsigned char* stage = shared + step % T::STAGES * T::STAGE_BYTES;
        const unsigned char* codes = stage + T::X_BYTES;
        const float* magnitudes = reinterpret_cast<const float*>(codes + T::BN * T::CODE_BYTES) + output * T::MAGNITUDES;
        const int blocks = min(T::MAGNITUDES, static_cast<int>(sizes.in_features / BLOCK - step * T::MAGNITUDES));
        for (int block = 0; block < blocks; ++block) {
            multiply_block(sums, reinterpret_cast<const bf16*>(stage), codes, magnitudes[block], codebook, output, block);
        }
    });
    finish_tile<T>(y, bias, sums, tile, 0, warp_n, sizes);
}

// nf4_linear_few_<y>: y = x W^T (+ bias) (+ y), W in four bits.  x: [rows, in_features] bf16;  weight: out_features rows as above;
// bias: [out_features] f32;  y: [rows, out_features], written (=) or added to (+=). Sums as linear.cu's, in the same order.
// Geometry: a block of 128 threads a tile of 16 x 32 outputs, numbered as in tile_of_block; SHARED_BYTES = STAGES * STAGE_BYTES,
// which src/backend/cuda/nf4.rs repeats.  in_features a multiple of 64.
// Limit: 0.5625 bytes a weight for each 16 rows (beyond the first 16 from L2); a look-up in shared memory a weight, of which a
// multiprocessor does 32 a clock.
extern "C" __global__ void __launch_bounds__(Nf4Tiles::THREADS)
    nf4_linear_few_f32(float* __restrict__ y, const bf16* __restrict__ x, const uint8_t* __restrict__ weight,
                       const float* __restrict__ bias, Nf4Sizes sizes) {
    DYN_SMEM(shared);
    SHARED_ARRAY(float, codebook, CODES);
    linear_few(shared, codebook, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(nf4_linear_few_f32, Nf4Tiles::THREADS)

extern "C" __global__ void __launch_bounds__(Nf4Tiles::THREADS)
    nf4_linear_few_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const uint8_t* __restrict__ weight,
                        const float* __restrict__ bias, Nf4Sizes sizes) {
    DYN_SMEM(shared);
    SHARED_ARRAY(float, codebook, CODES);
    linear_few(shared, codebook, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(nf4_linear_few_bf16, Nf4Tiles::THREADS)
