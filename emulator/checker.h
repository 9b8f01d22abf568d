// The checked mode's view of memory: who wrote and read each byte, and what orders them. In fast mode all of it is nothing.
#pragma once

#include "block.h"

namespace emu::checker {

enum class Access : uint8_t { Read, Write, Atomic, AsyncWrite, AsyncRead };

#if EMULATOR_CHECKED

void launch_begins(uint32_t number);
// An access of the running thread, by the instruction at `code`, or null.
void access(const void* address, size_t bytes, Access kind, const void* code);
void atomic_access(const void* address, size_t bytes, Order order, const void* code);

#else

inline void launch_begins(uint32_t) {}
inline void access(const void*, size_t, Access, const void*) {}
inline void atomic_access(const void*, size_t, Order, const void*) {}

#endif

}  // namespace emu::checker
