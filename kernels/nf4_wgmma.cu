// Weights in four bits (nf4_matrix.cuh) on Hopper (sm_90a), whose other products are those of linear_wgmma.cu: few rows by wgmma.

#include "nf4_matrix.cuh"

// The tile of its few rows. A stage holds x, codes, and the four magnitudes that the codes of two stages share. In shared memory
// lie x of all stages, one tile of weights in bf16, then codes and magnitudes: what wgmma reads at multiples of 1024 bytes.
struct Nf4WgmmaTiles {
    static constexpr int BM = 64;
    static constexpr int BN = 32;
    static constexpr int BK = 128;
    static constexpr int STAGES = 4;
    static constexpr int THREADS = 128;
    // wgmma's operands are lines of 128 bytes: 64 of k.
    static constexpr int LINE = 64;
    static constexpr int X_BYTES = BM * BK * 2;
    static constexpr int CODE_BYTES = BK / 2;
    static constexpr int WEIGHT_BYTES = BN * BK * 2;
    static constexpr int MAGNITUDES_AT = BN * CODE_BYTES;
    static constexpr int CODES_AT = STAGES * X_BYTES + WEIGHT_BYTES;
    static constexpr int CODE_STAGE_BYTES = MAGNITUDES_AT + BN * 16;
    static constexpr int SHARED_BYTES = CODES_AT + STAGES * CODE_STAGE_BYTES;
    static_assert(THREADS == BN * BK / 32 && BK % LINE == 0, "16 bytes of codes a thread, whole lines");
};

#if SM90_KERNELS

// Byte of 16-byte chunk `chunk` (eight of k) of a row of an operand: lines of 64 k one tile behind the other, swizzled as wgmma
// reads them.
template <int ROWS>
__device__ __forceinline__ int line_offset(int row, int chunk) {
    return chunk / 8 * ROWS * 128 + row * 128 + (chunk % 8 ^ row % 8) * 16;
}

// Starts copying a stage; what lies outside is zero.
__device__ __forceinline__ void load_wgmma_stage(unsigned char* x_tile, unsigned char* codes, const bf16* x, const uint8_t* weight,
                                                 Tile tile, uint32_t first_k, const LinearSizes& sizes) {
    using T = Nf4WgmmaTiles;
    const size_t stride = row_bytes(sizes.in_features);
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int index = thread; index < T::BM * T::BK / 8; index += T::THREADS) {
        const int row = index / (T::BK / 8);
        const int chunk = index % (T::BK / 8);
        const bool valid = tile.row + row < sizes.rows && first_k + chunk * 8 < sizes.in_features;
        const size_t from = valid ? static_cast<size_t>(tile.row + row) * sizes.in_features + first_k + chunk * 8 : 0;
        cp_async16_zfill(x_tile + line_offset<T::BM>(row, chunk), x + from, valid);
    }
    const uint32_t row = tile.col + thread / 4;
    const uint32_t at = first_k / 2 + thread % 4 * 16;
    const bool valid = row < sizes.out_features && at < sizes.in_features / 2;
    cp_async16_zfill(codes + thread * 16, weight + (valid ? row * stride + at : 0), valid);
    if (thread < T::BN) {
        const bool there = tile.col + thread < sizes.out_features;
        const size_t from = there ? (tile.col + thread) * stride + sizes.in_features / 2 + first_k / 256 * 16 : 0;
        cp_async16_zfill(codes + T::MAGNITUDES_AT + thread * 16, weight + from, there);
    }
}

// A thread's 32 codes of a stage as weights, where wgmma reads them.
__device__ __forceinline__ void widen_codes(unsigned char* weights, const unsigned char* codes, const float* codebook, uint32_t step) {
    using T = Nf4WgmmaTiles;
    const int row = static_cast<int>(threadIdx.x) / 4;
    const int quarter = static_cast<int>(threadIdx.x) % 4;
    const auto* magnitudes = reinterpret_cast<const float*>(codes + T::MAGNITUDES_AT) + row * 4;
    const float magnitude = magnitudes[step % 2 * 2 + quarter / 2];
    const Pack<uint32_t, 4> words = load_pack<4>(reinterpret_cast<const uint32_t*>(codes + threadIdx.x * 16));
    // Threads that write the same chunk of lines of two tiles, which lie in the same banks, begin with different ones.
    const bool second = quarter >= 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t word = second ? words.element[i ^ 2] : words.element[i];
        Pack<uint32_t, 4> pairs;
#pragma unroll
        for (int byte = 0; byte < 4; ++byte) {
            pairs.element[byte] = weight_pair(codebook, magnitude, word >> (8 * byte));
        }
        const int chunk = quarter * 4 + (second ? i ^ 2 : i);
        store_pack<4>(reinterpret_cast<uint32_t*>(weights + line_offset<T::BN>(row, chunk)), pairs);
    }
}

