// What compiled kernels call: the surface of the emulator's runtime. Kernels reach it only through the names of CUDA
// (cuda_bf16.h), of ptx.cuh (emulator_ptx.h) and of device.cuh (emulator_export.h).
#pragma once

#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace emu {

// A place in a kernel's source. As a default argument `Site site = Site::here()` it is the caller's.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
    bool operator==(const Site& other) const { return file == other.file && line == other.line; }
};

// What a running thread may ask about itself. Threads of a block are fibers of one thread of the operating system.
struct Position {
    uint3 thread;
    unsigned lane;
    const uint3* block_index;
    const dim3* block_dim;
    const dim3* grid_dim;
};
extern __thread Position* current __attribute__((tls_model("initial-exec")));

// ---- Collectives

// Runs when the last lane has arrived: argument[i] is lane i's, or null where it takes no part.
using Combine = void (*)(void** argument);
enum class Collective : uint8_t { Syncwarp, Shuffle, Vote, Ldmatrix, Mma, Setmaxnreg };

void warp_collective(Collective kind, uint32_t mask, Combine combine, void* argument, Site site);
void block_barrier(Site site);
void named_barrier(int id, int threads, bool wait, Site site);

void shuffle_combine(void** argument);
struct ShuffleArgument {
    uint64_t value, result;
    int source;
};
void vote_combine(void** argument);
struct VoteArgument {
    bool predicate;
    uint32_t ballot;
};
void ldmatrix_check(const void* row, Site site);
void ldmatrix_combine(void** argument);
struct LdmatrixArgument {
    const void* row;
    uint32_t* registers;
    int matrices;
    bool transposed;
};
void mma_combine(void** argument);
struct MmaArgument {
    float* d;           // [rows][columns][4]
    const uint32_t* a;  // [rows][4]
    const uint32_t* b;  // [columns][2]
    int rows, columns;  // in tiles of 16 and 8
};

// ---- Memory

unsigned char* dynamic_shared();
// The same storage for all threads of a block that ask with the same key.
void* static_shared(size_t bytes, size_t alignment, const void* key);
uint32_t shared_offset(const void* pointer);

enum class Order : uint8_t { Relaxed, AcquireRelease, Acquire, Release };
enum class Atomic : uint8_t { Load, Store, Add, Increment, MaxSigned, MaxUnsigned, CompareAndSwap };
// Both return the old value. Increment: old >= value ? 0 : old + 1. CompareAndSwap: value where old == expected.
uint32_t atomic32(Atomic op, uint32_t* address, uint32_t value, uint32_t expected = 0, Order order = Order::Relaxed);
uint64_t atomic64(Atomic op, uint64_t* address, uint64_t value, uint64_t expected = 0, Order order = Order::Relaxed);

// ---- Asynchronous copies and tensor cores

void cp_async(void* destination, const void* source, int bytes, int source_bytes, Site site);
void cp_async_commit();
void cp_async_wait(int unfinished);

void mbarrier_init(uint64_t* barrier, int count);
void mbarrier_arrive(uint64_t* barrier, int expected_bytes);
void mbarrier_wait(uint64_t* barrier, int parity, Site site);
void fence_proxy_async();
void tma_load(void* destination, const void* map, int column, int row, uint64_t* barrier, Site site);

void wgmma_issue(float* d, int n, bool b_mn_major, uint64_t a, uint64_t b, int accumulate, Site site);
void wgmma_commit(Site site);
void wgmma_wait(int unfinished, Site site);

// ---- Kernels

struct Parameter {
    const char* type;  // "const bf16*", "uint32_t", "RmsNormSizes"
    size_t bytes;
    size_t alignment;
    size_t pointee_alignment;  // 0 where it is no pointer
};
struct Kernel {
    const char* name;
    void (*run)(void** arguments);
    const Parameter* parameters;
    int parameter_count;
    unsigned max_threads;  // a block
};
void register_kernel(const Kernel& kernel);

}  // namespace emu
