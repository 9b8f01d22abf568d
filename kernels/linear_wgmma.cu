// Linear on Hopper (sm_90a): the products of linear.cu by TMA and wgmma.
//
// One warp copies, by TMA, tiles of x and of weight into a ring of stages in shared memory; the other warps multiply them. Full
// and empty stages are told by mbarriers, so nobody waits for a whole block. A block goes on to its next tile without draining
// the ring: the first stages of that tile arrive while the sums of this one are written.
//
// Rows of x are wgmma's M, which is 64, also where there is one row: outputs are then its N, which can be narrow, so that even
// one row's product has a tile for every multiprocessor. (With outputs as M the narrowest tile has 64, half as many tiles.)
// The rows that are not there are zeros of TMA's own and cost no memory traffic.
//
// Every tile adds k in the same steps of 16 by the same instruction, of which only the width differs. So a row has the same
// bits in every tile, as in linear.cu; but not those of linear.cu, because how a tensor core adds 16 products is its own affair.
// A GPU of compute capability 9.0 therefore takes these kernels for every product of bf16 weights, others none.

#include "linear_tile.cuh"

// A block computes tiles of BM x BN outputs with a warpgroup for each 64 rows, and one warp more that copies. STAGES: tiles of
// x and weight, BK of k each, that are on their way or waiting; a power of two.
template <int WARPGROUPS_, int BN_, int STAGES_>
struct WgmmaTiles {
    static constexpr int BM = 64 * WARPGROUPS_;
    static constexpr int BN = BN_;
    // 128 bytes, the widest swizzle: a row of a tile is one line of it.
    static constexpr int BK = 64;
    static constexpr int STAGES = STAGES_;
    static constexpr int MULTIPLIERS = 4 * WARPGROUPS_;
    static constexpr int THREADS = (MULTIPLIERS + 1) * WARP;
    static constexpr int X_BYTES = BM * BK * 2;
    static constexpr int STAGE_BYTES = (BM + BN) * BK * 2;
    // Two mbarriers a stage behind the stages.
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + STAGES * 16;
    static_assert((STAGES & (STAGES - 1)) == 0 && BN <= 256 && BN % 8 == 0, "a ring, and one TMA box a tile");
};

// Thousands of rows. A k step of a warpgroup, m64n256k16, reads 2 + 8 KiB of shared memory for 2^19 FLOPs; at a dense rate of
// 4096 FLOPs a cycle and multiprocessor that is 80 of the 128 bytes shared memory gives a cycle. The tile takes 384 bytes from
// L2 for 65536 FLOPs: 48 bytes a cycle, near what L2 gives, so it does not get smaller. 128 sums a thread fit beside 288
// threads' share of registers, 224, without moving any (setmaxnreg).
using WgmmaManyRows = WgmmaTiles<2, 256, 4>;
// Hundreds: two blocks a multiprocessor.
using WgmmaSomeRows = WgmmaTiles<2, 64, 4>;
// Decoding: the weights are read once and that is the cost. 4 KiB of them a stage, two blocks: 64 KiB on their way to each
// multiprocessor, where bandwidth times latency asks for some 20.
using WgmmaFewRows = WgmmaTiles<1, 32, 8>;

#if SM90_KERNELS

// Where a tile's turn is: stages are used in turn, and each use of a stage is one phase of its barriers.
template <typename T>
struct Turn {
    uint32_t number = 0;
    __device__ __forceinline__ int stage() const { return static_cast<int>(number % T::STAGES); }
    __device__ __forceinline__ int parity() const { return static_cast<int>(number / T::STAGES % 2); }
};

template <typename T>
struct Ring {
    unsigned char* stages;
    // Both tiles of the stage are there: one arrival, and their bytes.
    uint64_t* full;
    // Every multiplying warp has read it: one arrival each.
    uint64_t* empty;
};

