// A running block: its threads are fibers of one thread of the operating system, switched only where a thread has to wait.
#pragma once

#include <cstring>
#include <deque>
#include <unordered_map>
#include <vector>

#include "device/emulator_runtime.h"
#include "memory.h"
#include "options.h"

namespace emu {

constexpr int LANES = 32;
constexpr int MAX_THREADS = 1024;
constexpr int MAX_WARPS = MAX_THREADS / LANES;
constexpr int NAMED_BARRIERS = 16;

struct Block;
struct Launch;

// Vector clock: what a warp knows of the others' progress (checked mode).
struct Clock {
    uint32_t time[MAX_WARPS] = {};
    void join(const Clock& other) {
        for (int i = 0; i < MAX_WARPS; ++i) {
            time[i] = time[i] > other.time[i] ? time[i] : other.time[i];
        }
    }
};

// Lanes of a warp that wait for one another at a collective.
struct Meeting {
    uint32_t mask, arrived;
    Collective kind;
    Site site;
    void* argument[LANES];
};

struct Warp {
    int index;
    uint32_t present, exited;  // lanes
    Meeting meetings[4];       // of disjoint masks
    Clock clock;
    uint32_t lane_epoch;  // __syncwarp so far: orders the lanes' accesses among themselves
};

struct PendingCopy {  // cp.async
    void* destination;
    const void* source;
    int bytes, source_bytes, group;
};

struct WgmmaCall {
    float* d;
    uint64_t a, b;
    int n, accumulate, group;
    bool b_mn_major;
    Site site;
};
struct WgmmaAccumulator {  // the true values while the registers hold poison
    float* d;
    int count, pending;
    float value[128];
};

struct Thread : Position {
    Block* block;
    Warp* warp;
    int index;  // in the block
    bool exited;
    const char* waiting;  // for what, or null: it can run
    Site site;
    const void* object;   // the mbarrier it waits for ..
    int phase;            // .. and the phase
    void* stack_pointer;  // null: not started
    char* stack_top;
    std::vector<PendingCopy> copies;
    int copy_group;
    std::vector<WgmmaCall> wgmma;
    std::vector<WgmmaAccumulator> accumulators;
    int wgmma_group, wgmma_target;
    uint32_t wgmma_first;   // sequence number of wgmma[0]
    uint16_t proxy_fences;  // fence.proxy.async executed
    uint32_t acquired;      // latest time of its own warp learnt through an mbarrier
};

struct Barrier {
    int expected, arrived;
    Site site;
    std::vector<Thread*> waiting;
    Clock clock;
};

// The part of CUtensorMap that the emulated cuTensorMapEncodeTiled fills in.
struct TensorMapFields {
    uint64_t magic;
    char* base;
    uint32_t element_bytes, rank, swizzle, nan_fill;  // swizzle: 0 none, 1 32 B, 2 64 B, 3 128 B
    uint64_t extent[2], row_bytes;
    uint32_t box[2];
};
constexpr uint64_t TENSOR_MAP_MAGIC = 0x70616d726f736e74u;

struct TmaLoad {
    void* destination;
    TensorMapFields map;
    int column, row;
    uint64_t* barrier;
    int warp;
    uint32_t time;
    Site site;
};

struct Block {
    uint3 index;
    uint32_t number;  // in the grid
    Launch* launch;
    int size, alive;
    Thread* threads;
    Warp warps[MAX_WARPS];
    int warp_count;
    Barrier barriers[NAMED_BARRIERS];  // 0: __syncthreads
    unsigned char* shared;
    size_t dynamic_bytes, shared_bytes;
    std::unordered_map<const void*, void*> statics;
    std::deque<TmaLoad> tma;
    std::unordered_map<const uint64_t*, Clock> mbarrier_phase, mbarrier_next;  // checked mode
    uint32_t wgmma_done[MAX_WARPS / 4];
    Clock wgmma_clock[MAX_WARPS / 4];
    float wgmma_a[64][16], wgmma_b[16][256];  // operands of the one that is being computed
    uint32_t epoch;                           // __syncthreads so far
    uint32_t generation;                      // of the shared memory's shadow
    Random random{1};
    enum class Wake { Back, Front, Mixed } policy;  // where woken threads queue up
    uint16_t queue[2 * MAX_THREADS];                // a ring of threads that can run
    unsigned head, tail;
    void* main_stack_pointer;
    bool failed;
};

inline Thread& self() { return *static_cast<Thread*>(current); }

// ---- fibers.cpp

// Stack tops for MAX_THREADS fibers, each with a guard page below.
std::vector<char*> make_stacks();
// Runs the block until its last thread returns or a thread fails.
void run_fibers(Block& block);
// Ends this thread until somebody wakes it.
void wait_for(const char* what, Site site, const void* object = nullptr, int phase = 0);
// Goes on with whoever is next; this thread is in the queue already.
void resume();
// Makes threads runnable, in an order that depends on the seed.
void wake(Block& block, Thread** threads, int count);
// Leaves the block for good; the launch has its error already.
[[noreturn]] void abandon(Block& block);

// ---- collectives.cpp

void thread_leaves(Thread& thread);

// ---- mbarrier.cpp

void run_one_tma(Block& block);
uint32_t swizzled(uint32_t offset, int swizzle);  // 0 none, 1 32 B, 2 64 B, 3 128 B

// ---- report.cpp

// Stops the launch with "[kind] kernel .. block .. thread ..: message". For what a running thread did.
[[noreturn]] void fail(const char* kind, const char* format, ...) __attribute__((format(printf, 2, 3)));
// Which kernel runs on this thread of the operating system, for a crash: null where none.
Block*& running_block();
void install_crash_handler();
const char* base_name(const char* path);
// " at file.cu:12" of an address in a kernel's code, where it can be found out.
std::string source_line(const void* code);

}  // namespace emu
