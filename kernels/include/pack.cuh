// Several neighbouring elements that are loaded and stored as one: 16 bytes a thread is what fills the memory bus.
#pragma once

#include "dtype.cuh"

// N elements of T at an address that is a multiple of N * sizeof(T).
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
    static_assert(N * sizeof(T) <= 16 && (N & (N - 1)) == 0, "one load of a power of two of elements, 16 bytes at most");
    T element[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* address) {
    // By way of references: there the emulated device's checks look at the alignment.
    const Pack<T, N>& pack = *reinterpret_cast<const Pack<T, N>*>(address);
    return pack;
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* address, const Pack<T, N>& pack) {
    Pack<T, N>& destination = *reinterpret_cast<Pack<T, N>*>(address);
    destination = pack;
}

// Elements a load of at most 16 bytes holds, when N are wanted.
template <typename T, int N>
constexpr int PACK = N * static_cast<int>(sizeof(T)) <= 16 ? N : 16 / static_cast<int>(sizeof(T));

// N elements as f32, whatever they are stored as; the address is a multiple of 16 bytes, or of N elements if they are fewer.
template <int N, typename T>
__device__ __forceinline__ void load_f32(float (&value)[N], const T* address) {
    constexpr int STEP = PACK<T, N>;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        const Pack<T, STEP> pack = load_pack<STEP>(address + i);
#pragma unroll
        for (int k = 0; k < STEP; ++k) {
            value[i + k] = to_f32(pack.element[k]);
        }
    }
}

// The way back, each element rounded once.
template <int N, typename T>
__device__ __forceinline__ void store_f32(T* address, const float (&value)[N]) {
    constexpr int STEP = PACK<T, N>;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        Pack<T, STEP> pack;
#pragma unroll
        for (int k = 0; k < STEP; ++k) {
            pack.element[k] = from_f32<T>(value[i + k]);
        }
        store_pack<STEP>(address + i, pack);
    }
}
