// What all kernels of matrix products on tensor cores share: which tile a block computes, how its operands come to shared
// memory, and what becomes of a finished sum.
#pragma once

#include "pack.cuh"
#include "reduce.cuh"

// Mirrors LinearSizes of src/backend/cuda/linear.rs.
struct LinearSizes {
    // Rows of x and y.
    uint32_t rows;
    // Columns of y: rows of weight, counted from first_out.
    uint32_t out_features;
    // Columns of x and of weight; also the distance between their rows. bf16: a multiple of 8, zeros behind the real ones.
    uint32_t in_features;
    // Row of weight that gives column 0 of y.
    uint32_t first_out;
    // 1: bias is read.
    uint32_t has_bias;
    // 1: y +=.
    uint32_t accumulate;
};
static_assert(sizeof(LinearSizes) == 24 && offsetof(LinearSizes, accumulate) == 20, "layout shared with Rust");

// First row and column of a tile of y.
struct Tile {
    uint32_t row;
    uint32_t col;
};

// Tiles of BM x BN that cover y.
template <int BM, int BN>
__device__ __forceinline__ uint32_t tile_count(LinearSizes sizes) {
    return (sizes.rows + BM - 1) / BM * ((sizes.out_features + BN - 1) / BN);
}

// The tile with number `index`. Blocks that run at the same time share rows of x and of weight in L2: tiles are numbered down
// bands of 8 tiles of rows, column of tiles after column.
template <int BM, int BN>
__device__ __forceinline__ Tile tile_at(LinearSizes sizes, uint32_t index) {
    constexpr uint32_t BAND = 8;
    const uint32_t tiles_m = (sizes.rows + BM - 1) / BM;
    const uint32_t tiles_n = (sizes.out_features + BN - 1) / BN;
    const uint32_t band = index / (BAND * tiles_n);
    const uint32_t in_band = index % (BAND * tiles_n);
    const uint32_t height = min(BAND, tiles_m - band * BAND);
    return {(band * BAND + in_band % height) * BM, in_band / height * BN};
}

// The tile of a block that computes one.
template <int BM, int BN>
__device__ __forceinline__ Tile tile_of_block(LinearSizes sizes) {
    return tile_at<BM, BN>(sizes, blockIdx.x);
}

// y = ((sum + bias) + y): what is done with a finished sum.
template <typename Out>
__device__ __forceinline__ void finish(Out* y, const float* bias, float sum, uint32_t row, uint32_t col, LinearSizes sizes) {
    Out* at = y + static_cast<size_t>(row) * sizes.out_features + col;
    if (sizes.has_bias != 0) {
        sum += bias[col];
    }
    if (sizes.accumulate != 0) {
        sum += to_f32(*at);
    }
    *at = from_f32<Out>(sum);
}

// Two neighbouring columns, which is what a lane holds of a tensor core's tile; one access where that is aligned.
template <typename Out>
__device__ __forceinline__ void finish_pair(Out* y, const float* bias, float a, float b, uint32_t row, uint32_t col,
                                            LinearSizes sizes) {
    if (row >= sizes.rows || col >= sizes.out_features) {
        return;
    }
    if (sizes.out_features % 2 != 0) {
        finish(y, bias, a, row, col, sizes);
        if (col + 1 < sizes.out_features) {
            finish(y, bias, b, row, col + 1, sizes);
        }
        return;
    }
    Out* at = y + static_cast<size_t>(row) * sizes.out_features + col;
    float value[2] = {a, b};
    if (sizes.has_bias != 0) {
        value[0] += bias[col];
        value[1] += bias[col + 1];
    }
    if (sizes.accumulate != 0) {
        float old[2];
        load_f32<2>(old, at);
        value[0] += old[0];
        value[1] += old[1];
    }
    store_f32<2>(at, value);
}

