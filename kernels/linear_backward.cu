// Gradients of linear, y = x W^T + bias: d_x = d_y W, d_W = d_y^T x, d_bias. bf16 on tensor cores; f32 on ordinary ones. Sums are
// f32 chains in one order: over out_features for d_x, so that a row has the same bits in any batch; over rows for d_W and d_bias.

#include "fma_tiles.cuh"
#include "linear_tile.cuh"
#include "operand.cuh"

// Mirrors LinearBackwardInputSizes of src/backend/cuda/linear_backward.rs.
struct LinearBackwardInputSizes {
    // Rows of d_y and d_x.
    uint32_t rows;
    // Columns of d_x and of weight.
    uint32_t in_features;
    // Columns of d_y: rows of weight.
    uint32_t out_features;
    // Elements from row to row. bf16: multiples of 8, with zeros behind out_features of d_y.
    uint32_t d_y_stride;
    uint32_t weight_stride;
    // 1: d_x +=.
    uint32_t accumulate;
};
static_assert(sizeof(LinearBackwardInputSizes) == 24 && offsetof(LinearBackwardInputSizes, accumulate) == 20,
              "layout shared with Rust");

// Mirrors LinearBackwardWeightSizes of src/backend/cuda/linear_backward.rs.
struct LinearBackwardWeightSizes {
    // Rows of d_y and x.
    uint32_t rows;
    // Rows of d_weight: columns of d_y.
    uint32_t out_features;
    // Columns of d_weight and of x.
    uint32_t in_features;
    // Elements from row to row. bf16: multiples of 8.
    uint32_t d_y_stride;
    uint32_t x_stride;
    // Factor on the product.
    float scale;
};
static_assert(sizeof(LinearBackwardWeightSizes) == 24 && offsetof(LinearBackwardWeightSizes, scale) == 20,
              "layout shared with Rust");

// Mirrors LinearBackwardBiasSizes of src/backend/cuda/linear_backward.rs.
struct LinearBackwardBiasSizes {
    uint32_t rows;
    uint32_t out_features;
    uint32_t d_y_stride;
};
static_assert(sizeof(LinearBackwardBiasSizes) == 12 && offsetof(LinearBackwardBiasSizes, d_y_stride) == 8,
              "layout shared with Rust");

// Rows whose products are one chain before they are added to d_weight, as on the CPU.
constexpr uint32_t CHAIN_ROWS = 2048;

// ---- The product on tensor cores, whichever way k runs

// Thousands of tokens, and whole weight matrices: 64 FLOPs a byte of shared memory.
using LargeTiles = MmaTiles<128, 128, 64, 64, 32, 3>;
// LoRA pairs and some dozens of rows: more, smaller blocks, so that they cover the multiprocessors.
using SmallTiles = MmaTiles<64, 64, 64, 32, 32, 4>;

// The tile of C [rows, cols] that this block computes.
template <typename T>
__device__ __forceinline__ Tile own_tile(uint32_t rows, uint32_t cols) {
    return tile_of_block<T::BM, T::BN>(LinearSizes{rows, cols, 0, 0, 0, 0});
}

// Element `col` (a multiple of 8) of a row of WIDTH elements in shared memory. Chunks of 16 bytes, the unit of cp.async and
// ldmatrix, are permuted within a row by its number, so that the eight rows that ldmatrix reads at one column lie in different
// banks.
template <int WIDTH>
__device__ __forceinline__ int chunk_at(int row, int col) {
    static_assert(WIDTH % 64 == 0, "eight chunks to permute");
    return row * WIDTH + ((col / 8) ^ (row % 8)) * 8;
}

