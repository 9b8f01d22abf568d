// The device's memory: one window of addresses that begins with the shared memory of each worker and goes on with the heap,
// and one byte of state for each byte of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {

constexpr uintptr_t WINDOW = 0x500000000000u;
constexpr size_t SHARED_SLOT = size_t{1} << 20;  // a worker's; one block runs on it at a time
constexpr size_t SHARED_BYTES = SHARED_SLOT * 32;
constexpr size_t DEFAULT_SHARED = 49152;  // bytes it may have without asking
constexpr size_t RED_ZONE = 256;          // poisoned bytes before and behind each allocation
constexpr int POISON = 0xff;              // as a float or bf16: NaN

enum ByteState : uint8_t { Outside = 0, Uninitialised = 1, Initialised = 2, InFlight = 3 };

// Maps the window. Everything below may be called after it.
void map_memory();

size_t heap_bytes();
extern size_t window_bytes;  // 0 until the window is mapped
extern uint8_t* window_states;
inline size_t window_offset(const void* address) { return reinterpret_cast<uintptr_t>(address) - WINDOW; }
inline bool in_window(const void* address) { return window_offset(address) < window_bytes; }
inline bool in_shared(const void* address) { return window_offset(address) < SHARED_BYTES; }
inline uint8_t* state_of(const void* address) { return window_states + window_offset(address); }
void mark(const void* address, size_t bytes, ByteState state);
// The first byte of the range that lies outside every allocation, or null.
const void* first_outside(const void* address, size_t bytes);

// Poisoned memory, or null where the device is full.
void* allocate(size_t bytes);
// An empty string, or what is wrong with it.
std::string release(void* address);
size_t allocated_bytes();
// Whether [address, address + bytes) lies within one live allocation; `bytes` may be 0.
bool is_live(const void* address, size_t bytes);
// Whether the red zones around the allocation that holds `address` are as they were.
bool fences_intact(const void* address);

}  // namespace emu
