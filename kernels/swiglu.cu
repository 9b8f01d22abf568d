// SwiGLU (Shazeer 2020, arXiv 2002.05202): the gated activation between the two halves of the MLP. Forward and
// backward.

#include "pack.cuh"

// Mirrors SwigluSizes of src/backend/cuda/swiglu.rs.
struct SwigluSizes {
    uint32_t rows;
    uint32_t intermediate;
};
static_assert(sizeof(SwigluSizes) == 8 && offsetof(SwigluSizes, intermediate) == 4, "layout shared with Rust");

constexpr int THREADS = 256;

// Where N neighbouring columns of a row lie that a thread computes. False for threads beyond the end.
template <int N>
struct Item {
    size_t y;
    size_t gate;
    size_t up;

    __device__ __forceinline__ bool find(SwigluSizes sizes) {
        const uint32_t in_row = sizes.intermediate / N;
        const size_t item = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
        if (item >= static_cast<size_t>(sizes.rows) * in_row) {
            return false;
        }
        y = item / in_row * sizes.intermediate + item % in_row * N;
        gate = y + item / in_row * sizes.intermediate;
        up = gate + sizes.intermediate;
        return true;
    }
};

template <int N, typename T>
__device__ __forceinline__ void swiglu_item(T* y, const T* gate_up, SwigluSizes sizes) {
    Item<N> at;
    if (!at.find(sizes)) {
        return;
    }
    float g[N];
    float u[N];
    load_f32<N>(g, gate_up + at.gate);
    load_f32<N>(u, gate_up + at.up);
#pragma unroll
    for (int k = 0; k < N; ++k) {
        u[k] = g[k] / (1.0f + expf(-g[k])) * u[k];
    }
    store_f32<N>(y + at.y, u);
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

template <int N, typename T>
__device__ __forceinline__ void swiglu_backward_item(T* d_gate_up, const T* gate_up, const T* d_y, SwigluSizes sizes) {
    Item<N> at;
    if (!at.find(sizes)) {
        return;
    }
    float g[N];
    float u[N];
    float d[N];
    load_f32<N>(g, gate_up + at.gate);
    load_f32<N>(u, gate_up + at.up);
    load_f32<N>(d, d_y + at.y);
#pragma unroll
    for (int k = 0; k < N; ++k) {
        const float sigmoid = 1.0f / (1.0f + expf(-g[k]));
        const float slope = sigmoid * fmaf(g[k], 1.0f - sigmoid, 1.0f);
        u[k] *= d[k] * slope;
        d[k] *= g[k] * sigmoid;
    }
    store_f32<N>(d_gate_up + at.gate, u);
    store_f32<N>(d_gate_up + at.up, d);
}

template <typename T>
__device__ __forceinline__ void swiglu_backward(T* d_gate_up, const T* gate_up, const T* d_y, SwigluSizes sizes) {
    if (sizes.intermediate % 8 == 0) {
        swiglu_backward_item<8>(d_gate_up, gate_up, d_y, sizes);
    } else {
        swiglu_backward_item<1>(d_gate_up, gate_up, d_y, sizes);
    }
}

// swiglu_backward_<x>: with s = 1 / (1 + exp(-gate)): d_up = d_y gate s, d_gate = d_y up s (1 + gate (1 - s)).  gate_up, d_gate_up (=):
// [rows, 2 * intermediate];  d_y: [rows, intermediate].  Computed in f32, rounded once.  Geometry as above.
// Limit: 3 reads + 2 writes, 10 bytes an element in bf16; [16384, 14336] at 4.3 TB/s: 546 us.
extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_backward_f32(float* __restrict__ d_gate_up, const float* __restrict__ gate_up, const float* __restrict__ d_y,
                        SwigluSizes sizes) {
    swiglu_backward(d_gate_up, gate_up, d_y, sizes);
}
EXPORT_KERNEL(swiglu_backward_f32, THREADS)

extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_backward_bf16(bf16* __restrict__ d_gate_up, const bf16* __restrict__ gate_up, const bf16* __restrict__ d_y,
                         SwigluSizes sizes) {
    swiglu_backward(d_gate_up, gate_up, d_y, sizes);
}
EXPORT_KERNEL(swiglu_backward_bf16, THREADS)