// Starts copying the part of an operand that a stage holds: EXTENT of its `count` from `first` on, BK of k from `first_k` on;
// what lies outside is zero.
template <typename T, int EXTENT, Depth DEPTH>
__device__ __forceinline__ void load_operand(bf16* shared, const Operand<bf16, DEPTH>& operand, uint32_t first, uint32_t first_k,
                                             uint32_t end_k) {
    constexpr bool INNER = DEPTH == Depth::Inner;
    constexpr int WIDTH = INNER ? T::BK : EXTENT;
    constexpr int ROW_CHUNKS = WIDTH / 8;
    constexpr int CHUNKS = EXTENT * T::BK / 8;
    const uint32_t first_row = INNER ? first : first_k;
    const uint32_t first_col = INNER ? first_k : first;
    const uint32_t rows = INNER ? operand.count : end_k;
    const uint32_t cols = INNER ? end_k : operand.count;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk += T::THREADS) {
        const int index = chunk + static_cast<int>(threadIdx.x);
        if (CHUNKS % T::THREADS == 0 || index < CHUNKS) {
            const int row = index / ROW_CHUNKS;
            const int col = index % ROW_CHUNKS * 8;
            const bool valid = first_row + row < rows && first_col + col < cols;
            const size_t from = valid ? static_cast<size_t>(first_row + row) * operand.stride + first_col + col : 0;
            cp_async16_zfill(shared + chunk_at<WIDTH>(row, col), operand.data + from, valid);
        }
    }
}

// Fragment of A: rows `row` .. + 16 and k .. + 16 of a stage.
template <int WIDTH, Depth DEPTH>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const bf16* tile, int row, int k) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    // Matrices: rows 0-7 and 8-15 of k 0-7, then of k 8-15.
    if constexpr (DEPTH == Depth::Inner) {
        ldmatrix_x4(a, tile + chunk_at<WIDTH>(row + lane % 16, k + lane / 16 * 8));
    } else {
        ldmatrix_x4<true>(a, tile + chunk_at<WIDTH>(k + lane / 16 * 8 + lane % 8, row + lane / 8 % 2 * 8));
    }
}

// Two neighbouring fragments of B, whose k runs from row to row: columns `col` .. + 16 and k .. + 16 of a stage.
template <int WIDTH>
__device__ __forceinline__ void load_b_pair(uint32_t (&b)[4], const bf16* tile, int col, int k) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    // Matrices: columns 0-7 of k 0-7 and 8-15, then columns 8-15.
    ldmatrix_x4<true>(b, tile + chunk_at<WIDTH>(k + lane % 16, col + lane / 16 * 8));
}

// Sums of a warp's tile: sums[i][j] as mma gives them for rows 16 i .. and columns 8 j .. of it.
template <typename T>
using Sums = float[T::WM / 16][T::WN / 8][4];

// One k step of 16 of a warp's tile: fragments from shared memory, then the tensor cores.
template <typename T, Depth A>
__device__ __forceinline__ void multiply_step(Sums<T>& sums, const bf16* a_tile, const bf16* b_tile, int warp_m, int warp_n,
                                              int k) {
    constexpr int A_WIDTH = A == Depth::Inner ? T::BK : T::BM;
    uint32_t a[T::WM / 16][4];
    uint32_t b[T::WN / 8][2];
#pragma unroll
    for (int i = 0; i < T::WM / 16; ++i) {
        load_a<A_WIDTH, A>(a[i], a_tile, warp_m + i * 16, k);
    }
#pragma unroll
    for (int j = 0; j < T::WN / 8; j += 2) {
        uint32_t both[4];
        load_b_pair<T::BN>(both, b_tile, warp_n + j * 8, k);
        b[j][0] = both[0];
        b[j][1] = both[1];
        b[j + 1][0] = both[2];
        b[j + 1][1] = both[3];
    }
    mma_tile_bf16<T::WM / 16, T::WN / 8>(sums, a, b);
}

