// wgmma (PTX ISA, "wgmma.mma_async"): queued by each thread when issued, computed when the first thread waits for it after
// all 128 have committed it. Until a thread's own wait its accumulators hold NaN. Waiting does not wait for the other warps'
// waits, as on the device.
#include "checker.h"
#include "launch.h"

namespace emu {
namespace {

constexpr int GROUP = 128;

struct Descriptor {
    uint32_t start, leading, stride;
    int swizzle;  // 0 none, 1 32 B, 2 64 B, 3 128 B
};

Descriptor decode(uint64_t bits) {
    const int mode = static_cast<int>(bits >> 62);  // 1: 128 B, 2: 64 B, 3: 32 B
    return {static_cast<uint32_t>(bits & 0x3fff) << 4, static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4,
            static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4, mode == 0 ? 0 : 4 - mode};
}

// The shared offset of element (mn, k) of a K-major operand: rows of one swizzle span (16, 32, 64 or 128 bytes), eight of
// which make a group; without swizzle the second eight k lie `leading` bytes further.
uint32_t k_major(const Descriptor& d, uint32_t mn, uint32_t k) {
    const uint32_t span = 16u << d.swizzle;
    const uint32_t along = d.swizzle == 0 ? k / 8 * d.leading + k % 8 * 2 : k * 2;
    return swizzled(d.start + mn / 8 * d.stride + mn % 8 * span + along, d.swizzle);
}

// The same of an MN-major operand: rows are k, and a swizzle span of them holds 8, 16, 32 or 64 neighbouring mn. Spans that
// follow along mn lie `leading` bytes apart, groups of eight k `stride` (without swizzle: the other way round).
uint32_t mn_major(const Descriptor& d, uint32_t mn, uint32_t k) {
    const uint32_t span = 16u << d.swizzle, width = span / 2;
    const uint32_t next_mn = d.swizzle == 0 ? d.stride : d.leading, next_k = d.swizzle == 0 ? d.leading : d.stride;
    return swizzled(d.start + mn / width * next_mn + mn % width * 2 + k % 8 * span + k / 8 * next_k, d.swizzle);
}

float read(const Block& block, uint32_t offset, Site site) {
    const unsigned char* address = block.shared + offset;
    if (offset >= SHARED_SLOT || first_outside(address, 2) != nullptr) {
        fail("shared oob", "wgmma at %s:%d reads shared offset 0x%x, outside every array", base_name(site.file), site.line,
             offset);
    }
    checker::access(address, 2, checker::Access::AsyncRead, nullptr);
    uint16_t bits;
    std::memcpy(&bits, address, sizeof(bits));
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
}

WgmmaCall& call_of(Thread& t, uint32_t sequence) { return t.wgmma[sequence - t.wgmma_first]; }

WgmmaAccumulator& accumulator_of(Thread& t, const float* d) {
    for (WgmmaAccumulator& a : t.accumulators) {
        if (a.d == d) {
            return a;
        }
    }
    fail("wgmma", "an accumulator was lost");
}

void compute(Block& block, Thread* group, uint32_t sequence) {
    const WgmmaCall first = call_of(group[0], sequence);
    for (int i = 1; i < GROUP; ++i) {
        if (sequence - group[i].wgmma_first >= group[i].wgmma.size()) {
            fail("wgmma", "%s:%d: threads of the warpgroup issued different numbers of wgmma", base_name(first.site.file),
                 first.site.line);
        }
        const WgmmaCall& other = call_of(group[i], sequence);
        if (other.a != first.a || other.b != first.b || other.accumulate != first.accumulate ||
            !(other.site == first.site)) {
            fail("wgmma", "%s:%d: threads 0 and %d of the warpgroup disagree on the operands", base_name(first.site.file),
                 first.site.line, i);
        }
    }
    const Descriptor da = decode(first.a), db = decode(first.b);
    auto& a = block.wgmma_a;
    auto& b = block.wgmma_b;
    for (uint32_t row = 0; row < 64; ++row) {
        for (uint32_t k = 0; k < 16; ++k) {
            a[row][k] = read(block, k_major(da, row, k), first.site);
        }
    }
    for (uint32_t column = 0; column < static_cast<uint32_t>(first.n); ++column) {
        for (uint32_t k = 0; k < 16; ++k) {
            b[k][column] = read(block, first.b_mn_major ? mn_major(db, column, k) : k_major(db, column, k), first.site);
        }
    }
    if (CHECKED) {
        Warp& warp = *self().warp;
        uint32_t& time = block.wgmma_clock[(group - block.threads) / GROUP].time[warp.index];
        time = std::max(time, warp.clock.time[warp.index]);
    }
    for (int row = 0; row < 64; ++row) {
        float sum[256] = {};
        for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < first.n; ++column) {
                sum[column] += a[row][k] * b[k][column];
            }
        }
        const int warp = row / 16, g = row % 8, half = row % 16 / 8;
        for (int t = 0; t < 4; ++t) {
            Thread& owner = group[warp * LANES + g * 4 + t];
            float* value = accumulator_of(owner, call_of(owner, sequence).d).value;
            for (int j = 0; j < first.n / 8; ++j) {
                for (int e = 0; e < 2; ++e) {
                    float& d = value[j * 4 + half * 2 + e];
                    d = (first.accumulate != 0 ? d : 0.0f) + sum[j * 8 + t * 2 + e];
                }
            }
        }
    }
}

