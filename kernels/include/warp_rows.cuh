// A row by one warp: no lane waits for another warp, and with a row a warp any number of rows fills the card as far as it can.
#pragma once

#include "pack.cuh"
#include "reduce.cuh"

// A block has four warps.
constexpr int THREADS = 128;

// How many elements a lane takes at a time, as a type: what is called with it is compiled for each.
template <int N>
struct Width {
    static constexpr int value = N;
};

// The number of the vector (a row, or a part of one) that this warp has.
__device__ __forceinline__ size_t own_vector() {
    return static_cast<size_t>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
}

// visit(width, row, start) for the warp's row of [rows, hidden], whose first element is `start`.
template <typename Visit>
__device__ __forceinline__ void own_row(uint32_t rows, uint32_t hidden, Visit visit) {
    const size_t row = own_vector();
    if (row >= rows) {
        return;
    }
    const size_t start = row * hidden;
    // Rows of another length start at addresses that 16-byte accesses cannot use.
    if (hidden % 8 == 0) {
        visit(Width<8>(), row, start);
    } else {
        visit(Width<1>(), row, start);
    }
}