// sums += the block's tile of A B over k from `from` (a multiple of 8) to `to`. Between two calls the block needs a barrier.
template <typename T, Depth A>
__device__ __forceinline__ void multiply(Sums<T>& sums, bf16* shared, const Operand<bf16, A>& a,
                                         const Operand<bf16, Depth::Outer>& b, Tile tile, uint32_t from, uint32_t to) {
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    const int warp_m = warp / T::WARPS_N * T::WM;
    const int warp_n = warp % T::WARPS_N * T::WN;
    const auto load = [&](uint32_t step) {
        bf16* stage = shared + step % T::STAGES * T::STAGE_ELEMENTS;
        load_operand<T, T::BM>(stage, a, tile.row, from + step * T::BK, to);
        load_operand<T, T::BN>(stage + T::BM * T::BK, b, tile.col, from + step * T::BK, to);
    };
    walk_stages<T::STAGES>((to - from + T::BK - 1) / T::BK, load, [&](uint32_t step) {
        const bf16* a_tile = shared + step % T::STAGES * T::STAGE_ELEMENTS;
#pragma unroll
        for (int k = 0; k < T::BK; k += 16) {
            multiply_step<T, A>(sums, a_tile, a_tile + T::BM * T::BK, warp_m, warp_n, k);
        }
    });
}

// Visits what a lane holds of a block's tile, as visit(row, column, a, b) for elements (row, column) and (row, column + 1) of C.
// Rows and columns beyond those of C are visited too.
template <typename T, typename Visit>
__device__ __forceinline__ void each_pair(const Sums<T>& sums, Tile tile, Visit visit) {
    const uint32_t warp = threadIdx.x / WARP;
    const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < T::WM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < T::WN / 8; ++j) {
            const uint32_t row = tile.row + warp / T::WARPS_N * T::WM + i * 16 + lane / 4;
            const uint32_t col = tile.col + warp % T::WARPS_N * T::WN + j * 8 + lane % 4 * 2;
            visit(row, col, sums[i][j][0], sums[i][j][1]);
            visit(row + 8, col, sums[i][j][2], sums[i][j][3]);
        }
    }
}

// ---- d_x

template <typename Out>
__device__ __forceinline__ void store_d_x(Out* d_x, uint32_t row, uint32_t col, float sum, LinearBackwardInputSizes sizes) {
    if (row >= sizes.rows || col >= sizes.in_features) {
        return;
    }
    Out* at = d_x + static_cast<size_t>(row) * sizes.in_features + col;
    if (sizes.accumulate != 0) {
        sum += to_f32(*at);
    }
    *at = from_f32<Out>(sum);
}

// Two neighbouring columns: one access where both are there and aligned.
template <typename Out>
__device__ __forceinline__ void store_d_x_pair(Out* d_x, uint32_t row, uint32_t col, float a, float b,
                                               LinearBackwardInputSizes sizes) {
    if (sizes.in_features % 2 != 0) {
        store_d_x(d_x, row, col, a, sizes);
        store_d_x(d_x, row, col + 1, b, sizes);
        return;
    }
    if (row >= sizes.rows || col >= sizes.in_features) {
        return;
    }
    Out* at = d_x + static_cast<size_t>(row) * sizes.in_features + col;
    float value[2] = {};
    if (sizes.accumulate != 0) {
        load_f32<2>(value, at);
    }
    value[0] += a;
    value[1] += b;
    store_f32<2>(at, value);
}

template <typename T, typename Out>
__device__ __forceinline__ void input_mma(unsigned char* shared, Out* d_x, const bf16* d_y, const bf16* weight,
                                          LinearBackwardInputSizes sizes) {
    const Tile tile = own_tile<T>(sizes.rows, sizes.in_features);
    const Operand<bf16, Depth::Inner> a = {d_y, sizes.rows, sizes.d_y_stride};
    const Operand<bf16, Depth::Outer> b = {weight, sizes.in_features, sizes.weight_stride};
    Sums<T> sums = {};
    multiply<T>(sums, reinterpret_cast<bf16*>(shared), a, b, tile, 0, sizes.out_features);
    each_pair<T>(sums, tile, [&](uint32_t row, uint32_t col, float first, float second) {
        store_d_x_pair(d_x, row, col, first, second, sizes);
    });
}

