// What environment variables decide; README.md lists them.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef EMULATOR_CHECKED
#define EMULATOR_CHECKED 0
#endif

namespace emu {

// Whether every access of a kernel is checked. Kernels are then compiled with instrumentation (instrumentation.cpp).
constexpr bool CHECKED = EMULATOR_CHECKED != 0;

struct Options {
    uint64_t seed;
    bool shuffled;                                   // order of blocks and threads
    enum class Async { Late, Early, Random } async;  // when cp.async lands
    enum class Streams { Random, Lazy, Eager } streams;
    int workers;    // threads of the operating system that run blocks
    size_t memory;  // bytes of the device
    const char* ran;  // a file for the names of kernels that run, or null
    // What it claims to be: major and minor, and bytes of shared memory a block may have there.
    struct Capability {
        int major, minor;
        size_t shared;
    } capability;
};

const Options& options();

// A small generator (xorshift), seeded so that runs repeat.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u | 1u) { next(); }
    uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        return state_ ^= state_ << 17;
    }
    // 0 <= result < n.
    size_t below(size_t n) { return static_cast<size_t>((next() >> 16) % n); }

  private:
    uint64_t state_;
};

}  // namespace emu