// A block computes BM x BN outputs with (BM / WM) x (BN / WN) warps of WM x WN each, BK of k at a time, STAGES of these in
// shared memory: while one is multiplied the next STAGES - 1 are on their way.
template <int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_>
struct MmaTiles {
    static constexpr int BM = BM_;
    static constexpr int BN = BN_;
    static constexpr int BK = BK_;
    static constexpr int WM = WM_;
    static constexpr int WN = WN_;
    static constexpr int STAGES = STAGES_;
    static constexpr int WARPS_N = BN / WN;
    static constexpr int THREADS = WARP * (BM / WM) * WARPS_N;
    // Chunks of 16 bytes, the unit of cp.async and ldmatrix.
    static constexpr int ROW_CHUNKS = BK / 8;
    static constexpr int STAGE_ELEMENTS = (BM + BN) * BK;
    static constexpr int SHARED_BYTES = STAGES * STAGE_ELEMENTS * static_cast<int>(sizeof(bf16));
    static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 8 == 0 && BK % 16 == 0 && ROW_CHUNKS % 8 == 0,
                  "whole tiles of tensor cores, and rows that the swizzle permutes within");
};

// Element `col` (a multiple of 8) of a row in shared memory. Chunks are permuted within a row by its number, so that the eight
// rows that ldmatrix reads at one column lie in different banks.
template <typename T>
__device__ __forceinline__ int swizzled(int row, int col) {
    return row * T::BK + ((col / 8) ^ (row % 8)) * 8;
}

// Starts copying `ROWS` x BK elements from row `first_row` (of `rows`) and column `first_k` of a matrix; what lies outside is zero.
template <typename T, int ROWS>
__device__ __forceinline__ void load_stage(bf16* shared, const bf16* matrix, uint32_t first_row, uint32_t rows, uint32_t first_k,
                                           uint32_t in_features) {
    constexpr int CHUNKS = ROWS * T::ROW_CHUNKS;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk += T::THREADS) {
        const int index = chunk + static_cast<int>(threadIdx.x);
        if (CHUNKS % T::THREADS == 0 || index < CHUNKS) {
            const int row = index / T::ROW_CHUNKS;
            const int col = index % T::ROW_CHUNKS * 8;
            const bool valid = first_row + row < rows && first_k + col < in_features;
            const size_t from = valid ? static_cast<size_t>(first_row + row) * in_features + first_k + col : 0;
            cp_async16_zfill(shared + swizzled<T>(row, col), matrix + from, valid);
        }
    }
}

// Walks all stages in their order: load(step) starts a stage's copies, multiply(step) uses them STAGES - 1 steps later.
template <int STAGES, typename Load, typename Multiply>
__device__ __forceinline__ void walk_stages(uint32_t steps, Load load, Multiply multiply) {
    const auto start = [&](uint32_t step) {
        if (step < steps) {
            load(step);
        }
        // Also when there is nothing: each step then closes one group, which is what the wait counts.
        cp_async_commit();
    };
    for (uint32_t step = 0; step < STAGES - 1; ++step) {
        start(step);
    }
    for (uint32_t step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        // Everyone's part of this stage is there, and everyone has read the stage before, which the next load overwrites.
        __syncthreads();
        start(step + STAGES - 1);
        multiply(step);
    }
    cp_async_wait<0>();
}

// Writes a warp's sums, which lie as mma.m16n8k16 leaves them.
template <typename T, typename Out>
__device__ __forceinline__ void finish_tile(Out* y, const float* bias, const float (&sums)[T::WM / 16][T::WN / 8][4], Tile tile,
                                            int warp_m, int warp_n, LinearSizes sizes) {
    const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < T::WM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < T::WN / 8; ++j) {
            const uint32_t row = tile.row + warp_m + i * 16 + lane / 4;
            const uint32_t col = tile.col + warp_n + j * 8 + lane % 4 * 2;
            finish_pair(y, bias, sums[i][j][0], sums[i][j][1], row, col, sizes);
            finish_pair(y, bias, sums[i][j][2], sums[i][j][3], row + 8, col, sizes);
        }
    }
}
