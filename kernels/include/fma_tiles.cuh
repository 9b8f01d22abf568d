// The matrix product in f32 that linear.cu and linear_backward.cu are made of: tiles of C = A B, one fused multiply-add a product
// in one chain over k, ascending, which gives the bits of the CPU backend.
#pragma once

#include "linear_tile.cuh"
#include "operand.cuh"

// A block computes BM x BN elements, a thread TM x TN of them, BK of k at a time.
template <int BM_, int BN_, int TM_, int TN_>
struct FmaTiles {
    static constexpr int BM = BM_;
    static constexpr int BN = BN_;
    static constexpr int TM = TM_;
    static constexpr int TN = TN_;
    static constexpr int BK = 16;
    static constexpr int THREADS = (BM / TM) * (BN / TN);
    // Shared memory: k outermost, so that the threads of a warp read neighbours; one element more a row for the banks' sake.
    static constexpr int A_ELEMENTS = BK * (BM + 1);
    static constexpr int B_ELEMENTS = BK * (BN + 1);
};

// Copies EXTENT of a factor's `count` from `first` on, BK of k from `first_k` on, to shared memory. Outside: zero.
template <typename T, int EXTENT, Depth DEPTH>
__device__ __forceinline__ void load_k_outermost(float* shared, const Operand<float, DEPTH>& operand, uint32_t first,
                                                 uint32_t first_k, uint32_t end_k) {
    for (int index = static_cast<int>(threadIdx.x); index < EXTENT * T::BK; index += T::THREADS) {
        // Neighbouring threads read neighbours in memory.
        const int at = DEPTH == Depth::Inner ? index / T::BK : index % EXTENT;
        const int k = DEPTH == Depth::Inner ? index % T::BK : index / EXTENT;
        const bool valid = first + at < operand.count && first_k + k < end_k;
        const size_t row = DEPTH == Depth::Inner ? first + at : first_k + k;
        const size_t col = DEPTH == Depth::Inner ? first_k + k : first + at;
        shared[k * (EXTENT + 1) + at] = valid ? operand.data[row * operand.stride + col] : 0.0f;
    }
}

// Where a thread's elements lie in the block's tile: rows row .. + TM, columns col, col + ACROSS, ..
template <typename T>
struct ThreadTile {
    static constexpr int ACROSS = T::BN / T::TN;
    int row = static_cast<int>(threadIdx.x) / ACROSS * T::TM;
    int col = static_cast<int>(threadIdx.x) % ACROSS;
};

// sums += the thread's part of the block's tile of A B over k from `from` to `to`.
template <typename T, Depth A, Depth B>
__device__ __forceinline__ void multiply_fma(float (&sums)[T::TM][T::TN], float* a_tile, float* b_tile,
                                             const Operand<float, A>& a, const Operand<float, B>& b, Tile tile, uint32_t from,
                                             uint32_t to) {
    const ThreadTile<T> own;
    for (uint32_t first_k = from; first_k < to; first_k += T::BK) {
        load_k_outermost<T, T::BM>(a_tile, a, tile.row, first_k, to);
        load_k_outermost<T, T::BN>(b_tile, b, tile.col, first_k, to);
        __syncthreads();
        // Not beyond the real k: adding a product of zeros would turn a sum of -0 into +0.
        const int steps = min(T::BK, static_cast<int>(to - first_k));
        for (int k = 0; k < steps; ++k) {
            float left[T::TM];
            float right[T::TN];
#pragma unroll
            for (int i = 0; i < T::TM; ++i) {
                left[i] = a_tile[k * (T::BM + 1) + own.row + i];
            }
#pragma unroll
            for (int j = 0; j < T::TN; ++j) {
                right[j] = b_tile[k * (T::BN + 1) + own.col + j * own.ACROSS];
            }
#pragma unroll
            for (int i = 0; i < T::TM; ++i) {
#pragma unroll
                for (int j = 0; j < T::TN; ++j) {
                    sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
                }
            }
        }
        __syncthreads();
    }
}

// Visits a thread's elements of the block's tile as visit(row, column, sum), those beyond the end of C too.
template <typename T, typename Visit>
__device__ __forceinline__ void each_element(const float (&sums)[T::TM][T::TN], Tile tile, Visit visit) {
    const ThreadTile<T> own;
#pragma unroll
    for (int i = 0; i < T::TM; ++i) {
#pragma unroll
        for (int j = 0; j < T::TN; ++j) {
            visit(tile.row + own.row + i, tile.col + own.col + j * own.ACROSS, sums[i][j]);
        }
    }
}
