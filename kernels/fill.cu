// One value everywhere.

#include "pack.cuh"

// Mirrors FillSizes of src/backend/cuda/fill.rs.
struct FillSizes {
    uint32_t rows;
    uint32_t cols;
    float value;
};
static_assert(sizeof(FillSizes) == 12 && offsetof(FillSizes, value) == 8, "layout shared with Rust");

constexpr int THREADS = 256;
// Elements a thread writes.
constexpr int STEP = 8;

template <typename T>
__device__ __forceinline__ void fill(T* y, FillSizes sizes) {
    const size_t count = static_cast<size_t>(sizes.rows) * sizes.cols;
    const size_t first = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * STEP;
    if (first + STEP <= count) {
        float value[STEP];
#pragma unroll
        for (int k = 0; k < STEP; ++k) {
            value[k] = sizes.value;
        }
        store_f32<STEP>(y + first, value);
    } else {
        for (size_t i = first; i < count; ++i) {
            y[i] = from_f32<T>(sizes.value);
        }
    }
}

// fill_<y>: y = value.  y: [rows, cols] (=).  Geometry: 256 threads a block, a thread for eight elements.  Limit: 1 write.
extern "C" __global__ void __launch_bounds__(THREADS) fill_f32(float* __restrict__ y, FillSizes sizes) { fill(y, sizes); }
EXPORT_KERNEL(fill_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS) fill_bf16(bf16* __restrict__ y, FillSizes sizes) { fill(y, sizes); }
EXPORT_KERNEL(fill_bf16, THREADS)
