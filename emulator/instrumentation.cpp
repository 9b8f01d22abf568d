// The checked mode compiles kernels with -fsanitize=thread and some of -fsanitize=undefined, but links neither's library: the
// calls that the compiler inserts before each access and at each doubtful operation end here.
#include "checker.h"

#if EMULATOR_CHECKED

#include <cstdio>
#include <cstdlib>

#include "launch.h"

using emu::checker::Access;

namespace {

inline void check(const void* address, size_t bytes, Access kind, const void* code) {
    // Most accesses of a kernel are to its own stack.
    if (emu::in_window(address)) {
        emu::checker::access(address, bytes, kind, code);
    }
}

// An access the compiler takes to be aligned has to be: a GPU traps.
inline void check_aligned(const void* address, size_t bytes, Access kind, const void* code) {
    if (emu::in_window(address) && emu::current != nullptr && reinterpret_cast<uintptr_t>(address) % bytes != 0) {
        emu::fail("misaligned", "an access of %zu bytes at %p%s", bytes, address, emu::source_line(code).c_str());
    }
    check(address, bytes, kind, code);
}

}  // namespace

#define CODE __builtin_return_address(0)

#define ACCESSES(n)                                                                      \
    void __tsan_read##n(void* p) { check_aligned(p, n, Access::Read, CODE); }            \
    void __tsan_write##n(void* p) { check_aligned(p, n, Access::Write, CODE); }          \
    void __tsan_read_write##n(void* p) {                                                 \
        check_aligned(p, n, Access::Read, CODE);                                         \
        check(p, n, Access::Write, CODE);                                                \
    }                                                                                    \
    void __tsan_volatile_read##n(void* p) { check_aligned(p, n, Access::Read, CODE); }   \
    void __tsan_volatile_write##n(void* p) { check_aligned(p, n, Access::Write, CODE); } \
    void __tsan_unaligned_read##n(void* p) { check(p, n, Access::Read, CODE); }          \
    void __tsan_unaligned_write##n(void* p) { check(p, n, Access::Write, CODE); }        \
    void __tsan_unaligned_read_write##n(void* p) {                                       \
        check(p, n, Access::Read, CODE);                                                 \
        check(p, n, Access::Write, CODE);                                                \
    }                                                                                    \
    void __tsan_unaligned_volatile_read##n(void* p) { check(p, n, Access::Read, CODE); } \
    void __tsan_unaligned_volatile_write##n(void* p) { check(p, n, Access::Write, CODE); }

extern "C" {

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t n) { check(p, n, Access::Read, CODE); }
void __tsan_write_range(void* p, size_t n) { check(p, n, Access::Write, CODE); }

// Copies that the compiler makes of struct assignments. scripts/emulator renames plain memcpy and the like to these too.
void* __tsan_memcpy(void* to, const void* from, size_t n) {
    check(from, n, Access::Read, CODE);
    check(to, n, Access::Write, CODE);
    return std::memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
    check(from, n, Access::Read, CODE);
    check(to, n, Access::Write, CODE);
    return std::memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
    check(to, n, Access::Write, CODE);
    return std::memset(to, value, n);
}

// ---- Undefined behaviour. Each handler gets a struct that begins with the place.

struct Place {
    const char* file;
    uint32_t line, column;
};

[[noreturn]] static void undefined(const char* what, const Place& place) {
    if (emu::current != nullptr) {
        emu::fail("undefined behaviour", "%s at %s:%u", what, emu::base_name(place.file), place.line);
    }
    std::fprintf(stderr, "emulated device: %s at %s:%u, outside of a launch\n", what, place.file, place.line);
    std::abort();
}

#define UNDEFINED(handler, what, ...) \
    void __ubsan_handle_##handler(Place* place, ##__VA_ARGS__) { undefined(what, *place); }

UNDEFINED(out_of_bounds, "index out of the array's bounds", void*)
UNDEFINED(shift_out_of_bounds, "shift by a negative or too large amount", void*, void*)
UNDEFINED(add_overflow, "signed addition overflows", void*, void*)
UNDEFINED(sub_overflow, "signed subtraction overflows", void*, void*)
UNDEFINED(mul_overflow, "signed multiplication overflows", void*, void*)
UNDEFINED(negate_overflow, "negation overflows", void*)
UNDEFINED(divrem_overflow, "division by zero, or its result overflows", void*, void*)
UNDEFINED(builtin_unreachable, "a place that is never reached is reached")

struct TypeMismatch {
    Place place;
    void* type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t address) {
    if (emu::current == nullptr) {
        return;
    }
    if (address == 0) {
        emu::fail("undefined behaviour", "access through a null pointer at %s:%u", emu::base_name(data->place.file),
                  data->place.line);
    }
    const uintptr_t alignment = uintptr_t{1} << data->log_alignment;
    if (address % alignment != 0) {
        emu::fail("misaligned", "0x%zx is not a multiple of %zu, as its type wants, at %s:%u", static_cast<size_t>(address),
                  static_cast<size_t>(alignment), emu::base_name(data->place.file), data->place.line);
    }
}
}

#endif
