// The C++ twins of ptx.cuh: the same names, the same meaning, run by the emulator. What each does stands in ptx.cuh.
#pragma once

#include "cuda_bf16.h"

#define SM90_KERNELS 1

inline uint32_t smem_u32(const void* pointer) { return ::emu::shared_offset(pointer); }

inline float exp2_approx(float x) {
    const float y = exp2f(x);
    return y < FLT_MIN ? 0.0f : y;
}

inline uint32_t atomic_inc_acq_rel(uint32_t* counter, uint32_t limit) {
    return ::emu::atomic32(::emu::Atomic::Increment, counter, limit, 0, ::emu::Order::AcquireRelease);
}
inline uint32_t load_acquire(const uint32_t* counter) {
    return ::emu::atomic32(::emu::Atomic::Load, const_cast<uint32_t*>(counter), 0, 0, ::emu::Order::Acquire);
}
inline void store_release(uint32_t* counter, uint32_t value) {
    ::emu::atomic32(::emu::Atomic::Store, counter, value, 0, ::emu::Order::Release);
}

inline void bar_sync(int id, int threads, ::emu::Site site = ::emu::Site::here()) {
    ::emu::named_barrier(id, threads, true, site);
}
inline void bar_arrive(int id, int threads, ::emu::Site site = ::emu::Site::here()) {
    ::emu::named_barrier(id, threads, false, site);
}

inline void cp_async16(void* destination, const void* source, ::emu::Site site = ::emu::Site::here()) {
    ::emu::cp_async(destination, source, 16, 16, site);
}
inline void cp_async16_zfill(void* destination, const void* source, bool valid, ::emu::Site site = ::emu::Site::here()) {
    ::emu::cp_async(destination, source, 16, valid ? 16 : 0, site);
}
inline void cp_async_commit() { ::emu::cp_async_commit(); }
template <int N>
inline void cp_async_wait() {
    ::emu::cp_async_wait(N);
}

template <bool TRANS = false>
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, ::emu::Site site = ::emu::Site::here()) {
    ::emu::ldmatrix_check(row, site);
    ::emu::LdmatrixArgument argument{row, r, 4, TRANS};
    ::emu::warp_collective(::emu::Collective::Ldmatrix, ~0u, ::emu::ldmatrix_combine, &argument, site);
}
template <bool TRANS = false>
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, ::emu::Site site = ::emu::Site::here()) {
    if (::emu::current->lane < 16) {
        ::emu::ldmatrix_check(row, site);
    }
    ::emu::LdmatrixArgument argument{row, r, 2, TRANS};
    ::emu::warp_collective(::emu::Collective::Ldmatrix, ~0u, ::emu::ldmatrix_combine, &argument, site);
}

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              ::emu::Site site = ::emu::Site::here()) {
    const uint32_t b[2] = {b0, b1};
    ::emu::MmaArgument argument{d, a, b, 1, 1};
    ::emu::warp_collective(::emu::Collective::Mma, ~0u, ::emu::mma_combine, &argument, site);
}
// One meeting of the warp for the whole tile, not one for each instruction.
template <int MI, int NJ>
inline void mma_tile_bf16(float (&d)[MI][NJ][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NJ][2],
                          ::emu::Site site = ::emu::Site::here()) {
    ::emu::MmaArgument argument{&d[0][0][0], &a[0][0], &b[0][0], MI, NJ};
    ::emu::warp_collective(::emu::Collective::Mma, ~0u, ::emu::mma_combine, &argument, site);
}

struct alignas(64) TensorMap {
    uint64_t opaque[16];
};

inline void mbarrier_init(uint64_t* barrier, int count) { ::emu::mbarrier_init(barrier, count); }
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(uint64_t* barrier) { ::emu::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes) { ::emu::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(uint64_t* barrier, int parity, ::emu::Site site = ::emu::Site::here()) {
    ::emu::mbarrier_wait(barrier, parity, site);
}
inline void fence_proxy_async() { ::emu::fence_proxy_async(); }
inline void tma_load_2d(void* destination, const TensorMap* map, int column, int row, uint64_t* barrier,
                        ::emu::Site site = ::emu::Site::here()) {
    ::emu::tma_load(destination, map, column, row, barrier, site);
}
template <int REGISTERS>
inline void setmaxnreg_dec(::emu::Site site = ::emu::Site::here()) {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0);
    ::emu::warp_collective(::emu::Collective::Setmaxnreg, ~0u, nullptr, nullptr, site);
}
template <int REGISTERS>
inline void setmaxnreg_inc(::emu::Site site = ::emu::Site::here()) {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0);
    ::emu::warp_collective(::emu::Collective::Setmaxnreg, ~0u, nullptr, nullptr, site);
}

inline void wgmma_fence() {}
inline void wgmma_commit(::emu::Site site = ::emu::Site::here()) { ::emu::wgmma_commit(site); }
template <int N>
inline void wgmma_wait(::emu::Site site = ::emu::Site::here()) {
    ::emu::wgmma_wait(N, site);
}
template <int N, bool B_MN_MAJOR = false>
inline void wgmma_m64k16_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate,
                              ::emu::Site site = ::emu::Site::here()) {
    static_assert(N == 32 || N == 64 || N == 128 || N == 256, "widths we use");
    ::emu::wgmma_issue(d, N, B_MN_MAJOR, a, b, accumulate, site);
}
