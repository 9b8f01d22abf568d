// What attention on tensor cores is made of, forward and backward: rows of heads in shared memory, products of a block of queries
// and keys in registers, and such a block's product with rows.
//
// T says how: HEAD_DIM, that of the model rounded up to one there is a kernel for (zeros behind); STRIDE, elements from row to row
// in shared memory; THREADS a block; WARPS_D, warps that share 16 rows, each with its part of the result's columns; COLUMN_PAIRS,
// pairs of 8 columns of the result, and OWN_PAIRS, the most that one warp has of them.
#pragma once

#include "pack.cuh"
#include "reduce.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// 16 rows by BLOCK columns as mma gives them: [0][j] has columns 8 j ...
template <int BLOCK>
using BlockScores = float[1][BLOCK / 8][4];

// A warp's columns of 16 rows of the result: o[p][0][half][2 h + e] = O[g + 8 h][16 (pair p) + 8 half + 2 (lane % 4) + e], g = lane / 4.
template <typename T>
using OwnColumns = float[T::OWN_PAIRS][1][2][4];

// The column pair that is number `own` of this warp.
template <typename T>
__device__ __forceinline__ int column_pair(int own) {
    return own * T::WARPS_D + static_cast<int>(threadIdx.x) / WARP % T::WARPS_D;
}

// Starts copying rows 0 .. `there` (of ROWS) of head_dim elements each; the rest is zero.
template <typename T, int ROWS, typename Row>
__device__ __forceinline__ void load_rows(bf16* shared, uint32_t there, uint32_t head_dim, Row row) {
    constexpr int ROW_CHUNKS = T::HEAD_DIM / 8;
    for (int chunk = static_cast<int>(threadIdx.x); chunk < ROWS * ROW_CHUNKS; chunk += T::THREADS) {
        const uint32_t r = static_cast<uint32_t>(chunk / ROW_CHUNKS);
        const uint32_t col = static_cast<uint32_t>(chunk % ROW_CHUNKS) * 8;
        const bool valid = r < there && col < head_dim;
        const bf16* from = row(valid ? r : 0) + (valid ? col : 0);
        cp_async16_zfill(shared + r * T::STRIDE + col, from, valid);
    }
}

// scores[j] += q k^T for 16 queries and keys 8 j .. 8 j + 7 of a block of BLOCK of them.
template <typename T, int BLOCK>
__device__ __forceinline__ void scores_of_block(BlockScores<BLOCK>& scores, const bf16* queries, const bf16* keys) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
#pragma unroll
    for (int d = 0; d < T::HEAD_DIM; d += 16) {
        uint32_t a[1][4];
        uint32_t b[BLOCK / 8][2];
        ldmatrix_x4(a[0], queries + lane % 16 * T::STRIDE + d + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < BLOCK / 8; j += 2) {
            uint32_t both[4];
            ldmatrix_x4(both, keys + (j * 8 + lane / 16 * 8 + lane % 8) * T::STRIDE + d + lane / 8 % 2 * 8);
            b[j][0] = both[0];
            b[j][1] = both[1];
            b[j + 1][0] = both[2];
            b[j + 1][1] = both[3];
        }
        mma_tile_bf16<1, BLOCK / 8>(scores, a, b);
    }
}

// o += weights v, weights rounded to bf16. A tile of scores lies in registers as mma wants its first operand.
template <typename T, int BLOCK>
__device__ __forceinline__ void add_values(OwnColumns<T>& o, const BlockScores<BLOCK>& weights, const bf16* values) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
#pragma unroll
    for (int k = 0; k < BLOCK / 16; ++k) {
        const float(&low)[4] = weights[0][2 * k];
        const float(&high)[4] = weights[0][2 * k + 1];
        const uint32_t a[1][4] = {{pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                                   pack_bf16(high[2], high[3])}};
#pragma unroll
        for (int own = 0; own < T::OWN_PAIRS; ++own) {
            const int pair = column_pair<T>(own);
            if (T::COLUMN_PAIRS % T::WARPS_D == 0 || pair < T::COLUMN_PAIRS) {
                // Transposed: keys 0-7 and 8-15 of columns 0-7, then of columns 8-15.
                uint32_t both[4];
                ldmatrix_x4<true>(both, values + (k * 16 + lane % 16) * T::STRIDE + pair * 16 + lane / 16 * 8);
                const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
                mma_tile_bf16<1, 2>(o[own], a, b);
            }
        }
    }
}
