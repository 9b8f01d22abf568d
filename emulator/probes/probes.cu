// What the instructions behind ptx.cuh do, bit for bit: each probe runs one on numbered input and writes everything it gave.
// On a GPU and on the emulated device the output has to be the same; probe.py prints it. Every function of ptx.cuh that is an
// instruction has a place here: ./scripts/probe refuses one that has none.
#include "device.cuh"

// All probes: out 32-bit words, poisoned before; `p` chooses the variant.

// 2^x of whole numbers, from denormal results on, without the last bits that an approximation may have wrong.
extern "C" __global__ void probe_exp2(uint32_t* out) {
    out[threadIdx.x] = (__float_as_uint(exp2_approx(static_cast<float>(static_cast<int>(threadIdx.x) - 140))) + 8) >> 4;
}
EXPORT_KERNEL(probe_exp2)

// A counter that 64 threads raise, and begins anew above 40.
extern "C" __global__ void probe_counter(uint32_t* out) {
    if (threadIdx.x == 0) {
        store_release(out, 0);
    }
    __syncthreads();
    atomic_inc_acq_rel(out, 40);
    __syncthreads();
    out[1 + threadIdx.x] = load_acquire(out);
}
EXPORT_KERNEL(probe_counter)

// One warp writes, the other reads.
extern "C" __global__ void probe_named_barrier(uint32_t* out) {
    SHARED_ARRAY(uint32_t, tile, 32);
    if (threadIdx.x < 32) {
        tile[threadIdx.x] = 1000 + threadIdx.x;
        bar_arrive(1, 64);
    } else {
        bar_sync(1, 64);
        out[threadIdx.x - 32] = tile[threadIdx.x ^ 33];
    }
}
EXPORT_KERNEL(probe_named_barrier)

// 16 bytes a lane; p: zeros for odd ones.
extern "C" __global__ void probe_cp_async(uint32_t* out, const uint16_t* in, uint32_t p) {
    DYN_SMEM(bytes);
    unsigned char* to = bytes + threadIdx.x * 16;
    if (p == 0) {
        cp_async16(to, in + threadIdx.x * 8);
    } else {
        cp_async16_zfill(to, in + threadIdx.x * 8, threadIdx.x % 2 == 0);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 128; i += 32) {
        out[i] = reinterpret_cast<const uint32_t*>(bytes)[i];
    }
}
EXPORT_KERNEL(probe_cp_async)

template <bool TRANS>
__device__ __forceinline__ void ldmatrix_all(uint32_t* out, const unsigned char* rows) {
    uint32_t four[4], two[2];
    ldmatrix_x4<TRANS>(four, rows + threadIdx.x * 16);
    ldmatrix_x2<TRANS>(two, rows + threadIdx.x % 16 * 16);
    for (int i = 0; i < 4; ++i) {
        out[threadIdx.x * 6 + i] = four[i];
    }
    out[threadIdx.x * 6 + 4] = two[0];
    out[threadIdx.x * 6 + 5] = two[1];
}
extern "C" __global__ void probe_ldmatrix(uint32_t* out, uint32_t p) {
    DYN_SMEM(bytes);
    for (uint32_t i = threadIdx.x; i < 256; i += 32) {
        reinterpret_cast<uint16_t*>(bytes)[i] = static_cast<uint16_t>(1000 + i);
    }
    __syncthreads();
    if (p == 0) {
        ldmatrix_all<false>(out, bytes);
    } else {
        ldmatrix_all<true>(out, bytes);
    }
}
EXPORT_KERNEL(probe_ldmatrix)

// Whole numbers so small that every order of adding is exact.
__device__ __forceinline__ float small(uint32_t i, uint32_t factor, uint32_t modulus) {
    return static_cast<float>(static_cast<int>(i * factor % modulus) - static_cast<int>(modulus / 2));
}
extern "C" __global__ void probe_mma(uint32_t* out, uint32_t p) {
    uint32_t a[4], b[2];
    float d[4];
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t n = (threadIdx.x * 4 + i) * 2 + p;
        a[i] = pack_bf16(small(n, 7, 11), small(n + 1, 7, 11));
        d[i] = static_cast<float>(threadIdx.x * 4 + i);
    }
    for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t n = (threadIdx.x * 2 + i) * 2;
        b[i] = pack_bf16(small(n, 5, 13), small(n + 1, 5, 13));
    }
    mma_m16n8k16_bf16(d, a, b[0], b[1]);
    for (uint32_t i = 0; i < 4; ++i) {
        out[threadIdx.x * 4 + i] = __float_as_uint(d[i]);
    }
}
EXPORT_KERNEL(probe_mma)

// A tile of 2 x 2 of them.
extern "C" __global__ void probe_mma_tile(uint32_t* out) {
    uint32_t a[2][4], b[2][2];
    float d[2][2][4];
    for (uint32_t i = 0; i < 8; ++i) {
        const uint32_t n = (threadIdx.x * 8 + i) * 2;
        a[i / 4][i % 4] = pack_bf16(small(n, 7, 11), small(n + 1, 7, 11));
    }
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t n = (threadIdx.x * 4 + i) * 2;
        b[i / 2][i % 2] = pack_bf16(small(n, 5, 13), small(n + 1, 5, 13));
    }
    for (uint32_t i = 0; i < 16; ++i) {
        d[i / 8][i / 4 % 2][i % 4] = static_cast<float>(threadIdx.x * 16 + i);
    }
    mma_tile_bf16(d, a, b);
    for (uint32_t i = 0; i < 16; ++i) {
        out[threadIdx.x * 16 + i] = __float_as_uint(d[i / 8][i / 4 % 2][i % 4]);
    }
}
EXPORT_KERNEL(probe_mma_tile)