template <typename Out>
__device__ __forceinline__ void linear_few_wgmma(unsigned char* shared, float* codebook, Out* y, const bf16* x,
                                                 const uint8_t* weight, const float* bias, const Nf4Sizes& nf4) {
    using T = Nf4WgmmaTiles;
    const LinearSizes sizes = nf4.linear;
    load_codebook(codebook, nf4);
    const Tile tile = tile_at<T::BM, T::BN>(sizes, blockIdx.x);
    unsigned char* weights = shared + T::STAGES * T::X_BYTES;
    const auto x_tile = [&](uint32_t step) { return shared + step % T::STAGES * T::X_BYTES; };
    const auto codes = [&](uint32_t step) { return shared + T::CODES_AT + step % T::STAGES * T::CODE_STAGE_BYTES; };
    float sums[T::BN / 2];
    const auto load = [&](uint32_t step) {
        load_wgmma_stage(x_tile(step), codes(step), x, weight, tile, step * T::BK, sizes);
    };
    walk_stages<T::STAGES>((sizes.in_features + T::BK - 1) / T::BK, load, [&](uint32_t step) {
        // Everyone's wgmmas of the step before are done: each waits for its own below, then comes the barrier of walk_stages.
        widen_codes(weights, codes(step), codebook, step);
        // x came by cp.async and the weights by stores; wgmma reads them as the async proxy.
        fence_proxy_async();
        __syncthreads();
        wgmma_fence();
        // Also a line beyond the end, where x and magnitudes are zeros: behind a branch ptxas orders the sums' registers anew.
#pragma unroll
        for (int line = 0; line < T::BK / T::LINE; ++line) {
#pragma unroll
            for (int k = 0; k < T::LINE; k += 16) {
                const uint64_t a = wgmma_descriptor(x_tile(step) + line * T::BM * 128 + k * 2, 16, 1024, Swizzle::Bytes128);
                const uint64_t b = wgmma_descriptor(weights + line * T::BN * 128 + k * 2, 16, 1024, Swizzle::Bytes128);
                wgmma_m64k16_bf16<T::BN>(sums, a, b, step > 0 || line > 0 || k > 0);
            }
        }
        wgmma_commit();
        wgmma_wait<0>();
    });
    const uint32_t row = tile.row + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
#pragma unroll
    for (int j = 0; j < T::BN / 8; ++j) {
        const uint32_t col = tile.col + j * 8 + threadIdx.x % 4 * 2;
        finish_pair(y, bias, sums[4 * j], sums[4 * j + 1], row, col, sizes);
        finish_pair(y, bias, sums[4 * j + 2], sums[4 * j + 3], row + 8, col, sizes);
    }
}

#else

template <typename Out>
__device__ __forceinline__ void linear_few_wgmma(unsigned char*, float*, Out*, const bf16*, const uint8_t*, const float*,
                                                 const Nf4Sizes&) {
    // Never launched: src/backend/cuda/nf4.rs asks which products this GPU has.
    __trap();
}

#endif

// nf4_linear_wgmma_<y>: the product of nf4_linear_few on GPUs of compute capability 9.0, with the bits of linear_wgmma.cu: sums by
// wgmma m64n32k16. Codes are widened into shared memory, 32 of them a thread and step.
// Geometry: a block of 128 threads a tile of 64 x 32 outputs; SHARED_BYTES of dynamic shared memory.
// Limit: as above, for each 64 rows; and 2 bytes a weight written to shared memory and read from there.
extern "C" __global__ void __launch_bounds__(Nf4WgmmaTiles::THREADS)
    nf4_linear_wgmma_f32(float* __restrict__ y, const bf16* __restrict__ x, const uint8_t* __restrict__ weight,
                         const float* __restrict__ bias, Nf4Sizes sizes) {
    DYN_SMEM(shared);
    SHARED_ARRAY(float, codebook, CODES);
    linear_few_wgmma(shared, codebook, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(nf4_linear_wgmma_f32, Nf4WgmmaTiles::THREADS)

extern "C" __global__ void __launch_bounds__(Nf4WgmmaTiles::THREADS)
    nf4_linear_wgmma_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const uint8_t* __restrict__ weight,
                          const float* __restrict__ bias, Nf4Sizes sizes) {
    DYN_SMEM(shared);
    SHARED_ARRAY(float, codebook, CODES);
    linear_few_wgmma(shared, codebook, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(nf4_linear_wgmma_bf16, Nf4WgmmaTiles::THREADS)