template <typename T>
__device__ __forceinline__ void copy_tiles(const Ring<T>& ring, const TensorMap& x, const TensorMap& weight, uint32_t steps,
                                           LinearSizes sizes) {
    Turn<T> turn;
    for (uint32_t index = blockIdx.x; index < tile_count<T::BM, T::BN>(sizes); index += gridDim.x) {
        const Tile tile = tile_at<T::BM, T::BN>(sizes, index);
        for (uint32_t step = 0; step < steps; ++step, ++turn.number) {
            const int stage = turn.stage();
            // In the first round there is nothing to wait for: the phase before the first counts as over.
            mbarrier_wait(ring.empty + stage, turn.parity() ^ 1);
            unsigned char* to = ring.stages + stage * T::STAGE_BYTES;
            // What lies outside of x and weight arrives as zeros, and counts.
            mbarrier_arrive_expect_tx(ring.full + stage, T::STAGE_BYTES);
            const auto k = static_cast<int>(step * T::BK);
            tma_load_2d(to, &x, k, static_cast<int>(tile.row), ring.full + stage);
            tma_load_2d(to + T::X_BYTES, &weight, k, static_cast<int>(sizes.first_out + tile.col), ring.full + stage);
        }
    }
}

template <typename T, typename Out>
__device__ __forceinline__ void multiply_tiles(const Ring<T>& ring, Out* y, const float* bias, uint32_t steps, LinearSizes sizes) {
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    const uint32_t lane = threadIdx.x % WARP;
    // Each warp gives a stage back on its own: its wait says that its own part of the wgmmas is done.
    const auto give_back = [&](int stage) {
        if (lane == 0) {
            mbarrier_arrive(ring.empty + stage);
        }
    };
    float sums[T::BN / 2];
    Turn<T> turn;
    for (uint32_t index = blockIdx.x; index < tile_count<T::BM, T::BN>(sizes); index += gridDim.x) {
        int before = 0;
        for (uint32_t step = 0; step < steps; ++step, ++turn.number) {
            const int stage = turn.stage();
            mbarrier_wait(ring.full + stage, turn.parity());
            const unsigned char* x_tile = ring.stages + stage * T::STAGE_BYTES + warp / 4 * 64 * T::BK * 2;
            const unsigned char* weight_tile = ring.stages + stage * T::STAGE_BYTES + T::X_BYTES;
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < T::BK; k += 16) {
                // Groups of eight rows are 1024 bytes apart; a step of k moves within the swizzled line.
                const uint64_t a = wgmma_descriptor(x_tile + k * 2, 16, 1024, Swizzle::Bytes128);
                const uint64_t b = wgmma_descriptor(weight_tile + k * 2, 16, 1024, Swizzle::Bytes128);
                wgmma_m64k16_bf16<T::BN>(sums, a, b, step > 0 || k > 0);
            }
            wgmma_commit();
            // The tensor cores always have a group to do: the stage before is given back, not this one.
            wgmma_wait<1>();
            if (step > 0) {
                give_back(before);
            }
            before = stage;
        }
        wgmma_wait<0>();
        give_back(before);
        const Tile tile = tile_at<T::BM, T::BN>(sizes, index);
        const uint32_t row = tile.row + static_cast<uint32_t>(warp) * 16 + lane / 4;
#pragma unroll
        for (int j = 0; j < T::BN / 8; ++j) {
            const uint32_t col = tile.col + j * 8 + lane % 4 * 2;
            finish_pair(y, bias, sums[4 * j], sums[4 * j + 1], row, col, sizes);
            finish_pair(y, bias, sums[4 * j + 2], sums[4 * j + 3], row + 8, col, sizes);
        }
    }
}

