// Shared memory as kernels ask for it, atomics, and cp.async. The copy happens as late as it may by default: at the wait that covers
// it. Until then its destination holds poison, so a wait that is missing or too weak shows.
#include <algorithm>

#include "checker.h"
#include "launch.h"

namespace emu {

unsigned char* dynamic_shared() { return self().block->shared; }

void* static_shared(size_t bytes, size_t alignment, const void* key) {
    Block& block = *self().block;
    void*& array = block.statics[key];
    if (array == nullptr) {
        constexpr size_t GAP = 64;  // between arrays, so that running past one shows
        const size_t start = (block.shared_bytes + GAP + alignment - 1) / alignment * alignment;
        if (start + bytes > SHARED_SLOT || bytes > DEFAULT_SHARED) {
            fail("shared memory", "the kernel's static arrays need more than %zu bytes", DEFAULT_SHARED);
        }
        array = block.shared + start;
        block.shared_bytes = start + bytes;
        std::memset(array, POISON, bytes);
        mark(array, bytes, Uninitialised);
    }
    return array;
}

uint32_t shared_offset(const void* pointer) {
    if (!in_shared(pointer)) {
        fail("address space", "%p is not an address of shared memory", pointer);
    }
    return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - self().block->shared);
}

namespace {

void perform(const PendingCopy& copy) {
    std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.source_bytes));
    std::memset(static_cast<char*>(copy.destination) + copy.source_bytes, 0,
                static_cast<size_t>(copy.bytes - copy.source_bytes));
    // Bytes that nobody wrote remain so after the copy.
    mark(copy.destination, static_cast<size_t>(copy.bytes), Initialised);
    std::memcpy(state_of(copy.destination), state_of(copy.source), static_cast<size_t>(copy.source_bytes));
}

}  // namespace

void cp_async(void* destination, const void* source, int bytes, int source_bytes, Site site) {
    Thread& me = self();
    const char* file = base_name(site.file);
    const auto size = static_cast<size_t>(bytes);
    if (!in_shared(destination)) {
        fail("address space", "cp.async at %s:%d: destination %p is not shared memory", file, site.line, destination);
    }
    const uint32_t offset = shared_offset(destination);
    if (offset % size != 0 || reinterpret_cast<uintptr_t>(source) % size != 0) {
        fail("misaligned", "cp.async at %s:%d: shared offset 0x%x and source %p have to be multiples of %d", file,
             site.line, offset, source, bytes);
    }
    if (first_outside(destination, size) != nullptr) {
        fail("shared oob", "cp.async at %s:%d writes shared offset 0x%x, outside every array", file, site.line, offset);
    }
    if (source_bytes > 0) {
        if (in_shared(source) || first_outside(source, static_cast<size_t>(source_bytes)) != nullptr) {
            fail("global oob", "cp.async at %s:%d reads %d bytes at %p, outside every allocation", file, site.line,
                 source_bytes, source);
        }
        checker::access(source, static_cast<size_t>(source_bytes), checker::Access::AsyncRead, nullptr);
    }
    checker::access(destination, size, checker::Access::Write, nullptr);
    const PendingCopy copy{destination, source, bytes, source_bytes, me.copy_group};
    const Options::Async when = options().async;
    if (when == Options::Async::Early || (when == Options::Async::Random && me.block->random.below(2) == 0)) {
        perform(copy);
        return;
    }
    std::memset(destination, POISON, size);
    mark(destination, size, InFlight);
    me.copies.push_back(copy);
}

void cp_async_commit() { ++self().copy_group; }

void cp_async_wait(int unfinished) {
    Thread& me = self();
    const int done = me.copy_group - unfinished;
    size_t kept = 0;
    for (const PendingCopy& copy : me.copies) {
        if (copy.group < done) {
            perform(copy);
            // From here on it is a write of this thread, which others see behind the next barrier.
            checker::access(copy.destination, static_cast<size_t>(copy.bytes), checker::Access::AsyncWrite, nullptr);
        } else {
            me.copies[kept++] = copy;
        }
    }
    me.copies.resize(kept);
}

namespace {

template <typename T, typename Signed>
T apply(Atomic op, T old, T value, T expected) {
    switch (op) {
        case Atomic::Load:
            return old;
        case Atomic::Store:
            return value;
        case Atomic::Add:
            return old + value;
        case Atomic::Increment:
            return old >= value ? 0 : old + 1;
        case Atomic::MaxSigned:
            return static_cast<Signed>(old) < static_cast<Signed>(value) ? value : old;
        case Atomic::MaxUnsigned:
            return std::max(old, value);
        case Atomic::CompareAndSwap:
            return old == expected ? value : old;
    }
    return old;
}

template <typename T, typename Signed>
T atomic(Atomic op, T* address, T value, T expected) {
    T old = __atomic_load_n(address, __ATOMIC_ACQUIRE);
    while (!__atomic_compare_exchange_n(address, &old, apply<T, Signed>(op, old, value, expected), true, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE)) {
    }
    return old;
}

}  // namespace

uint32_t atomic32(Atomic op, uint32_t* address, uint32_t value, uint32_t expected, Order order) {
    checker::atomic_access(address, sizeof(*address), order, __builtin_return_address(0));
    return atomic<uint32_t, int32_t>(op, address, value, expected);
}

uint64_t atomic64(Atomic op, uint64_t* address, uint64_t value, uint64_t expected, Order order) {
    checker::atomic_access(address, sizeof(*address), order, __builtin_return_address(0));
    return atomic<uint64_t, int64_t>(op, address, value, expected);
}

}  // namespace emu