// linear_backward_input_<tiles>_<d_x>_bf16: d_x = d_y W (+ d_x).  d_y: [rows, out_features] bf16;  weight: [out_features,
// in_features] bf16;  d_x: [rows, in_features], written (=) or added to (+=), rounded once. Products exact, sums in f32, out_features
// in steps of 16 in ascending order by mma.m16n8k16.
// Geometry: a block a tile of d_x, numbered as in tile_of_block; THREADS and SHARED_BYTES of the tile.  Any sizes.
// Limit: 2 rows out_features in_features FLOPs.
extern "C" __global__ void __launch_bounds__(LargeTiles::THREADS, 1)
    linear_backward_input_large_f32_bf16(float* __restrict__ d_x, const bf16* __restrict__ d_y, const bf16* __restrict__ weight,
                                        LinearBackwardInputSizes sizes) {
    DYN_SMEM(shared);
    input_mma<LargeTiles>(shared, d_x, d_y, weight, sizes);
}
EXPORT_KERNEL(linear_backward_input_large_f32_bf16, LargeTiles::THREADS)

extern "C" __global__ void __launch_bounds__(LargeTiles::THREADS, 1)
    linear_backward_input_large_bf16_bf16(bf16* __restrict__ d_x, const bf16* __restrict__ d_y, const bf16* __restrict__ weight,
                                         LinearBackwardInputSizes sizes) {
    DYN_SMEM(shared);
    input_mma<LargeTiles>(shared, d_x, d_y, weight, sizes);
}
EXPORT_KERNEL(linear_backward_input_large_bf16_bf16, LargeTiles::THREADS)

extern "C" __global__ void __launch_bounds__(SmallTiles::THREADS)
    linear_backward_input_small_f32_bf16(float* __restrict__ d_x, const bf16* __restrict__ d_y, const bf16* __restrict__ weight,
                                        LinearBackwardInputSizes sizes) {
    DYN_SMEM(shared);
    input_mma<SmallTiles>(shared, d_x, d_y, weight, sizes);
}
EXPORT_KERNEL(linear_backward_input_small_f32_bf16, SmallTiles::THREADS)

extern "C" __global__ void __launch_bounds__(SmallTiles::THREADS)
    linear_backward_input_small_bf16_bf16(bf16* __restrict__ d_x, const bf16* __restrict__ d_y, const bf16* __restrict__ weight,
                                         LinearBackwardInputSizes sizes) {
    DYN_SMEM(shared);
    input_mma<SmallTiles>(shared, d_x, d_y, weight, sizes);
}
EXPORT_KERNEL(linear_backward_input_small_bf16_bf16, SmallTiles::THREADS)

using TilesF32 = FmaTiles<64, 64, 4, 4>;

// linear_backward_input_f32_f32: the same in f32: one fused multiply-add a product, out_features ascending from 0, the bits of the
// CPU backend.  Geometry: a block a tile of d_x.  Any sizes.
// Limit: as above, at the rate of ordinary FMA units: for checks and for models that are kept in f32.
extern "C" __global__ void __launch_bounds__(TilesF32::THREADS)
    linear_backward_input_f32_f32(float* __restrict__ d_x, const float* __restrict__ d_y, const float* __restrict__ weight,
                                  LinearBackwardInputSizes sizes) {
    SHARED_ARRAY(float, a_tile, TilesF32::A_ELEMENTS);
    SHARED_ARRAY(float, b_tile, TilesF32::B_ELEMENTS);
    const Tile tile = own_tile<TilesF32>(sizes.rows, sizes.in_features);
    const Operand<float, Depth::Inner> a = {d_y, sizes.rows, sizes.d_y_stride};
    const Operand<float, Depth::Outer> b = {weight, sizes.in_features, sizes.weight_stride};
    float sums[TilesF32::TM][TilesF32::TN] = {};
    multiply_fma<TilesF32>(sums, a_tile, b_tile, a, b, tile, 0, sizes.out_features);
    each_element<TilesF32>(sums, tile,
                           [&](uint32_t row, uint32_t col, float sum) { store_d_x(d_x, row, col, sum, sizes); });
}
EXPORT_KERNEL(linear_backward_input_f32_f32, TilesF32::THREADS)

// ---- d_weight

__device__ __forceinline__ void add_d_weight(float* d_weight, uint32_t row, uint32_t col, float sum,
                                             LinearBackwardWeightSizes sizes) {
    if (row < sizes.out_features && col < sizes.in_features) {
        float* at = d_weight + static_cast<size_t>(row) * sizes.in_features + col;
        *at = fmaf(sizes.scale, sum, *at);
    }
}

