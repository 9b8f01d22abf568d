// Kernels with one fault each, and right ones beside them, by which main.cpp holds the emulator to what it promises.
// All take (out, in, n); `in` holds small whole numbers.
#include "device.cuh"

#define FAULT(name)                                                                                \
    extern "C" __global__ void name(float* out, const float* in, uint32_t n);                      \
    EXPORT_KERNEL(name)                                                                            \
    extern "C" __global__ void name([[maybe_unused]] float* out, [[maybe_unused]] const float* in, \
                                    [[maybe_unused]] uint32_t n)

// ---- Shared memory and barriers

FAULT(neighbour) {
    SHARED_ARRAY(float, tile, 256);
    tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[(threadIdx.x + 1) % n];
}
FAULT(neighbour_without_barrier) {
    SHARED_ARRAY(float, tile, 256);
    tile[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = tile[(threadIdx.x + 1) % n];
}
FAULT(reuse_without_barrier) {
    SHARED_ARRAY(float, tile, 256);
    float sum = 0.0f;
    for (int round = 0; round < 3; ++round) {
        tile[threadIdx.x] = in[threadIdx.x] + static_cast<float>(round);
        __syncthreads();
        sum += tile[(threadIdx.x + 33) % n];
    }
    out[threadIdx.x] = sum;
}
FAULT(warp_exchange_without_syncwarp) {
    SHARED_ARRAY(float, tile, 256);
    tile[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
FAULT(same_value_by_all) {
    SHARED_ARRAY(float, flag, 1);
    flag[0] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = flag[0];
}
FAULT(shared_overrun) {
    DYN_SMEM(bytes);
    reinterpret_cast<float*>(bytes)[threadIdx.x + 1] = in[threadIdx.x];
    out[threadIdx.x] = 0.0f;
}
FAULT(static_overrun) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x + n - 63] = in[threadIdx.x];
    out[threadIdx.x] = 0.0f;
}
FAULT(shared_unset) {
    SHARED_ARRAY(float, tile, 256);
    if (threadIdx.x != 5) {
        tile[threadIdx.x] = 1.0f;
    }
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}
FAULT(register_unset) {
    float sum[4];
    for (int i = 1; i < 4; ++i) {
        sum[i] = in[i];
    }
    out[threadIdx.x] = sum[threadIdx.x % 4];
}
FAULT(two_barriers) {
    if (threadIdx.x % 2 == 0) {
        __syncthreads();  // of even threads
    } else {
        __syncthreads();  // of odd threads
    }
    out[threadIdx.x] = 0.0f;
}
FAULT(early_return) {
    if (threadIdx.x == n - 1) {
        return;
    }
    __syncthreads();
    out[threadIdx.x] = 0.0f;
}
FAULT(half_shuffle) {
    float v = in[threadIdx.x];
    if (threadIdx.x % 32 < 16) {
        v += __shfl_xor_sync(0xffffffffu, v, 1);
    }
    out[threadIdx.x] = v;
}
FAULT(not_in_mask) { out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, in[threadIdx.x], 1); }
FAULT(named_barrier_count) {
    bar_sync(1, static_cast<int>(blockDim.x) - 32);
    bar_sync(2, 32 + static_cast<int>(threadIdx.x) / 32 * 32);
    out[threadIdx.x] = 0.0f;
}
FAULT(handover) {  // right: a producer warp and consumers by named barriers
    SHARED_ARRAY(float, tile, 32);
    for (int round = 0; round < 4; ++round) {
        if (threadIdx.x < 32) {
            if (round > 0) {
                bar_sync(2, 64);
            }
            tile[threadIdx.x] = in[threadIdx.x] + static_cast<float>(round);
            bar_arrive(1, 64);
        } else if (threadIdx.x < 64) {
            bar_sync(1, 64);
            out[threadIdx.x - 32] = tile[threadIdx.x ^ 33];
            if (round < 3) {
                bar_arrive(2, 64);
            }
        }
    }
}
FAULT(handover_too_early) {
    SHARED_ARRAY(float, tile, 32);
    for (int round = 0; round < 4; ++round) {
        if (threadIdx.x < 32) {
            tile[threadIdx.x] = in[threadIdx.x] + static_cast<float>(round);
            bar_arrive(1, 64);
            bar_sync(2, 64);
        } else if (threadIdx.x < 64) {
            bar_arrive(2, 64);
            bar_sync(1, 64);
            out[threadIdx.x - 32] = tile[threadIdx.x ^ 33];
        }
    }
}

