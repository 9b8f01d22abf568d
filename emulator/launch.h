// A launch of a kernel: what it was asked, its checks, and the workers that run its blocks.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "block.h"

namespace emu {

struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    unsigned shared;   // bytes of dynamic shared memory
    void** arguments;  // pointers to the values
    uint32_t number;   // counts launches
    std::atomic<uint32_t> next{0};
    uint32_t blocks;
    std::vector<uint32_t> order;  // empty: ascending
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::string error;
    void report(const std::string& text);  // the first one counts
};

const Kernel* find_kernel(const std::string& name);
std::vector<const Kernel*> all_kernels();

// What is wrong with a launch before it runs, or an empty string.
std::string check_geometry(const Kernel& kernel, dim3 grid, dim3 block, unsigned shared, size_t shared_limit);

// Runs a launch to its end. An empty string, or what went wrong.
std::string run_launch(const Kernel& kernel, dim3 grid, dim3 block, unsigned shared, void** arguments);

}  // namespace emu
