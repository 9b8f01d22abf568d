// Several neighbouring elements that are loaded and stored as one: 16 bytes a thread is what fills the memory bus.
#pragma once

// N elements of T at an address that is a multiple of N * sizeof(T).
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
    static_assert(N * sizeof(T) <= 16 && (N & (N - 1)) == 0, "one load of a power of two of elements, 16 bytes at most");
    T element[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* address) {
    return *reinterpret_cast<const Pack<T, N>*>(address);
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* address, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(address) = pack;
}