// Chain after chain by one block; or, where the grid has as many layers as there are chains, each by its own block into `chains`.
template <typename T>
__device__ __forceinline__ void weight_mma(unsigned char* shared, float* d_weight, float* chains, const bf16* x, const bf16* d_y,
                                           LinearBackwardWeightSizes sizes) {
    const Tile tile = own_tile<T>(sizes.out_features, sizes.in_features);
    const Operand<bf16, Depth::Outer> a = {d_y, sizes.out_features, sizes.d_y_stride};
    const Operand<bf16, Depth::Outer> b = {x, sizes.in_features, sizes.x_stride};
    if (gridDim.y > 1) {
        const uint32_t from = blockIdx.y * CHAIN_ROWS;
        Sums<T> sums = {};
        multiply<T>(sums, reinterpret_cast<bf16*>(shared), a, b, tile, from, min(from + CHAIN_ROWS, sizes.rows));
        float* own = chains + static_cast<size_t>(blockIdx.y) * sizes.out_features * sizes.in_features;
        const auto keep = [&](uint32_t row, uint32_t col, float sum) {
            if (row < sizes.out_features && col < sizes.in_features) {
                own[static_cast<size_t>(row) * sizes.in_features + col] = sum;
            }
        };
        each_pair<T>(sums, tile, [&](uint32_t row, uint32_t col, float first, float second) {
            keep(row, col, first);
            keep(row, col + 1, second);
        });
        return;
    }
    for (uint32_t from = 0; from < sizes.rows; from += CHAIN_ROWS) {
        Sums<T> sums = {};
        multiply<T>(sums, reinterpret_cast<bf16*>(shared), a, b, tile, from, min(from + CHAIN_ROWS, sizes.rows));
        each_pair<T>(sums, tile, [&](uint32_t row, uint32_t col, float first, float second) {
            add_d_weight(d_weight, row, col, first, sizes);
            add_d_weight(d_weight, row, col + 1, second, sizes);
        });
        // The next chain's first stages go where this one's last may still be read.
        __syncthreads();
    }
}

// linear_backward_weight_<tiles>_bf16: d_weight += scale * d_y^T x.  d_y: [rows, out_features] bf16;  x: [rows, in_features] bf16;
// d_weight: [out_features, in_features] f32. Products exact, sums in f32: chains of 2048 rows, in steps of 16 in ascending order by
// mma.m16n8k16, each added by a fused multiply-add.  chains: [chains, out_features, in_features] f32 (=) instead of d_weight, where
// the grid has a layer for each chain: LoRA pairs have too few tiles to cover the multiprocessors.
// Geometry: grid (tiles of d_weight, 1 or the number of chains); THREADS and SHARED_BYTES of the tile.  Any sizes.
// Limit: 2 rows out_features in_features FLOPs.
extern "C" __global__ void __launch_bounds__(LargeTiles::THREADS, 1)
    linear_backward_weight_large_bf16(float* __restrict__ d_weight, float* __restrict__ chains, const bf16* __restrict__ x,
                                      const bf16* __restrict__ d_y, LinearBackwardWeightSizes sizes) {
    DYN_SMEM(shared);
    weight_mma<LargeTiles>(shared, d_weight, chains, x, d_y, sizes);
}
EXPORT_KERNEL(linear_backward_weight_large_bf16, LargeTiles::THREADS)

extern "C" __global__ void __launch_bounds__(SmallTiles::THREADS)
    linear_backward_weight_small_bf16(float* __restrict__ d_weight, float* __restrict__ chains, const bf16* __restrict__ x,
                                      const bf16* __restrict__ d_y, LinearBackwardWeightSizes sizes) {
    DYN_SMEM(shared);
    weight_mma<SmallTiles>(shared, d_weight, chains, x, d_y, sizes);
}
EXPORT_KERNEL(linear_backward_weight_small_bf16, SmallTiles::THREADS)

constexpr int CHAIN_THREADS = 256;

