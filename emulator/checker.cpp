// The checked mode: what each byte of memory is (memory.h), who wrote and read it last, and whether something orders the two.
//
// Shared memory. A warp has a vector clock, joined at barriers, mbarriers and completions of asynchronous work; within a warp
// __syncwarp orders the lanes. Two accesses of different threads, one a write, that nothing orders are a race.
//
// Global memory. Within a block barriers order; between the blocks of a launch only release and acquire on a counter do, and
// then only what came before the release in its thread or before a barrier. Launches follow one another.
//
// Cells stand for two bytes, with a mask of which. The last write and one or two reads are remembered: a race may be missed,
// but none is made up.
#include "checker.h"

#if EMULATOR_CHECKED

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "launch.h"

namespace emu::checker {
namespace {

struct Record {
    uint32_t time;
    uint16_t thread, lane_epoch;
};

struct SharedCell {
    uint32_t generation;  // of the block that uses it; another one's records are void
    Record write, read, other_read;
    uint16_t fences;  // fence.proxy.async of the writer when it wrote
    uint8_t write_bytes : 2, read_bytes : 2, other_read_bytes : 2, write_atomic : 1, write_ordinary : 1;
};
static_assert(sizeof(SharedCell) == 32);

struct GlobalCell {
    uint64_t launch : 20, block : 20, epoch : 11, thread : 10, atomic : 1, bytes : 2;
};
static_assert(sizeof(GlobalCell) == 8);

SharedCell* shared_cells;
GlobalCell *global_writes, *global_reads;
uint32_t launch_number;

// A release: what its thread did, and what its block did in earlier epochs, happened before. A counter carries some, a block
// has acquired some: the latest of each thread, by block.
struct Release {
    uint32_t thread, epoch;
    uint32_t acquired_by, acquired_in;  // thread and epoch of the acquiring block
};
using Releases = std::unordered_map<uint32_t, std::vector<Release>>;
std::unordered_map<const void*, Releases> counters;
Releases acquired;
uint32_t acquired_block;

void add(Releases& to, uint32_t block, const Release& release) {
    std::vector<Release>& list = to[block];
    for (Release& known : list) {
        if (known.thread == release.thread) {
            known = known.epoch <= release.epoch ? release : known;
            return;
        }
    }
    list.push_back(release);
}

const char* verb(Access kind) {
    switch (kind) {
        case Access::Read:
            return "read";
        case Access::Write:
            return "write";
        case Access::Atomic:
            return "atomic access";
        case Access::AsyncWrite:
            return "asynchronous write";
        case Access::AsyncRead:
            return "asynchronous read";
    }
    return "?";
}

bool writes(Access kind) { return kind == Access::Write || kind == Access::Atomic || kind == Access::AsyncWrite; }

// What is being accessed, for messages.
struct Spot {
    const void* address;
    size_t bytes;
    Access kind;
    const void* code;
    std::string text() const {
        char where[120];
        if (in_shared(address)) {
            std::snprintf(where, sizeof(where), "%s of %zu bytes at shared offset 0x%zx", verb(kind), bytes,
                          window_offset(address) % SHARED_SLOT);
        } else {
            std::snprintf(where, sizeof(where), "%s of %zu bytes at %p", verb(kind), bytes, address);
        }
        return where + source_line(code);
    }
};

// ---- Shared memory

bool unordered(const Thread& me, const Record& earlier) {
    if (earlier.thread == me.index) {
        return false;
    }
    const int warp = earlier.thread / LANES;
    if (warp == me.warp->index) {
        return earlier.lane_epoch == static_cast<uint16_t>(me.warp->lane_epoch) && earlier.time > me.acquired;
    }
    return earlier.time > me.warp->clock.time[warp];
}

[[noreturn]] void shared_race(const Spot& spot, const char* other, int thread) {
    fail("shared race", "%s, and an unordered %s by thread %d", spot.text().c_str(), other, thread);
}

// The bytes of cell `cell` that an access of [offset, offset + bytes) touches, as a mask.
unsigned touched(size_t cell, size_t offset, size_t bytes) {
    const unsigned first = offset <= cell * 2 ? 1 : 0;
    const unsigned second = offset + bytes >= cell * 2 + 2 ? 2 : 0;
    return first | second;
}

void check_shared(Thread& me, const Spot& spot) {
    const size_t offset = window_offset(spot.address);
    const bool write = writes(spot.kind), atomic = spot.kind == Access::Atomic;
    const Record mine = {me.warp->clock.time[me.warp->index], static_cast<uint16_t>(me.index),
                         static_cast<uint16_t>(me.warp->lane_epoch)};
    for (size_t i = offset / 2; i <= (offset + spot.bytes - 1) / 2; ++i) {
        SharedCell& cell = shared_cells[i];
        if (cell.generation != me.block->generation) {
            cell = {};
            cell.generation = me.block->generation;
        }
        const unsigned bytes = touched(i, offset, spot.bytes) & 3;
        if ((cell.write_bytes & bytes) != 0 && !(atomic && cell.write_atomic) && unordered(me, cell.write)) {
            shared_race(spot, "write", cell.write.thread);
        }
        if (spot.kind == Access::AsyncRead && (cell.write_bytes & bytes) != 0 && cell.write_ordinary &&
            me.block->threads[cell.write.thread].proxy_fences == cell.fences) {
            fail("proxy", "%s of what thread %d wrote by ordinary stores and did not fence (fence_proxy_async)",
                 spot.text().c_str(), cell.write.thread);
        }
        if (write) {
            if ((cell.read_bytes & bytes) != 0 && unordered(me, cell.read)) {
                shared_race(spot, "read", cell.read.thread);
            }
            if ((cell.other_read_bytes & bytes) != 0 && unordered(me, cell.other_read)) {
                shared_race(spot, "read", cell.other_read.thread);
            }
            cell.write = mine;
            cell.write_bytes = bytes & 3;
            cell.write_atomic = atomic;
            cell.write_ordinary = spot.kind == Access::Write;
            cell.fences = me.proxy_fences;
        } else {
            // Two readers, of different warps where there are such.
            if (cell.read_bytes != 0 && cell.read.thread != me.index &&
                (cell.read.thread / LANES != me.warp->index || cell.other_read_bytes == 0)) {
                cell.other_read = cell.read;
                cell.other_read_bytes = cell.read_bytes;
            }
            cell.read = mine;
            cell.read_bytes = bytes & 3;
        }
    }
}

// ---- Global memory

constexpr uint32_t EPOCHS = 1 << 11, BLOCKS = 1 << 20, LAUNCHES = 1 << 20;

bool before(uint32_t epoch, uint32_t later) {
    const uint32_t distance = (later - epoch) % EPOCHS;
    return distance != 0 && distance < EPOCHS / 2;
}

// Whether the running thread has acquired a release that covers the access.
bool covered(const Thread& me, const Release& release, const GlobalCell& cell) {
    const uint32_t epoch = release.epoch % EPOCHS;
    const bool released = before(cell.epoch, epoch) || (cell.epoch == epoch && cell.thread == release.thread);
    return released && (release.acquired_by == static_cast<uint32_t>(me.index) || release.acquired_in < me.block->epoch);
}

bool known(const Thread& me, const GlobalCell& cell) {
    const auto it = acquired.find(cell.block);
    return it != acquired.end() && std::any_of(it->second.begin(), it->second.end(),
                                               [&](const Release& release) { return covered(me, release, cell); });
}

void check_against(const Thread& me, const GlobalCell& cell, const GlobalCell& mine, const Spot& spot, const char* other) {
    if ((cell.bytes & mine.bytes) == 0 || cell.launch != mine.launch || (cell.atomic && mine.atomic)) {
        return;
    }
    const bool same_block = cell.block == mine.block;
    if (same_block ? cell.thread == mine.thread || cell.epoch != mine.epoch : known(me, cell)) {
        return;
    }
    fail("global race", "%s, and an unordered %s by block %u thread %u of the same launch", spot.text().c_str(), other,
         static_cast<unsigned>(cell.block), static_cast<unsigned>(cell.thread));
}

void check_global(Thread& me, const Spot& spot) {
    const size_t offset = window_offset(spot.address) - SHARED_BYTES;
    GlobalCell mine = {};
    mine.launch = launch_number % LAUNCHES;
    mine.block = me.block->number % BLOCKS;
    mine.epoch = me.block->epoch % EPOCHS;
    mine.thread = static_cast<uint32_t>(me.index) & 1023;
    mine.atomic = spot.kind == Access::Atomic;
    for (size_t i = offset / 2; i <= (offset + spot.bytes - 1) / 2; ++i) {
        mine.bytes = touched(i, offset, spot.bytes) & 3;
        check_against(me, global_writes[i], mine, spot, "write");
        if (writes(spot.kind)) {
            check_against(me, global_reads[i], mine, spot, "read");
            global_writes[i] = mine;
        } else {
            global_reads[i] = mine;
        }
    }
}

template <typename T>
T* map_shadow(size_t count) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("emulated device: mmap of the shadow memory");
        std::abort();
    }
    return static_cast<T*>(memory);
}

