// Copies of whole rows: by index out of a table (embedding, gather) or to places (scatter), and from one storage type to another.

#include "pack.cuh"

// Mirrors RowsSizes of src/backend/cuda/rows.rs. Distances between rows in elements.
struct RowsSizes {
    uint32_t rows;
    uint32_t cols;
    uint32_t y_stride;
    uint32_t x_stride;
};
static_assert(sizeof(RowsSizes) == 16 && offsetof(RowsSizes, x_stride) == 12, "layout shared with Rust");

constexpr int THREADS = 256;

// N elements of row `to` of y from row `from` of x, for each of `rows` pairs that the functions give. Columns of y from cols to
// y_stride are written with zeros where PAD says so.
template <int N, bool PAD, typename Out, typename In, typename To, typename From>
__device__ __forceinline__ void copy_item(Out* y, const In* x, RowsSizes sizes, To to, From from) {
    const uint32_t cols = PAD ? sizes.y_stride : sizes.cols;
    const uint32_t in_row = cols / N;
    const size_t item = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (item >= static_cast<size_t>(sizes.rows) * in_row) {
        return;
    }
    const uint32_t row = static_cast<uint32_t>(item / in_row);
    const uint32_t col = static_cast<uint32_t>(item % in_row) * N;
    float value[N] = {};
    if (col < sizes.cols) {
        load_f32<N>(value, x + static_cast<size_t>(from(row)) * sizes.x_stride + col);
    }
    store_f32<N>(y + static_cast<size_t>(to(row)) * sizes.y_stride + col, value);
}

template <bool PAD, typename Out, typename In, typename To, typename From>
__device__ __forceinline__ void copy_rows(Out* y, const In* x, RowsSizes sizes, To to, From from) {
    if (sizes.cols % 8 == 0 && sizes.y_stride % 8 == 0 && sizes.x_stride % 8 == 0) {
        copy_item<8, PAD>(y, x, sizes, to, from);
    } else {
        copy_item<1, PAD>(y, x, sizes, to, from);
    }
}

// gather_rows_<y>_<x>: y[i] = x[index[i]] for i < rows.  y: [rows, cols];  x: [any, cols], its rows x_stride apart (padded
// weights).  The op `embedding` is this kernel on a weight matrix. f32 and bf16 go through f32, which is exact.
// Geometry: 256 threads a block, a thread for eight elements (one where a length is no multiple of 8).
// Limit: 1 read + 1 write of the rows named.
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows_f32_f32(float* __restrict__ y, const float* __restrict__ x, const uint32_t* __restrict__ index, RowsSizes sizes) {
    copy_rows<false>(y, x, sizes, [](uint32_t row) { return row; }, [=](uint32_t row) { return index[row]; });
}
EXPORT_KERNEL(gather_rows_f32_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows_f32_bf16(float* __restrict__ y, const bf16* __restrict__ x, const uint32_t* __restrict__ index, RowsSizes sizes) {
    copy_rows<false>(y, x, sizes, [](uint32_t row) { return row; }, [=](uint32_t row) { return index[row]; });
}
EXPORT_KERNEL(gather_rows_f32_bf16, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const uint32_t* __restrict__ index, RowsSizes sizes) {
    copy_rows<false>(y, x, sizes, [](uint32_t row) { return row; }, [=](uint32_t row) { return index[row]; });
}
EXPORT_KERNEL(gather_rows_bf16_bf16, THREADS)

// scatter_rows_<y>_<x>: y[index[i]] = x[i] for i < rows; the indices are all different. Geometry and limit as above.
extern "C" __global__ void __launch_bounds__(THREADS)
    scatter_rows_f32_f32(float* __restrict__ y, const float* __restrict__ x, const uint32_t* __restrict__ index, RowsSizes sizes) {
    copy_rows<false>(y, x, sizes, [=](uint32_t row) { return index[row]; }, [](uint32_t row) { return row; });
}
EXPORT_KERNEL(scatter_rows_f32_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    scatter_rows_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const uint32_t* __restrict__ index, RowsSizes sizes) {
    copy_rows<false>(y, x, sizes, [=](uint32_t row) { return index[row]; }, [](uint32_t row) { return row; });
}
EXPORT_KERNEL(scatter_rows_bf16_bf16, THREADS)

// convert_<y>_<x>: y[r, c] = x[r, c] rounded to y's type, 0 for c from cols to y_stride: rows that a matrix product can read
// 16 bytes at a time. Geometry and limit as above.
extern "C" __global__ void __launch_bounds__(THREADS)
    convert_f32_bf16(float* __restrict__ y, const bf16* __restrict__ x, RowsSizes sizes) {
    copy_rows<true>(y, x, sizes, [](uint32_t row) { return row; }, [](uint32_t row) { return row; });
}
EXPORT_KERNEL(convert_f32_bf16, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    convert_bf16_f32(bf16* __restrict__ y, const float* __restrict__ x, RowsSizes sizes) {
    copy_rows<true>(y, x, sizes, [](uint32_t row) { return row; }, [](uint32_t row) { return row; });
}
EXPORT_KERNEL(convert_bf16_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    convert_bf16_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, RowsSizes sizes) {
    copy_rows<true>(y, x, sizes, [](uint32_t row) { return row; }, [](uint32_t row) { return row; });
}
EXPORT_KERNEL(convert_bf16_bf16, THREADS)
