// What threads do together: barriers of the block, meetings of a warp, and the operations that happen at a meeting.
#include <cstdio>

#include "checker.h"
#include "launch.h"

namespace emu {
namespace {

const char* name(Collective kind) {
    switch (kind) {
        case Collective::Syncwarp:
            return "__syncwarp";
        case Collective::Shuffle:
            return "a shuffle";
        case Collective::Vote:
            return "a vote";
        case Collective::Ldmatrix:
            return "ldmatrix";
        case Collective::Mma:
            return "mma.sync";
        case Collective::Setmaxnreg:
            return "setmaxnreg";
    }
    return "?";
}

// Everything before the barrier is known to everyone behind it.
void join_clocks(Block& block) {
    if (!CHECKED) {
        return;
    }
    Clock all;
    for (int i = 0; i < block.warp_count; ++i) {
        all.join(block.warps[i].clock);
    }
    for (int i = 0; i < block.warp_count; ++i) {
        Warp& warp = block.warps[i];
        warp.clock = all;
        ++warp.clock.time[i];
        ++warp.lane_epoch;
    }
    ++block.epoch;
}

void join_clocks(Block& block, Barrier& barrier) {
    if (!CHECKED) {
        return;
    }
    for (Thread* t : barrier.waiting) {
        t->warp->clock.join(barrier.clock);
    }
    for (int i = 0; i < block.warp_count; ++i) {
        ++block.warps[i].clock.time[i];
        ++block.warps[i].lane_epoch;
    }
    barrier.clock = {};
    ++block.epoch;  // Not everyone was there; global memory is then checked less strictly.
}

}  // namespace

void block_barrier(Site site) {
    Thread& me = self();
    Block& block = *me.block;
    Barrier& barrier = block.barriers[0];
    if (barrier.arrived == 0) {
        barrier.site = site;
    } else if (!(barrier.site == site)) {
        fail("divergent barrier", "reached __syncthreads at %s:%d while %d thread(s) wait at %s:%d", base_name(site.file),
             site.line, barrier.arrived, base_name(barrier.site.file), barrier.site.line);
    }
    // A GPU counts threads that returned as arrived; a kernel that relies on it is one edit away from a deadlock.
    if (block.alive != block.size) {
        fail("barrier after exit", "__syncthreads at %s:%d but %d thread(s) of the block have returned",
             base_name(site.file), site.line, block.size - block.alive);
    }
    barrier.waiting.push_back(&me);
    if (++barrier.arrived < block.size) {
        wait_for("__syncthreads", site);
        return;
    }
    barrier.arrived = 0;
    join_clocks(block);
    std::vector<Thread*>& all = barrier.waiting;
    if (options().shuffled) {
        // The last to arrive is not the first to go on.
        const int count = static_cast<int>(all.size());
        wake(block, all.data(), count);
        all.clear();
        resume();
    } else {
        all.pop_back();
        wake(block, all.data(), static_cast<int>(all.size()));
        all.clear();
    }
}

void named_barrier(int id, int threads, bool wait, Site site) {
    if (id == 0 && wait && threads == self().block->size) {
        block_barrier(site);
        return;
    }
    Thread& me = self();
    Block& block = *me.block;
    if (id <= 0 || id >= NAMED_BARRIERS || threads % LANES != 0 || threads <= 0 || threads > block.size) {
        fail("named barrier", "bar %d for %d threads at %s:%d", id, threads, base_name(site.file), site.line);
    }
    Barrier& barrier = block.barriers[id];
    if (barrier.arrived == 0) {
        barrier.expected = threads;
    } else if (barrier.expected != threads) {
        fail("named barrier", "bar %d at %s:%d for %d threads, but others arrived for %d", id, base_name(site.file),
             site.line, threads, barrier.expected);
    }
    if (CHECKED) {
        barrier.clock.join(me.warp->clock);
    }
    if (wait) {
        barrier.waiting.push_back(&me);
    }
    if (++barrier.arrived < barrier.expected) {
        if (wait) {
            wait_for("bar.sync", site);
        }
        return;
    }
    barrier.arrived = 0;
    join_clocks(block, barrier);
    if (wait) {
        barrier.waiting.pop_back();
    }
    if (!barrier.waiting.empty()) {
        wake(block, barrier.waiting.data(), static_cast<int>(barrier.waiting.size()));
        barrier.waiting.clear();
    }
}

void warp_collective(Collective kind, uint32_t mask, Combine combine, void* argument, Site site) {
    Thread& me = self();
    Warp& warp = *me.warp;
    const uint32_t bit = 1u << me.lane;
    const char* file = base_name(site.file);
    if ((mask & bit) == 0) {
        fail("bad mask", "%s at %s:%d: lane %u is not in its own mask %08x", name(kind), file, site.line, me.lane, mask);
    }
    if (const bool whole = kind >= Collective::Ldmatrix; whole && warp.present != ~0u) {
        fail("partial warp", "%s at %s:%d in a warp of fewer than 32 threads", name(kind), file, site.line);
    }
    mask &= warp.present;
    if ((mask & warp.exited) != 0) {
        fail("bad mask", "%s at %s:%d waits for lanes %08x, which have returned", name(kind), file, site.line,
             mask & warp.exited);
    }
    Meeting* meeting = nullptr;
    Meeting* unused = nullptr;
    for (Meeting& candidate : warp.meetings) {
        if (candidate.arrived == 0) {
            unused = &candidate;
        } else if ((candidate.mask & mask) != 0) {
            meeting = &candidate;
            break;
        }
    }
    if (meeting == nullptr) {
        if (unused == nullptr) {
            fail("divergent warp", "%s at %s:%d: more than four groups of lanes wait apart", name(kind), file, site.line);
        }
        meeting = unused;
        *meeting = {mask, 0, kind, site, {}};
    } else if (meeting->mask != mask || meeting->kind != kind || !(meeting->site == site)) {
        fail("divergent warp", "lane %u at %s %s:%d (mask %08x) while lanes %08x wait at %s %s:%d (mask %08x)", me.lane,
             name(kind), file, site.line, mask, meeting->arrived, name(meeting->kind), base_name(meeting->site.file),
             meeting->site.line, meeting->mask);
    }
    meeting->argument[me.lane] = argument;
    meeting->arrived |= bit;
    if (meeting->arrived != mask) {
        wait_for(name(kind), site);
        return;
    }
    if (combine != nullptr) {
        combine(meeting->argument);
    }
    meeting->arrived = 0;
    if (kind == Collective::Syncwarp && mask == warp.present) {
        ++warp.lane_epoch;  // Shuffles and the rest do not order memory.
    }
    Thread* others[LANES];
    int count = 0;
    for (uint32_t rest = mask & ~bit; rest != 0; rest &= rest - 1) {
        others[count++] = &me - me.lane + __builtin_ctz(rest);
    }
    if (count > 0) {
        wake(*me.block, others, count);
    }
}

void thread_leaves(Thread& me) {
    Block& block = *me.block;
    Warp& warp = *me.warp;
    me.exited = true;
    --block.alive;
    warp.exited |= 1u << me.lane;
    if (!me.copies.empty()) {
        fail("async", "the thread returns with %zu cp.async that nobody waited for", me.copies.size());
    }
    if (!me.wgmma.empty()) {
        fail("async", "the thread returns with %zu wgmma that nobody waited for", me.wgmma.size());
    }
    for (const Meeting& meeting : warp.meetings) {
        if (meeting.arrived != 0 && (meeting.mask >> me.lane & 1) != 0) {
            fail("exited lane", "the thread returns while lanes %08x of its warp wait for it at %s %s:%d", meeting.arrived,
                 name(meeting.kind), base_name(meeting.site.file), meeting.site.line);
        }
    }
    if (const Barrier& barrier = block.barriers[0]; barrier.arrived != 0) {
        fail("barrier after exit", "the thread returns while %d thread(s) wait at __syncthreads %s:%d", barrier.arrived,
             base_name(barrier.site.file), barrier.site.line);
    }
    if (block.alive == 0 && !block.tma.empty()) {
        fail("async", "the block ends with a TMA load in flight, issued at %s:%d", base_name(block.tma.front().site.file),
             block.tma.front().site.line);
    }
}

// ---- What happens at a meeting

void shuffle_combine(void** argument) {
    for (int i = 0; i < LANES; ++i) {
        if (auto* mine = static_cast<ShuffleArgument*>(argument[i])) {
            const auto* other = static_cast<ShuffleArgument*>(argument[mine->source & (LANES - 1)]);
            mine->result = other != nullptr ? other->value : ~uint64_t{0};
        }
    }
}

void vote_combine(void** argument) {
    uint32_t ballot = 0;
    for (int i = 0; i < LANES; ++i) {
        if (const auto* mine = static_cast<VoteArgument*>(argument[i]); mine != nullptr && mine->predicate) {
            ballot |= 1u << i;
        }
    }
    for (int i = 0; i < LANES; ++i) {
        if (auto* mine = static_cast<VoteArgument*>(argument[i])) {
            mine->ballot = ballot;
        }
    }
}

void ldmatrix_check(const void* row, Site site) {
    const char* file = base_name(site.file);
    if (!in_shared(row)) {
        fail("address space", "ldmatrix at %s:%d: %p is not shared memory", file, site.line, row);
    }
    if (shared_offset(row) % 16 != 0) {
        fail("misaligned", "ldmatrix at %s:%d: shared offset 0x%x is not a multiple of 16", file, site.line,
             shared_offset(row));
    }
    if (first_outside(row, 16) != nullptr) {
        fail("shared oob", "ldmatrix at %s:%d reads shared offset 0x%x, outside every array", file, site.line,
             shared_offset(row));
    }
    checker::access(row, 16, checker::Access::Read, __builtin_return_address(0));
}

void ldmatrix_combine(void** argument) {
    const auto& first = *static_cast<LdmatrixArgument*>(argument[0]);
    uint16_t matrix[4][8][8];
    for (int j = 0; j < first.matrices; ++j) {
        for (int row = 0; row < 8; ++row) {
            std::memcpy(matrix[j][row], static_cast<LdmatrixArgument*>(argument[j * 8 + row])->row, 16);
        }
    }
    for (int lane = 0; lane < LANES; ++lane) {
        uint32_t* r = static_cast<LdmatrixArgument*>(argument[lane])->registers;
        const int g = lane / 4, t = lane % 4;
        for (int j = 0; j < first.matrices; ++j) {
            const uint32_t low = first.transposed ? matrix[j][2 * t][g] : matrix[j][g][2 * t];
            const uint32_t high = first.transposed ? matrix[j][2 * t + 1][g] : matrix[j][g][2 * t + 1];
            r[j] = low | high << 16;
        }
    }
}

namespace {

typedef float Row8 __attribute__((vector_size(32)));

inline float low_bf16(uint32_t pair) {
    const uint32_t bits = pair << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float high_bf16(uint32_t pair) {
    const uint32_t bits = pair & 0xffff0000u;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace

// Each output is two sums over even and odd k, in order of k; a GPU's own order is not specified.
void mma_combine(void** argument) {
    const auto& first = *static_cast<MmaArgument*>(argument[0]);
    constexpr int COLUMNS = 32;
    alignas(32) float a[16][16];
    alignas(32) float b[COLUMNS][16][8];
    alignas(32) float d[COLUMNS][16][8];
    if (first.columns > COLUMNS) {
        fail("mma", "a tile of %d column blocks, and the emulator has room for %d", first.columns, COLUMNS);
    }
    for (int lane = 0; lane < LANES; ++lane) {
        const auto& m = *static_cast<MmaArgument*>(argument[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int j = 0; j < first.columns; ++j) {
            for (int half = 0; half < 2; ++half) {
                const uint32_t pair = m.b[j * 2 + half];
                b[j][2 * t + 8 * half][g] = low_bf16(pair);
                b[j][2 * t + 8 * half + 1][g] = high_bf16(pair);
            }
        }
    }
    for (int i = 0; i < first.rows; ++i) {
        for (int lane = 0; lane < LANES; ++lane) {
            const auto& m = *static_cast<MmaArgument*>(argument[lane]);
            const int g = lane / 4, t = lane % 4;
            for (int quarter = 0; quarter < 4; ++quarter) {
                const uint32_t pair = m.a[i * 4 + quarter];
                float* to = &a[g + quarter % 2 * 8][2 * t + quarter / 2 * 8];
                to[0] = low_bf16(pair);
                to[1] = high_bf16(pair);
            }
            for (int j = 0; j < first.columns; ++j) {
                const float* from = m.d + (i * first.columns + j) * 4;
                std::memcpy(&d[j][g][2 * t], from, 8);
                std::memcpy(&d[j][g + 8][2 * t], from + 2, 8);
            }
        }
        for (int row = 0; row < 16; ++row) {
            for (int j = 0; j < first.columns; ++j) {
                Row8 even, odd = {};
                std::memcpy(&even, d[j][row], sizeof(even));
                for (int k = 0; k < 16; k += 2) {
                    Row8 b0, b1;
                    std::memcpy(&b0, b[j][k], sizeof(b0));
                    std::memcpy(&b1, b[j][k + 1], sizeof(b1));
                    even += a[row][k] * b0;
                    odd += a[row][k + 1] * b1;
                }
                even += odd;
                std::memcpy(d[j][row], &even, sizeof(even));
            }
        }
        for (int lane = 0; lane < LANES; ++lane) {
            const auto& m = *static_cast<MmaArgument*>(argument[lane]);
            const int g = lane / 4, t = lane % 4;
            for (int j = 0; j < first.columns; ++j) {
                float* to = m.d + (i * first.columns + j) * 4;
                std::memcpy(to, &d[j][g][2 * t], 8);
                std::memcpy(to + 2, &d[j][g + 8][2 * t], 8);
            }
        }
    }
}

}  // namespace emu
