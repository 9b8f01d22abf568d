// The factors of a matrix product C = A B whose k may run either way in memory.
#pragma once

#include <cstdint>

// Inner: k runs along a row of memory (x and weight of y = x W^T). Outer: from row to row (W of d_x = d_y W, both factors of
// d_W = d_y^T x).
enum class Depth { Inner, Outer };

// `count` rows of A or columns of B; `stride`: elements from one row of memory to the next.
//
// bf16: `data` is aligned to 16 bytes and `stride` a multiple of 8. Where `count` or k end within 8 elements of a row of memory,
// the rest of these 8 is read: behind k it must be zero, behind `count` it may be any number.
template <typename T, Depth DEPTH>
struct Operand {
    const T* data;
    uint32_t count;
    uint32_t stride;
};