// linear_backward_weight_chains: d_weight += scale * chain, for each of the chains above in ascending order, by fused multiply-adds:
// the bits of the block that walks them all.  Geometry: 256 threads a block, a thread an element.  Limit: the chains read once.
extern "C" __global__ void __launch_bounds__(CHAIN_THREADS)
    linear_backward_weight_chains(float* __restrict__ d_weight, const float* __restrict__ chains, LinearBackwardWeightSizes sizes) {
    const size_t count = static_cast<size_t>(sizes.out_features) * sizes.in_features;
    const size_t at = static_cast<size_t>(blockIdx.x) * CHAIN_THREADS + threadIdx.x;
    if (at >= count) {
        return;
    }
    float sum = d_weight[at];
    for (uint32_t from = 0; from < sizes.rows; from += CHAIN_ROWS) {
        sum = fmaf(sizes.scale, chains[from / CHAIN_ROWS * count + at], sum);
    }
    d_weight[at] = sum;
}
EXPORT_KERNEL(linear_backward_weight_chains, CHAIN_THREADS)

// linear_backward_weight_f32: the same in f32: one fused multiply-add a product, the bits of the CPU backend.  Geometry and limit as
// linear_backward_input_f32_f32.
extern "C" __global__ void __launch_bounds__(TilesF32::THREADS)
    linear_backward_weight_f32(float* __restrict__ d_weight, const float* __restrict__ x, const float* __restrict__ d_y,
                               LinearBackwardWeightSizes sizes) {
    SHARED_ARRAY(float, a_tile, TilesF32::A_ELEMENTS);
    SHARED_ARRAY(float, b_tile, TilesF32::B_ELEMENTS);
    const Tile tile = own_tile<TilesF32>(sizes.out_features, sizes.in_features);
    const Operand<float, Depth::Outer> a = {d_y, sizes.out_features, sizes.d_y_stride};
    const Operand<float, Depth::Outer> b = {x, sizes.in_features, sizes.x_stride};
    for (uint32_t from = 0; from < sizes.rows; from += CHAIN_ROWS) {
        float sums[TilesF32::TM][TilesF32::TN] = {};
        multiply_fma<TilesF32>(sums, a_tile, b_tile, a, b, tile, from, min(from + CHAIN_ROWS, sizes.rows));
        each_element<TilesF32>(sums, tile,
                               [&](uint32_t row, uint32_t col, float sum) { add_d_weight(d_weight, row, col, sum, sizes); });
    }
}
EXPORT_KERNEL(linear_backward_weight_f32, TilesF32::THREADS)

// ---- d_bias

template <typename T>
__device__ __forceinline__ void add_d_bias(float* partial, float* d_bias, const T* d_y, LinearBackwardBiasSizes sizes) {
    sum_columns(
        partial, sizes.rows, sizes.out_features,
        [=](uint32_t row, uint32_t col) { return to_f32(d_y[static_cast<size_t>(row) * sizes.d_y_stride + col]); },
        [=](uint32_t col, float sum) { d_bias[col] += sum; });
}

// linear_backward_bias_<d_y>: d_bias += sum over rows of d_y.  d_y: [rows, out_features], rows d_y_stride apart;  d_bias:
// [out_features] f32.  Sums in f32, in the order of sum_columns.  Geometry: a block of COLUMN_THREADS for 32 columns.  Limit: 1 read.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    linear_backward_bias_f32(float* __restrict__ d_bias, const float* __restrict__ d_y, LinearBackwardBiasSizes sizes) {
    SHARED_ARRAY(float, partial, COLUMN_THREADS);
    add_d_bias(partial, d_bias, d_y, sizes);
}
EXPORT_KERNEL(linear_backward_bias_f32, COLUMN_THREADS)

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    linear_backward_bias_bf16(float* __restrict__ d_bias, const bf16* __restrict__ d_y, LinearBackwardBiasSizes sizes) {
    SHARED_ARRAY(float, partial, COLUMN_THREADS);
    add_d_bias(partial, d_bias, d_y, sizes);
}
EXPORT_KERNEL(linear_backward_bias_bf16, COLUMN_THREADS)
