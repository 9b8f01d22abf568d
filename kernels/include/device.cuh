// What every kernel file includes first: the storage types, shared memory, the export of kernels, and the instructions that
// CUDA C++ has no name for (ptx.cuh). The same files are compiled by nvcc for GPUs and, for tests on machines without one,
// by an ordinary C++ compiler against emulator/device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <cuda_bf16.h>

#ifdef __CUDACC__

// SHARED_ARRAY(T, name, n): a static array in shared memory. Emulation has to find, fence and poison it, so a plain
// `__shared__` does not compile there.
#define SHARED_ARRAY(T, name, n) __shared__ T name[n]

// DYN_SMEM(name): the dynamic shared memory of the launch as `unsigned char*`, aligned to 1024 bytes (what TMA and wgmma
// with 128-byte swizzle need).
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]

// EXPORT_KERNEL(name) or EXPORT_KERNEL(name, threads) after each `extern "C" __global__` function: registers it with the
// emulated driver, which then refuses blocks of more than `threads`. Nothing on the device.
#define EXPORT_KERNEL(name, ...)

#else

#include "emulator_export.h"

#endif

#include "ptx.cuh"