template <typename T, typename Out>
__device__ __forceinline__ void linear_wgmma(unsigned char* shared, Out* y, const TensorMap& x, const TensorMap& weight,
                                             const float* bias, LinearSizes sizes) {
    auto* barriers = reinterpret_cast<uint64_t*>(shared + T::STAGES * T::STAGE_BYTES);
    const Ring<T> ring = {shared, barriers, barriers + T::STAGES};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < T::STAGES; ++stage) {
            mbarrier_init(ring.full + stage, 1);
            mbarrier_init(ring.empty + stage, T::MULTIPLIERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    const uint32_t steps = (sizes.in_features + T::BK - 1) / T::BK;
    if (threadIdx.x < T::MULTIPLIERS * WARP) {
        multiply_tiles<T>(ring, y, bias, steps, sizes);
    } else if (threadIdx.x == T::MULTIPLIERS * WARP) {
        copy_tiles<T>(ring, x, weight, steps, sizes);
    }
}

#else

template <typename T, typename Out>
__device__ __forceinline__ void linear_wgmma(unsigned char*, Out*, const TensorMap&, const TensorMap&, const float*, LinearSizes) {
    // Never launched: src/backend/cuda/linear.rs asks for the compute capability.
    __trap();
}

#endif

// linear_wgmma_<rows>_<y>_bf16: y = x W^T (+ bias) (+ y).  x: [rows, in_features] bf16, in boxes of BM x 64;  weight: [first_out
// + out_features, in_features] bf16, in boxes of BN x 64, both with 128-byte swizzle and as far apart as in_features, a multiple
// of 8, not 0;  bias: [out_features] f32;  y: [rows, out_features], written (=) or added to (+=). Products exact, sums in f32,
// k in steps of 16 in ascending order by wgmma m64nBNk16; y is rounded once.
// Geometry: blocks walk tiles b, b + grid, .. numbered as in tile_at; THREADS and SHARED_BYTES of the tile, which
// src/backend/cuda/linear.rs repeats.
// Limit: 2 rows out_features in_features FLOPs; for few rows 2 out_features in_features bytes of weights.
extern "C" __global__ void __launch_bounds__(WgmmaManyRows::THREADS, 1)
    linear_wgmma_many_f32_bf16(float* __restrict__ y, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                               const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_wgmma<WgmmaManyRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_wgmma_many_f32_bf16, WgmmaManyRows::THREADS)

extern "C" __global__ void __launch_bounds__(WgmmaManyRows::THREADS, 1)
    linear_wgmma_many_bf16_bf16(bf16* __restrict__ y, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                                const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_wgmma<WgmmaManyRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_wgmma_many_bf16_bf16, WgmmaManyRows::THREADS)

extern "C" __global__ void __launch_bounds__(WgmmaSomeRows::THREADS, 2)
    linear_wgmma_some_f32_bf16(float* __restrict__ y, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                               const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_wgmma<WgmmaSomeRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_wgmma_some_f32_bf16, WgmmaSomeRows::THREADS)

extern "C" __global__ void __launch_bounds__(WgmmaSomeRows::THREADS, 2)
    linear_wgmma_some_bf16_bf16(bf16* __restrict__ y, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                                const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_wgmma<WgmmaSomeRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_wgmma_some_bf16_bf16, WgmmaSomeRows::THREADS)

extern "C" __global__ void __launch_bounds__(WgmmaFewRows::THREADS, 2)
    linear_wgmma_few_f32_bf16(float* __restrict__ y, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                              const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_wgmma<WgmmaFewRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_wgmma_few_f32_bf16, WgmmaFewRows::THREADS)

extern "C" __global__ void __launch_bounds__(WgmmaFewRows::THREADS, 2)
    linear_wgmma_few_bf16_bf16(bf16* __restrict__ y, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                               const float* __restrict__ bias, LinearSizes sizes) {
    DYN_SMEM(shared);
    linear_wgmma<WgmmaFewRows>(shared, y, x, weight, bias, sizes);
}
EXPORT_KERNEL(linear_wgmma_few_bf16_bf16, WgmmaFewRows::THREADS)
