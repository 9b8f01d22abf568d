// Stands in for NVIDIA's header of this name where an ordinary C++ compiler compiles the kernels: the language of CUDA, its
// vector types, warp functions, atomics and bf16, as far as the kernels use them. A name that is missing here is added here.
#pragma once

// Before CUDA's keywords are macros: the standard library uses some of their names.
#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "emulator_runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (::emu::current->thread)
#define blockIdx (*::emu::current->block_index)
#define blockDim (*::emu::current->block_dim)
#define gridDim (*::emu::current->grid_dim)
#define warpSize 32

// ---- Vector types

// Copying one through a misaligned pointer is an error of a GPU. The compiler checks the alignment where a function takes a
// reference, so in checked kernels copying is such a function.
#ifdef EMULATOR_CHECKED_KERNELS
#define EMULATOR_COPY(name)                                          \
    name(const name& other) { memcpy(this, &other, sizeof(*this)); } \
    name& operator=(const name& other) {                             \
        memcpy(this, &other, sizeof(*this));                         \
        return *this;                                                \
    }
#else
#define EMULATOR_COPY(name)
#endif
#define EMULATOR_VECTOR2(name, T)          \
    struct alignas(2 * sizeof(T)) name {   \
        T x, y;                            \
        name() = default;                  \
        name(T x_, T y_) : x(x_), y(y_) {} \
        EMULATOR_COPY(name)                \
    };
#define EMULATOR_VECTOR4(name, T)                                    \
    struct alignas(4 * sizeof(T)) name {                             \
        T x, y, z, w;                                                \
        name() = default;                                            \
        name(T x_, T y_, T z_, T w_) : x(x_), y(y_), z(z_), w(w_) {} \
        EMULATOR_COPY(name)                                          \
    };
EMULATOR_VECTOR2(float2, float)
EMULATOR_VECTOR2(int2, int)
EMULATOR_VECTOR2(uint2, unsigned)
EMULATOR_VECTOR4(float4, float)
EMULATOR_VECTOR4(int4, int)
EMULATOR_VECTOR4(uint4, unsigned)
struct float3 {
    float x, y, z;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- bf16

struct alignas(2) __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    // To nearest, ties to even; every NaN becomes the canonical one.
    __nv_bfloat16(float value) {
        uint32_t u;
        memcpy(&u, &value, sizeof(u));
        bits = (u & 0x7fffffffu) > 0x7f800000u ? 0x7fff : static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
    }
    operator float() const {
        const uint32_t u = static_cast<uint32_t>(bits) << 16;
        float value;
        memcpy(&value, &u, sizeof(value));
        return value;
    }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __nv_bfloat16 __float2bfloat16(float v) { return v; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return v; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
    __nv_bfloat16 v;
    v.bits = bits;
    return v;
}

// ---- Arithmetic. Division, square root and the functions of <cmath> are those of the host.

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
#undef __expf
#define __expf(x) expf(x)
#undef __logf
#define __logf(x) logf(x)
template <typename To, typename From>
inline To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
inline float __int_as_float(int v) { return emulator_bits<float>(v); }
inline int __float_as_int(float v) { return emulator_bits<int>(v); }
inline float __uint_as_float(unsigned v) { return emulator_bits<float>(v); }
inline unsigned __float_as_uint(float v) { return emulator_bits<unsigned>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
inline size_t max(size_t a, size_t b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
using std::isfinite;

// ---- Barriers, shuffles and votes

inline void __syncthreads(::emu::Site site = ::emu::Site::here()) { ::emu::block_barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, ::emu::Site site = ::emu::Site::here()) {
    ::emu::warp_collective(::emu::Collective::Syncwarp, mask, nullptr, nullptr, site);
}

// `source`: the lane to read from. A lane that takes no part gives NaN.
template <typename T>
inline T emulator_shuffle(unsigned mask, T value, int source, ::emu::Site site) {
    static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
    ::emu::ShuffleArgument argument{0, 0, source};
    memcpy(&argument.value, &value, sizeof(T));
    ::emu::warp_collective(::emu::Collective::Shuffle, mask, ::emu::shuffle_combine, &argument, site);
    T result;
    memcpy(&result, &argument.result, sizeof(T));
    return result;
}
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, ::emu::Site site = ::emu::Site::here()) {
    const int lane = static_cast<int>(::emu::current->lane);
    return emulator_shuffle(mask, value, lane / width * width + (source & (width - 1)), site);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, ::emu::Site site = ::emu::Site::here()) {
    const int lane = static_cast<int>(::emu::current->lane), source = lane ^ flip;
    return emulator_shuffle(mask, value, source / width > lane / width ? lane : source, site);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, ::emu::Site site = ::emu::Site::here()) {
    const int lane = static_cast<int>(::emu::current->lane), source = lane + static_cast<int>(delta);
    return emulator_shuffle(mask, value, source / width != lane / width ? lane : source, site);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, ::emu::Site site = ::emu::Site::here()) {
    const int lane = static_cast<int>(::emu::current->lane), source = lane - static_cast<int>(delta);
    return emulator_shuffle(mask, value, source < 0 || source / width != lane / width ? lane : source, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, ::emu::Site site = ::emu::Site::here()) {
    ::emu::VoteArgument argument{predicate != 0, 0};
    ::emu::warp_collective(::emu::Collective::Vote, mask, ::emu::vote_combine, &argument, site);
    return argument.ballot;
}
inline int __any_sync(unsigned mask, int predicate, ::emu::Site site = ::emu::Site::here()) {
    return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ::emu::Site site = ::emu::Site::here()) {
    return __ballot_sync(mask, predicate == 0, site) == 0;
}

// ---- Memory

template <typename T>
inline T __ldg(const T* address) {
    return *address;
}
template <typename T>
inline T __ldcs(const T* address) {
    return *address;
}
template <typename T>
inline void __stcs(T* address, T value) {
    *address = value;
}
inline void __threadfence() {}  // Alone it orders nothing that the wrappers with acquire and release do not.
inline void __threadfence_block() {}

inline int atomicAdd(int* address, int value) {
    return static_cast<int>(
        ::emu::atomic32(::emu::Atomic::Add, reinterpret_cast<uint32_t*>(address), static_cast<uint32_t>(value)));
}
inline unsigned atomicAdd(unsigned* address, unsigned value) { return ::emu::atomic32(::emu::Atomic::Add, address, value); }
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    return ::emu::atomic64(::emu::Atomic::Add, reinterpret_cast<uint64_t*>(address), value);
}
inline int atomicMax(int* address, int value) {
    return static_cast<int>(
        ::emu::atomic32(::emu::Atomic::MaxSigned, reinterpret_cast<uint32_t*>(address), static_cast<uint32_t>(value)));
}
inline unsigned atomicMax(unsigned* address, unsigned value) {
    return ::emu::atomic32(::emu::Atomic::MaxUnsigned, address, value);
}
inline unsigned long long atomicMax(unsigned long long* address, unsigned long long value) {
    return ::emu::atomic64(::emu::Atomic::MaxUnsigned, reinterpret_cast<uint64_t*>(address), value);
}
inline unsigned atomicCAS(unsigned* address, unsigned expected, unsigned value) {
    return ::emu::atomic32(::emu::Atomic::CompareAndSwap, address, value, expected);
}