void map_shadows() {
    shared_cells = map_shadow<SharedCell>(SHARED_SLOT / 2);  // one worker
    global_writes = map_shadow<GlobalCell>(heap_bytes() / 2);
    global_reads = map_shadow<GlobalCell>(heap_bytes() / 2);
}

}  // namespace

void launch_begins(uint32_t number) {
    if (shared_cells == nullptr) {
        map_shadows();
    } else if (number % LAUNCHES == 0) {
        // The numbers in the cells begin anew: forget the old ones.
        madvise(global_writes, heap_bytes() / 2 * sizeof(GlobalCell), MADV_DONTNEED);
        madvise(global_reads, heap_bytes() / 2 * sizeof(GlobalCell), MADV_DONTNEED);
    }
    launch_number = number;
    counters.clear();
    acquired.clear();
}

void access(const void* address, size_t bytes, Access kind, const void* code) {
    if (!in_window(address) || current == nullptr || bytes == 0) {
        return;
    }
    Thread& me = self();
    const Spot spot{address, bytes, kind, code};
    const bool shared = in_shared(address);
    uint8_t* state = state_of(address);
    bool uninitialised = false;
    for (size_t i = 0; i < bytes; ++i) {
        if (state[i] == Outside) {
            fail(shared ? "shared oob" : "global oob", "%s: outside every %s", spot.text().c_str(),
                 shared ? "array of the block" : "allocation");
        }
        if (state[i] == InFlight) {
            fail("async", "%s while an asynchronous copy into it is in flight", spot.text().c_str());
        }
        uninitialised |= state[i] == Uninitialised;
    }
    if (uninitialised && (kind == Access::Write || kind == Access::Atomic)) {
        if (kind == Access::Atomic) {
            fail("uninitialised", "%s of memory that nothing wrote", spot.text().c_str());
        }
        std::memset(state, Initialised, bytes);
    } else if (uninitialised && kind == Access::Read) {
        fail("uninitialised", "%s of memory that nothing wrote", spot.text().c_str());
    } else if (uninitialised && kind == Access::AsyncRead && shared) {
        fail("uninitialised", "%s of memory that nothing wrote", spot.text().c_str());
    }
    if (me.block->number != acquired_block) {
        acquired_block = me.block->number;
        acquired.clear();
    }
    if (shared) {
        check_shared(me, spot);
    } else {
        check_global(me, spot);
    }
}

void atomic_access(const void* address, size_t bytes, Order order, const void* code) {
    access(address, bytes, Access::Atomic, code);
    if (!in_window(address) || in_shared(address)) {
        return;
    }
    Thread& me = self();
    const auto thread = static_cast<uint32_t>(me.index);
    Releases& carried = counters[address];
    if (order == Order::Acquire || order == Order::AcquireRelease) {
        for (const auto& [block, releases] : carried) {
            for (const Release& release : releases) {
                add(acquired, block, {release.thread, release.epoch, thread, me.block->epoch});
            }
        }
    }
    if (order == Order::Release || order == Order::AcquireRelease) {
        // What this thread has acquired goes on with it.
        for (const auto& [block, releases] : acquired) {
            for (const Release& release : releases) {
                if (release.acquired_by == thread || release.acquired_in < me.block->epoch) {
                    add(carried, block, release);
                }
            }
        }
        add(carried, me.block->number % BLOCKS, {thread, me.block->epoch, 0, 0});
    }
}

}  // namespace emu::checker

#endif
