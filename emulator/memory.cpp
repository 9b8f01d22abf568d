#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "options.h"

namespace emu {

size_t window_bytes;
uint8_t* window_states;

namespace {

struct Allocation {
    size_t bytes;
    size_t reserved;  // with the red zone behind it
};

std::mutex mutex;
std::map<uintptr_t, Allocation> live;
std::multimap<size_t, uintptr_t> reusable;            // by reserved bytes
std::deque<std::pair<size_t, uintptr_t>> quarantine;  // freed, and kept for a while so that late accesses show
size_t quarantined, used;
uintptr_t top;

constexpr size_t QUARANTINE = size_t{64} << 20;

void* map_at(void* address, size_t bytes) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (address != nullptr ? MAP_FIXED_NOREPLACE : 0);
    void* mapped = mmap(address, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapped == MAP_FAILED) {
        std::perror("emulated device: mmap of its memory");
        std::abort();
    }
    return mapped;
}

bool poisoned(uintptr_t from, size_t bytes) {
    const auto* p = reinterpret_cast<const uint8_t*>(from);
    return std::all_of(p, p + bytes, [](uint8_t byte) { return byte == POISON; });
}

// The live allocation that holds the address, or end.
std::map<uintptr_t, Allocation>::iterator holder(uintptr_t address) {
    auto it = live.upper_bound(address);
    if (it == live.begin()) {
        return live.end();
    }
    --it;
    return address - it->first < it->second.bytes ? it : live.end();
}

bool intact(std::map<uintptr_t, Allocation>::iterator it) {
    const auto& [start, allocation] = *it;
    return poisoned(start - RED_ZONE, RED_ZONE) &&
           poisoned(start + allocation.bytes, allocation.reserved - allocation.bytes);
}

}  // namespace

size_t heap_bytes() { return options().memory * 2 + QUARANTINE + (size_t{1} << 28); }

void map_memory() {
    static std::once_flag once;
    std::call_once(once, [] {
        map_at(reinterpret_cast<void*>(WINDOW), SHARED_BYTES + heap_bytes());
        window_states = static_cast<uint8_t*>(map_at(nullptr, SHARED_BYTES + heap_bytes()));
        top = WINDOW + SHARED_BYTES;
        std::memset(reinterpret_cast<void*>(top), POISON, RED_ZONE);
        top += RED_ZONE;
        window_bytes = SHARED_BYTES + heap_bytes();
    });
}

void mark(const void* address, size_t bytes, ByteState state) { std::memset(state_of(address), state, bytes); }

const void* first_outside(const void* address, size_t bytes) {
    if (!in_window(address)) {
        return address;
    }
    const void* found = std::memchr(state_of(address), Outside, bytes);
    return found == nullptr ? nullptr
                            : static_cast<const char*>(address) + (static_cast<const uint8_t*>(found) - state_of(address));
}

void* allocate(size_t bytes) {
    map_memory();
    const std::lock_guard lock(mutex);
    if (bytes > options().memory || used + bytes > options().memory) {
        return nullptr;
    }
    size_t reserved = (bytes + 255) / 256 * 256 + RED_ZONE;
    uintptr_t start;
    if (const auto it = reusable.lower_bound(reserved); it != reusable.end() && it->first <= 2 * reserved) {
        std::tie(reserved, start) = *it;
        reusable.erase(it);
    } else {
        if (top + reserved > WINDOW + SHARED_BYTES + heap_bytes()) {
            return nullptr;
        }
        start = top;
        top += reserved;
    }
    live[start] = {bytes, reserved};
    used += bytes;
    auto* address = reinterpret_cast<void*>(start);
    std::memset(address, POISON, reserved);
    mark(address, bytes, Uninitialised);
    return address;
}

std::string release(void* address) {
    const std::lock_guard lock(mutex);
    const auto it = live.find(reinterpret_cast<uintptr_t>(address));
    char text[160];
    if (it == live.end()) {
        std::snprintf(text, sizeof(text), "[free] %p is not the start of a live allocation", address);
        return text;
    }
    const auto [bytes, reserved] = it->second;
    if (!intact(it)) {
        std::snprintf(text, sizeof(text), "[fence] bytes around the allocation of %zu bytes at %p were overwritten", bytes,
                      address);
        return text;
    }
    std::memset(address, POISON, bytes);
    mark(address, bytes, Outside);
    used -= bytes;
    quarantined += reserved;
    quarantine.emplace_back(reserved, it->first);
    live.erase(it);
    while (quarantined > QUARANTINE) {
        const auto [size, start] = quarantine.front();
        quarantine.pop_front();
        quarantined -= size;
        reusable.emplace(size, start);
        if (size >= size_t{16} << 20) {  // Large ones go back to the operating system until they are used again.
            madvise(reinterpret_cast<void*>((start + 4095) & ~uintptr_t{4095}), (size - 8192) & ~size_t{4095},
                    MADV_DONTNEED);
        }
    }
    return {};
}

size_t allocated_bytes() {
    const std::lock_guard lock(mutex);
    return used;
}

bool is_live(const void* address, size_t bytes) {
    const std::lock_guard lock(mutex);
    const auto start = reinterpret_cast<uintptr_t>(address);
    const auto it = holder(start);
    return it != live.end() && bytes <= it->first + it->second.bytes - start;
}

bool fences_intact(const void* address) {
    const std::lock_guard lock(mutex);
    const auto it = holder(reinterpret_cast<uintptr_t>(address));
    return it == live.end() || intact(it);
}

}  // namespace emu
