// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), as Llama and Qwen2 use it. Forward.

#include "device.cuh"
#include "dtype.cuh"
#include "pack.cuh"
#include "reduce.cuh"

// Mirrors RmsNormSizes of src/backend/cuda/rms_norm.rs, which asserts the same layout.
struct RmsNormSizes {
    uint32_t hidden;
    float eps;
};
static_assert(sizeof(RmsNormSizes) == 8 && offsetof(RmsNormSizes, eps) == 4, "layout shared with Rust");

constexpr int THREADS = 256;

// One row, N elements a step of each thread. The row is read twice; the second time it lies in L1, 16 KiB of it at most
// for the widest models.
template <int N>
__device__ __forceinline__ void rms_norm_row(bf16* y, const bf16* x, const bf16* weight, RmsNormSizes sizes) {
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x * N; i < sizes.hidden; i += THREADS * N) {
        const Pack<bf16, N> a = load_pack<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float value = to_f32(a.element[k]);
            squares += value * value;
        }
    }
    const float mean = block_sum<THREADS>(squares) / static_cast<float>(sizes.hidden);
    const float inv_rms = 1.0f / sqrtf(mean + sizes.eps);
    for (uint32_t i = threadIdx.x * N; i < sizes.hidden; i += THREADS * N) {
        const Pack<bf16, N> a = load_pack<N>(x + i);
        const Pack<bf16, N> w = load_pack<N>(weight + i);
        Pack<bf16, N> out;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            out.element[k] = to_bf16(to_f32(a.element[k]) * inv_rms * to_f32(w.element[k]));
        }
        store_pack<N>(y + i, out);
    }
}

// rms_norm: y = x * inv_rms * weight, inv_rms = 1 / sqrt(mean(x^2) + eps) per row.  x, y: [rows, hidden] bf16;  weight: [hidden] bf16.
// y is written (=), rounded once from f32. Sums in f32, in an order that depends on hidden only: a row's bits do not depend on its batch.
// Geometry: a block of 256 threads a row (grid = rows); no dynamic shared memory.  Any hidden >= 1; a multiple of 8 is read 16 bytes at a time.
// Limit: 1 read + 1 write = 4 bytes an element; [16384, 4096] on a card that copies at 4.3 TB/s: 62 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_bf16(bf16* __restrict__ y, const bf16* __restrict__ x, const bf16* __restrict__ weight, RmsNormSizes sizes) {
    const size_t row = static_cast<size_t>(blockIdx.x) * sizes.hidden;
    // Rows of another length start at addresses that 16-byte accesses cannot use.
    if (sizes.hidden % 8 == 0) {
        rms_norm_row<8>(y + row, x + row, weight, sizes);
    } else {
        rms_norm_row<1>(y + row, x + row, weight, sizes);
    }
}
EXPORT_KERNEL(rms_norm_bf16, THREADS)