#if SM90_KERNELS

// Two warpgroups, one of which takes the other's registers.
extern "C" __global__ void __launch_bounds__(256, 1) probe_registers(uint32_t* out) {
    if (threadIdx.x < 128) {
        setmaxnreg_dec<40>();
        out[threadIdx.x] = 3 * threadIdx.x;
    } else {
        setmaxnreg_inc<232>();
        out[threadIdx.x] = 5 * threadIdx.x;
    }
}
EXPORT_KERNEL(probe_registers, 256)

// Every thread writes and arrives, and reads another's once all have.
extern "C" __global__ void probe_mbarrier(uint32_t* out) {
    DYN_SMEM(bytes);
    auto* barrier = reinterpret_cast<uint64_t*>(bytes);
    auto* tile = reinterpret_cast<uint32_t*>(bytes + 8);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 64);
        fence_mbarrier_init();
    }
    __syncthreads();
    tile[threadIdx.x] = 2000 + threadIdx.x;
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, 0);
    out[threadIdx.x] = tile[63 - threadIdx.x];
}
EXPORT_KERNEL(probe_mbarrier)

// A box of 64 x 8 elements of 16 bits; p is not used.
extern "C" __global__ void probe_tma(const __grid_constant__ TensorMap map, uint32_t* out, int32_t column, int32_t row) {
    DYN_SMEM(bytes);
    auto* barrier = reinterpret_cast<uint64_t*>(bytes + 1024);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(barrier, 1024);
        tma_load_2d(bytes, &map, column, row, barrier);
    }
    mbarrier_wait(barrier, 0);
    for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) {
        out[i] = reinterpret_cast<const uint32_t*>(bytes)[i];
    }
}
EXPORT_KERNEL(probe_tma)

// d = a * b of raw shared memory: what the descriptors make of its bytes is the question.
template <int N, bool MN_MAJOR>
__device__ __forceinline__ void wgmma_probe(uint32_t* out, uint32_t swizzle, uint32_t leading, uint32_t stride) {
    DYN_SMEM(tiles);
    for (uint32_t i = threadIdx.x; i < 24576; i += 128) {
        reinterpret_cast<__nv_bfloat16*>(tiles)[i] = __float2bfloat16_rn(small(i + i / 64, 7, 11));
    }
    fence_proxy_async();
    __syncthreads();
    float d[N / 2];
    for (int i = 0; i < N / 2; ++i) {
        // Read, not made: a constant would be moved into its register behind the fence, and ptxas would add another fence there.
        d[i] = static_cast<float>(reinterpret_cast<const volatile uint8_t*>(tiles)[i]);
    }
    const uint64_t a = wgmma_descriptor(tiles, 128, 256, Swizzle::None);
    const uint64_t b = wgmma_descriptor(tiles + 2048, leading, stride, static_cast<Swizzle>(swizzle));
    wgmma_fence();
    wgmma_m64k16_bf16<N, MN_MAJOR>(d, a, b, 1);
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < N / 2; ++i) {
        out[threadIdx.x * (N / 2) + i] = __float_as_uint(d[i]);
    }
}
extern "C" __global__ void probe_wgmma_32(uint32_t* out, uint32_t swizzle, uint32_t leading, uint32_t stride) {
    wgmma_probe<32, false>(out, swizzle, leading, stride);
}
EXPORT_KERNEL(probe_wgmma_32, 128)
extern "C" __global__ void probe_wgmma_64(uint32_t* out, uint32_t swizzle, uint32_t leading, uint32_t stride) {
    wgmma_probe<64, false>(out, swizzle, leading, stride);
}
EXPORT_KERNEL(probe_wgmma_64, 128)
extern "C" __global__ void probe_wgmma_128(uint32_t* out, uint32_t swizzle, uint32_t leading, uint32_t stride) {
    wgmma_probe<128, false>(out, swizzle, leading, stride);
}
EXPORT_KERNEL(probe_wgmma_128, 128)
extern "C" __global__ void probe_wgmma_256(uint32_t* out, uint32_t swizzle, uint32_t leading, uint32_t stride) {
    wgmma_probe<256, false>(out, swizzle, leading, stride);
}
EXPORT_KERNEL(probe_wgmma_256, 128)
extern "C" __global__ void probe_wgmma_64_mn_major(uint32_t* out, uint32_t swizzle, uint32_t leading, uint32_t stride) {
    wgmma_probe<64, true>(out, swizzle, leading, stride);
}
EXPORT_KERNEL(probe_wgmma_64_mn_major, 128)
extern "C" __global__ void probe_wgmma_128_mn_major(uint32_t* out, uint32_t swizzle, uint32_t leading, uint32_t stride) {
    wgmma_probe<128, true>(out, swizzle, leading, stride);
}
EXPORT_KERNEL(probe_wgmma_128_mn_major, 128)

#endif
