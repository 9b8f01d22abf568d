// mbarrier objects and the TMA loads that complete on them (PTX ISA, "mbarrier", "cp.async.bulk.tensor").
#include "checker.h"
#include "launch.h"

namespace emu {
namespace {

// The object lives in its 64 bits of shared memory, as on the device, so that using it before its initialisation shows.
struct State {
    unsigned phase : 1, expected : 15, pending : 15, initialised : 1;
    int32_t bytes;  // of TMA loads still to come
};
static_assert(sizeof(State) == 8);

State load(const uint64_t* barrier) {
    State state;
    std::memcpy(&state, barrier, sizeof(state));
    return state;
}
void store(uint64_t* barrier, const State& state) { std::memcpy(barrier, &state, sizeof(state)); }

void check_address(const uint64_t* barrier) {
    if (!in_shared(barrier) || reinterpret_cast<uintptr_t>(barrier) % 8 != 0 || first_outside(barrier, 8) != nullptr) {
        fail("mbarrier", "%p is not 8 aligned bytes of shared memory", static_cast<const void*>(barrier));
    }
}

State checked(const uint64_t* barrier) {
    check_address(barrier);
    if (*state_of(barrier) != Initialised || *barrier == ~uint64_t{0}) {
        fail("mbarrier", "the one at shared offset 0x%x is used before mbarrier.init", shared_offset(barrier));
    }
    return load(barrier);
}

// Ends the phase if nothing is missing any more, and wakes who waits for that.
void settle(Block& block, uint64_t* barrier, State state) {
    if (state.pending != 0 || state.bytes != 0) {
        store(barrier, state);
        return;
    }
    const int finished = static_cast<int>(state.phase);
    state.phase ^= 1;
    state.pending = state.expected;
    store(barrier, state);
    if (CHECKED) {
        block.mbarrier_phase[barrier] = block.mbarrier_next[barrier];
    }
    Thread* woken[MAX_THREADS];
    int count = 0;
    for (int i = 0; i < block.size; ++i) {
        Thread& t = block.threads[i];
        if (t.waiting != nullptr && t.object == barrier && t.phase == finished) {
            t.object = nullptr;
            woken[count++] = &t;
        }
    }
    if (count > 0) {
        wake(block, woken, count);
    }
}

}  // namespace

void mbarrier_init(uint64_t* barrier, int count) {
    check_address(barrier);
    if (count < 1 || count >= 1 << 15) {
        fail("mbarrier", "a count of %d", count);
    }
    checker::access(barrier, 8, checker::Access::Write, nullptr);
    const auto n = static_cast<unsigned>(count) & 0x7fffu;
    store(barrier, {0, n, n, 1, 0});
    mark(barrier, 8, Initialised);
    if (CHECKED) {
        self().block->mbarrier_phase[barrier] = {};
        self().block->mbarrier_next[barrier] = {};
    }
}

void mbarrier_arrive(uint64_t* barrier, int expected_bytes) {
    State state = checked(barrier);
    Block& block = *self().block;
    if (state.pending == 0) {
        fail("mbarrier", "more than the expected %u arrivals in one phase at shared offset 0x%x", state.expected,
             shared_offset(barrier));
    }
    --state.pending;
    state.bytes += expected_bytes;
    if (CHECKED) {
        Warp& warp = *self().warp;
        block.mbarrier_next[barrier].join(warp.clock);
        ++warp.clock.time[warp.index];
    }
    settle(block, barrier, state);
}

void mbarrier_wait(uint64_t* barrier, int parity, Site site) {
    const State state = checked(barrier);
    const int phase = parity & 1;
    if (static_cast<int>(state.phase) == phase) {
        wait_for("an mbarrier", site, barrier, phase);
    }
    if (CHECKED) {
        Thread& me = self();
        const Clock& clock = me.block->mbarrier_phase[barrier];
        // Within a warp only the lane that waited knows; see checker.cpp.
        const uint32_t time = clock.time[me.warp->index];
        me.acquired = time > me.acquired ? time : me.acquired;
        me.warp->clock.join(clock);
    }
}

void fence_proxy_async() { ++self().proxy_fences; }

// Exclusive or of address bits, on the offset in shared memory: 16-byte units within 128, 64 or 32 bytes change places.
uint32_t swizzled(uint32_t offset, int swizzle) {
    const uint32_t bits[] = {0, 0x10, 0x30, 0x70};
    return offset ^ (offset >> 3 & bits[swizzle]);
}

namespace {

void perform(Block& block, const TmaLoad& load_) {
    const TensorMapFields& map = load_.map;
    const auto start = static_cast<uint32_t>(static_cast<unsigned char*>(load_.destination) - block.shared);
    const size_t element = map.element_bytes;
    uint32_t written = 0;
    for (uint32_t i = 0; i < map.box[1]; ++i) {
        for (uint32_t j = 0; j < map.box[0]; ++j, written += map.element_bytes) {
            const int64_t row = int64_t{load_.row} + i, column = int64_t{load_.column} + j;
            const uint32_t to = swizzled(start + written, static_cast<int>(map.swizzle));
            const bool inside = row >= 0 && column >= 0 && static_cast<uint64_t>(row) < map.extent[1] &&
                                static_cast<uint64_t>(column) < map.extent[0];
            if (!inside) {
                std::memset(block.shared + to, 0, element);
                mark(block.shared + to, element, Initialised);
                continue;
            }
            const char* from =
                map.base + static_cast<uint64_t>(row) * map.row_bytes + static_cast<uint64_t>(column) * element;
            std::memcpy(block.shared + to, from, element);
            std::memcpy(state_of(block.shared + to), state_of(from), element);
        }
    }
    State state = load(load_.barrier);
    state.bytes -= static_cast<int32_t>(written);
    if (CHECKED) {
        uint32_t& time = block.mbarrier_next[load_.barrier].time[load_.warp];
        time = load_.time > time ? load_.time : time;
    }
    settle(block, load_.barrier, state);
}

}  // namespace

void run_one_tma(Block& block) {
    const size_t i = options().shuffled ? block.random.below(block.tma.size()) : 0;
    const TmaLoad load = block.tma[i];
    block.tma.erase(block.tma.begin() + static_cast<std::ptrdiff_t>(i));
    perform(block, load);
}

void tma_load(void* destination, const void* map, int column, int row, uint64_t* barrier, Site site) {
    Thread& me = self();
    const char* file = base_name(site.file);
    TensorMapFields fields;
    std::memcpy(&fields, map, sizeof(fields));
    if (fields.magic != TENSOR_MAP_MAGIC) {
        fail("tma", "%s:%d: not a tensor map of cuTensorMapEncodeTiled", file, site.line);
    }
    checked(barrier);
    const size_t bytes = size_t{fields.box[0]} * fields.box[1] * fields.element_bytes;
    const uint32_t alignment = fields.swizzle == 0 ? 128 : 128u << fields.swizzle;
    const uint32_t offset = shared_offset(destination);
    if (offset % alignment != 0) {
        fail("tma", "%s:%d: shared offset 0x%x has to be a multiple of %u with this swizzle", file, site.line, offset,
             alignment);
    }
    if (first_outside(destination, bytes) != nullptr) {
        fail("shared oob", "TMA at %s:%d writes %zu bytes at shared offset 0x%x, outside every array", file, site.line,
             bytes, offset);
    }
    const size_t last = (fields.extent[1] - 1) * fields.row_bytes + fields.extent[0] * fields.element_bytes;
    if (!is_live(fields.base, last)) {
        fail("global oob", "TMA at %s:%d: the tensor at %p is not within a live allocation", file, site.line, fields.base);
    }
    checker::access(destination, bytes, checker::Access::AsyncWrite, nullptr);
    std::memset(destination, POISON, bytes);
    mark(destination, bytes, InFlight);
    Warp& warp = *me.warp;
    me.block->tma.push_back({destination, fields, column, row, barrier, warp.index, warp.clock.time[warp.index], site});
    ++warp.clock.time[warp.index];
}

}  // namespace emu
