// The largest logit of each row, chunk by chunk over the vocabulary (as cross_entropy.cu, whose head comment says why).

#include "device.cuh"
#include "reduce.cuh"

// Mirrors ArgmaxSizes of src/backend/cuda/argmax.rs.
struct ArgmaxSizes {
    uint32_t chunk;
    uint32_t first;
    float logit_scale;
};
static_assert(sizeof(ArgmaxSizes) == 12 && offsetof(ArgmaxSizes, logit_scale) == 8, "layout shared with Rust");

constexpr int THREADS = 256;
constexpr uint32_t NONE = 0xffffffffu;

// The better of two (value, id): the larger value, the lower id on a tie. NaN is never a candidate: its id is NONE.
__device__ __forceinline__ void keep_better(float& value, uint32_t& id, float other_value, uint32_t other_id) {
    const bool better = other_id != NONE && (id == NONE || other_value > value || (other_value == value && other_id < id));
    value = better ? other_value : value;
    id = better ? other_id : id;
}

// argmax_chunk: logits: [rows, chunk] f32, before logit_scale;  values: [rows] f32 and ids: [rows], the best so far: written in the
// first chunk (first = 0), updated after. The id of a row of NaN only is 0.  Geometry: a block of 256 threads a row.
// Limit: one read of the logits, which lie in L2.
extern "C" __global__ void __launch_bounds__(THREADS)
    argmax_chunk(float* __restrict__ values, uint32_t* __restrict__ ids, const float* __restrict__ logits, ArgmaxSizes sizes) {
    SHARED_ARRAY(float, warp_values, THREADS / WARP);
    SHARED_ARRAY(uint32_t, warp_ids, THREADS / WARP);
    const size_t row = blockIdx.x;
    float value = 0.0f;
    uint32_t id = NONE;
    for (uint32_t n = threadIdx.x; n < sizes.chunk; n += THREADS) {
        const float scaled = sizes.logit_scale * logits[row * sizes.chunk + n];
        keep_better(value, id, scaled, scaled == scaled ? sizes.first + n : NONE);
    }
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const float other_value = __shfl_xor_sync(0xffffffffu, value, distance);
        const uint32_t other_id = __shfl_xor_sync(0xffffffffu, id, distance);
        keep_better(value, id, other_value, other_id);
    }
    if (threadIdx.x % WARP == 0) {
        warp_values[threadIdx.x / WARP] = value;
        warp_ids[threadIdx.x / WARP] = id;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < THREADS / WARP; ++warp) {
            keep_better(value, id, warp_values[warp], warp_ids[warp]);
        }
        // A row that had only NaN so far holds (NaN, 0).
        if (sizes.first != 0 && values[row] == values[row]) {
            keep_better(value, id, values[row], ids[row]);
        }
        values[row] = id == NONE ? NAN : value;
        ids[row] = id == NONE ? 0 : id;
    }
}
EXPORT_KERNEL(argmax_chunk, THREADS)