// ---- Global memory

FAULT(read_behind) { out[threadIdx.x] = in[threadIdx.x + 1]; }
FAULT(write_behind) { out[threadIdx.x + 1] = in[threadIdx.x]; }
FAULT(read_unset) { out[threadIdx.x] = out[threadIdx.x] + 1.0f; }
FAULT(misaligned_vector) {
    const float4 v = *reinterpret_cast<const float4*>(in + threadIdx.x % 2);
    out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
FAULT(blocks_race) { out[threadIdx.x] = in[threadIdx.x] + static_cast<float>(blockIdx.x); }
FAULT(threads_race) { out[threadIdx.x / 2] = in[0]; }
FAULT(null_pointer) {
    out[threadIdx.x] = *reinterpret_cast<const volatile float*>(static_cast<uintptr_t>(n - blockDim.x + 64));
}
FAULT(shift_too_far) { out[threadIdx.x] = static_cast<float>(1 << (n - 256 + 40)); }
FAULT(index_overflow) { out[threadIdx.x] = static_cast<float>(static_cast<int>(n) * 10000000); }

// Sums over the grid, finished by the block that comes last.
template <bool BARRIER, bool RELEASE>
__device__ __forceinline__ void grid_sum(float* out, const float* in) {
    SHARED_ARRAY(uint32_t, last, 1);
    auto* counter = reinterpret_cast<uint32_t*>(out);
    float* partial = out + 1;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = in[threadIdx.x];
    if (BARRIER) {
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        last[0] = RELEASE ? atomic_inc_acq_rel(counter, gridDim.x - 1) : atomicAdd(counter, 1u);
    }
    __syncthreads();
    if (last[0] == gridDim.x - 1) {
        float sum = 0.0f;
        for (uint32_t block = 0; block < gridDim.x; ++block) {
            sum += partial[block * blockDim.x + (threadIdx.x + 1) % blockDim.x];
        }
        __syncthreads();
        partial[threadIdx.x] = sum;
    }
}
FAULT(last_block) { grid_sum<true, true>(out, in); }
FAULT(last_block_without_barrier) { grid_sum<false, true>(out, in); }
FAULT(last_block_relaxed) { grid_sum<true, false>(out, in); }

// What a block wrote, read by those that see its flag.
template <bool ACQUIRE>
__device__ __forceinline__ void read_flagged(float* out, const float* in) {
    SHARED_ARRAY(uint32_t, seen, 1);
    auto* flags = reinterpret_cast<uint32_t*>(out);
    float *values = out + 8, *sums = values + gridDim.x * blockDim.x;
    values[blockIdx.x * blockDim.x + threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        store_release(flags + blockIdx.x, 1);
    }
    float sum = 0.0f;
    for (uint32_t block = 0; block < gridDim.x; ++block) {
        if (threadIdx.x == 0) {
            seen[0] = ACQUIRE ? load_acquire(flags + block) : atomicAdd(flags + block, 0u);
        }
        __syncthreads();
        if (seen[0] == 1) {
            sum += values[block * blockDim.x + (threadIdx.x + 1) % blockDim.x];
        }
        __syncthreads();
    }
    sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
FAULT(flagged) { read_flagged<true>(out, in); }
FAULT(flagged_relaxed) { read_flagged<false>(out, in); }

// One thread's fault, by which the places in reports are known.
FAULT(one_thread_behind) {
    if (blockIdx.x == 2 && threadIdx.x == 7) {
        out[n] = in[0];
    }
}
FAULT(one_thread_waits) {
    if (blockIdx.x == 2 && threadIdx.x == 7) {
        bar_sync(1, 64);  // by one
    }
}
FAULT(one_thread_astray) {
    if (blockIdx.x == 2 && threadIdx.x == 7) {
        out[0] = *reinterpret_cast<const volatile float*>(static_cast<uintptr_t>(n));
    }
}

// ---- cp.async

template <int WAIT, bool BARRIER>
__device__ __forceinline__ void copy_through_shared(float* out, const float* in) {
    DYN_SMEM(bytes);
    auto* tile = reinterpret_cast<float*>(bytes);
    for (int half = 0; half < 2; ++half) {
        cp_async16(tile + half * 1024 + threadIdx.x * 4, in + threadIdx.x * 4 % blockDim.x);
        cp_async_commit();
    }
    cp_async_wait<WAIT>();
    if (BARRIER) {
        __syncthreads();
    }
    out[threadIdx.x] = tile[1024 + (threadIdx.x * 4 + 8) % blockDim.x];
    cp_async_wait<0>();
}
FAULT(async_copy) { copy_through_shared<0, true>(out, in); }
FAULT(async_copy_wait_too_weak) { copy_through_shared<1, true>(out, in); }
FAULT(async_copy_without_barrier) { copy_through_shared<0, false>(out, in); }
FAULT(async_copy_never_waited) {
    DYN_SMEM(bytes);
    cp_async16(bytes + threadIdx.x * 16, in);
    cp_async_commit();
}
FAULT(async_copy_misaligned) {
    DYN_SMEM(bytes);
    cp_async16(bytes + threadIdx.x * 16, in + 1);
    cp_async_wait<0>();
}
FAULT(async_copy_behind) {
    DYN_SMEM(bytes);
    cp_async16(bytes + threadIdx.x * 16, in + threadIdx.x + 4 - threadIdx.x % 4);
    cp_async_commit();
    cp_async_wait<0>();
}

// ---- Tensor cores

FAULT(ldmatrix_misaligned) {
    DYN_SMEM(bytes);
    uint32_t r[4];
    ldmatrix_x4(r, bytes + threadIdx.x * 16 + 8);
    out[threadIdx.x] = static_cast<float>(r[0]);
}
FAULT(mma_by_half_a_warp) {
    float d[4] = {};
    const uint32_t a[4] = {};
    if (threadIdx.x % 32 < 16) {
        mma_m16n8k16_bf16(d, a, 0, 0);
    }
    out[threadIdx.x] = d[0];
}
FAULT(registers_moved) {  // right: a warpgroup's registers for another's
    if (threadIdx.x < 128) {
        setmaxnreg_dec<40>();
    } else {
        setmaxnreg_inc<232>();
    }
    out[threadIdx.x] = in[threadIdx.x];
}
FAULT(registers_by_half_a_warp) {
    if (threadIdx.x % 32 < 16) {
        setmaxnreg_dec<40>();
    }
    out[threadIdx.x] = in[threadIdx.x];
}

// ---- mbarrier, TMA, wgmma. Right: D = A * B of [64, 64] each, small whole numbers, by one warpgroup.

__device__ __forceinline__ void init_barrier(uint64_t* barrier) {
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
}
FAULT(mbarrier_not_initialised) {
    DYN_SMEM(bytes);
    mbarrier_arrive(reinterpret_cast<uint64_t*>(bytes));
}
FAULT(mbarrier_wrong_parity) {
    DYN_SMEM(bytes);
    auto* barrier = reinterpret_cast<uint64_t*>(bytes);
    init_barrier(barrier);
    if (threadIdx.x == 0) {
        mbarrier_arrive(barrier);
    }
    mbarrier_wait(barrier, 0);
    mbarrier_wait(barrier, 1);
}

// Writes element (row, k) of a K-major tile of 64 columns with the 128-byte swizzle.
__device__ __forceinline__ void put(unsigned char* tile, uint32_t row, uint32_t k, float value) {
    const uint32_t offset = row * 128 + k * 2;
    *reinterpret_cast<__nv_bfloat16*>(tile + (offset ^ (offset >> 3 & 0x70))) = __float2bfloat16_rn(value);
}
template <bool FENCE, bool WAIT, bool MN_MAJOR>
__device__ __forceinline__ void tile_product(float* out, const float* in, uint32_t n) {
    DYN_SMEM(a);
    unsigned char* b = a + 8192;
    for (uint32_t i = threadIdx.x; i < 4096; i += 128) {
        put(a, i / 64, i % 64, in[i % 64]);
        // [n, k], or with rows of k.
        put(b, i / 64, i % 64, MN_MAJOR ? in[(i / 64 + 2 * (i % 64)) % n] : in[(i % 64 + 2 * (i / 64)) % n]);
    }
    if (FENCE) {
        fence_proxy_async();
    }
    __syncthreads();
    float d[32] = {};
    wgmma_fence();
    for (uint32_t k = 0; k < 64; k += 16) {
        const uint64_t da = wgmma_descriptor(a + k * 2, 16, 1024, Swizzle::Bytes128);
        const uint64_t db = MN_MAJOR ? wgmma_descriptor(b + k * 128, 8192, 1024, Swizzle::Bytes128)
                                     : wgmma_descriptor(b + k * 2, 16, 1024, Swizzle::Bytes128);
        wgmma_m64k16_bf16<64, MN_MAJOR>(d, da, db, 1);
    }
    wgmma_commit();
    if (WAIT) {
        wgmma_wait<0>();
    }
    const uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (uint32_t j = 0; j < 8; ++j) {
        for (uint32_t h = 0; h < 2; ++h) {
            for (uint32_t e = 0; e < 2; ++e) {
                out[(row + 8 * h) * 64 + 8 * j + column + e] = d[4 * j + 2 * h + e];
            }
        }
    }
    wgmma_wait<0>();
}
FAULT(product) { tile_product<true, true, false>(out, in, n); }
FAULT(product_mn_major) { tile_product<true, true, true>(out, in, n); }
FAULT(product_without_fence) { tile_product<false, true, false>(out, in, n); }
FAULT(product_without_wait) { tile_product<true, false, false>(out, in, n); }

template <bool WAIT, bool FIRST_EXPECT>
__device__ __forceinline__ void load_box(float* out, const TensorMap& map) {
    DYN_SMEM(bytes);
    auto* barrier = reinterpret_cast<uint64_t*>(bytes + 8192);
    init_barrier(barrier);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(barrier, FIRST_EXPECT ? 4096 : 4112);
        tma_load_2d(bytes, &map, 8, -2, barrier);
    }
    if (WAIT) {
        mbarrier_wait(barrier, 0);
    }
    for (uint32_t i = threadIdx.x; i < 1024; i += blockDim.x) {
        out[i] = reinterpret_cast<const float*>(bytes)[i];
    }
}
extern "C" __global__ void box(const __grid_constant__ TensorMap map, float* out) { load_box<true, true>(out, map); }
EXPORT_KERNEL(box)
extern "C" __global__ void box_without_wait(const __grid_constant__ TensorMap map, float* out) {
    load_box<false, true>(out, map);
}
EXPORT_KERNEL(box_without_wait)
extern "C" __global__ void box_expects_more(const __grid_constant__ TensorMap map, float* out) {
    load_box<true, false>(out, map);
}
EXPORT_KERNEL(box_expects_more)

// For the tests of streams: slow to start, as it were, because it comes when the stream does.
FAULT(add_one) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = in[i] + 1.0f;
    }
}