Thread* warpgroup(Site site) {
    Block& block = *self().block;
    const int start = self().index / GROUP * GROUP;
    if (start + GROUP > block.size) {
        fail("wgmma", "%s:%d: the warpgroup has fewer than 128 threads", base_name(site.file), site.line);
    }
    return block.threads + start;
}

// How many groups all threads of the warpgroup have committed.
int committed(const Thread* group) {
    int fewest = group[0].wgmma_group;
    for (int i = 1; i < GROUP; ++i) {
        fewest = std::min(fewest, group[i].wgmma_group);
    }
    return fewest;
}

}  // namespace

void wgmma_issue(float* d, int n, bool b_mn_major, uint64_t a, uint64_t b, int accumulate, Site site) {
    if (options().capability.major < 9) {
        fail("wgmma", "%s:%d: compute capability 9.0 has it, not this device's", base_name(site.file), site.line);
    }
    Thread& me = self();
    warpgroup(site);
    WgmmaAccumulator* mine = nullptr;
    for (WgmmaAccumulator& candidate : me.accumulators) {
        mine = candidate.d == d ? &candidate : mine;
    }
    if (mine == nullptr) {
        mine = &me.accumulators.emplace_back();
        mine->d = d;
        mine->count = n / 2;
        mine->pending = 0;
        std::memcpy(mine->value, d, sizeof(float) * static_cast<size_t>(mine->count));
        std::memset(d, POISON, sizeof(float) * static_cast<size_t>(mine->count));
    }
    ++mine->pending;
    me.wgmma.push_back({d, a, b, n, accumulate, me.wgmma_group, b_mn_major, site});
}

void wgmma_commit(Site site) {
    Thread* group = warpgroup(site);
    Thread& me = self();
    ++me.wgmma_group;
    const int all = committed(group);
    Thread* ready[GROUP];
    int count = 0;
    for (int i = 0; i < GROUP; ++i) {
        if (group[i].waiting != nullptr && group[i].object == group && group[i].wgmma_target <= all) {
            group[i].object = nullptr;
            ready[count++] = &group[i];
        }
    }
    if (count > 0) {
        wake(*me.block, ready, count);
    }
}

void wgmma_wait(int unfinished, Site site) {
    Thread* group = warpgroup(site);
    Thread& me = self();
    Block& block = *me.block;
    const auto number = (group - block.threads) / GROUP;
    me.wgmma_target = me.wgmma_group - unfinished;
    if (committed(group) < me.wgmma_target) {
        wait_for("wgmma.wait_group", site, group);
    }
    size_t done = 0;
    while (done < me.wgmma.size() && me.wgmma[done].group < me.wgmma_target) {
        const uint32_t sequence = me.wgmma_first + static_cast<uint32_t>(done);
        if (sequence >= block.wgmma_done[number]) {
            compute(block, group, sequence);
            block.wgmma_done[number] = sequence + 1;
        }
        --accumulator_of(me, me.wgmma[done].d).pending;
        ++done;
    }
    if (CHECKED) {
        me.warp->clock.join(block.wgmma_clock[number]);
    }
    me.wgmma.erase(me.wgmma.begin(), me.wgmma.begin() + static_cast<std::ptrdiff_t>(done));
    me.wgmma_first += static_cast<uint32_t>(done);
    for (size_t i = 0; i < me.accumulators.size();) {
        WgmmaAccumulator& a = me.accumulators[i];
        if (a.pending == 0) {
            std::memcpy(a.d, a.value, sizeof(float) * static_cast<size_t>(a.count));
            me.accumulators.erase(me.accumulators.begin() + static_cast<std::ptrdiff_t>(i));
        } else {
            ++i;
        }
    }
}

}  // namespace emu
