// SwiGLU (Shazeer 2020, arXiv 2002.05202): the gated activation between the two halves of the MLP. Forward.

#include "pack.cuh"

// Mirrors SwigluSizes of src/backend/cuda/swiglu.rs.
struct SwigluSizes {
    uint32_t rows;
    uint32_t intermediate;
};
static_assert(sizeof(SwigluSizes) == 8 && offsetof(SwigluSizes, intermediate) == 4, "layout shared with Rust");

constexpr int THREADS = 256;

template <int N, typename T>
__device__ __forceinline__ void swiglu_item(T* y, const T* gate_up, SwigluSizes sizes) {
    const uint32_t in_row = sizes.intermediate / N;
    const size_t item = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (item >= static_cast<size_t>(sizes.rows) * in_row) {
        return;
    }
    const size_t row = item / in_row;
    const uint32_t col = static_cast<uint32_t>(item % in_row) * N;
    const T* gate = gate_up + row * 2 * sizes.intermediate + col;
    float g[N];
    float u[N];
    load_f32<N>(g, gate);
    load_f32<N>(u, gate + sizes.intermediate);
#pragma unroll
    for (int k = 0; k < N; ++k) {
        u[k] = g[k] / (1.0f + expf(-g[k])) * u[k];
    }
    store_f32<N>(y + row * sizes.intermediate + col, u);
}

template <typename T>
__device__ __forceinline__ void swiglu(T* y, const T* gate_up, SwigluSizes sizes) {
    if (sizes.intermediate % 8 == 0) {
        swiglu_item<8>(y, gate_up, sizes);
    } else {
        swiglu_item<1>(y, gate_up, sizes);
    }
}

// swiglu_<y>: y = gate / (1 + exp(-gate)) * up.  gate_up: [rows, 2 * intermediate], gate before up;  y: [rows, intermediate] (=).
// Computed in f32 (expf: 2 ulp), rounded once.
// Geometry: 256 threads a block, a thread for eight elements (one where intermediate is no multiple of 8).
// Limit: 2 reads + 1 write, 6 bytes an element in bf16; [16384, 14336] at 4.3 TB/s: 328 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_f32(float* __restrict__ y, const float* __restrict__ gate_up, SwigluSizes sizes) {
    swiglu(y, gate_up, sizes);
}
EXPORT_KERNEL(swiglu_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_bf16(bf16* __restrict__ y, const bf16* __restrict__ gate_up, SwigluSizes sizes) {
    swiglu(y, gate_up, sizes);
}
EXPORT_KERNEL(swiglu_bf16, THREADS)
