#include "launch.h"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <thread>

#include "checker.h"

namespace emu {
namespace {

std::map<std::string, Kernel>& registry() {
    static auto& kernels = *new std::map<std::string, Kernel>;
    return kernels;
}

// What a thread of the operating system needs to run blocks; made once and kept.
struct Worker {
    Block block;
    std::vector<Thread> threads = std::vector<Thread>(MAX_THREADS);
    std::vector<char*> stacks = make_stacks();
    explicit Worker(int slot) {
        block.threads = threads.data();
        block.shared = reinterpret_cast<unsigned char*>(WINDOW + static_cast<size_t>(slot) * SHARED_SLOT);
        block.shared_bytes = 0;
        block.generation = 0;
        std::memset(block.shared, POISON, SHARED_SLOT);
    }
};

// Workers are lent: any thread of the program may launch, and there are few slots of shared memory.
class Loan {
  public:
    Loan() {
        install_crash_handler();
        const std::lock_guard lock(mutex());
        if (idle().empty()) {
            static int slots = 0;
            idle().push_back(new Worker(slots++));
        }
        worker = idle().back();
        idle().pop_back();
    }
    ~Loan() {
        const std::lock_guard lock(mutex());
        idle().push_back(worker);
    }
    Worker* worker;

  private:
    static std::mutex& mutex() {
        static auto& one = *new std::mutex;
        return one;
    }
    static std::vector<Worker*>& idle() {
        static auto& workers = *new std::vector<Worker*>;
        return workers;
    }
};

void reset_thread(Thread& t, Block& b, int index, const dim3& shape) {
    const auto i = static_cast<unsigned>(index);
    t.thread = {i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y)};
    t.lane = i % LANES;
    t.block_index = &b.index;
    t.block_dim = &b.launch->block;
    t.grid_dim = &b.launch->grid;
    t.block = &b;
    t.warp = &b.warps[index / LANES];
    t.index = index;
    t.exited = false;
    t.waiting = nullptr;
    t.stack_pointer = nullptr;
    t.copies.clear();
    t.wgmma.clear();
    t.accumulators.clear();
    t.copy_group = t.wgmma_group = t.wgmma_target = 0;
    t.wgmma_first = t.acquired = 0;
    t.proxy_fences = 0;
}

void reset_warp(Warp& w, int index, int block_size) {
    const int lanes = block_size - index * LANES;
    w.index = index;
    w.present = lanes >= LANES ? ~0u : (1u << lanes) - 1;
    w.exited = 0;
    for (Meeting& meeting : w.meetings) {
        meeting.arrived = 0;
    }
    w.clock = {};
    w.clock.time[index] = 1;
    w.lane_epoch = 1;
}

void reset_shared(Block& b, size_t dynamic) {
    // What the block before has touched, then what this one may touch.
    std::memset(b.shared, POISON, std::max(b.shared_bytes, dynamic));
    mark(b.shared, b.shared_bytes, Outside);
    mark(b.shared, dynamic, Uninitialised);
    b.dynamic_bytes = b.shared_bytes = dynamic;
    b.statics.clear();
    ++b.generation;
}

void run_block(Worker& worker, Launch& launch, uint32_t number) {
    Block& b = worker.block;
    const dim3& grid = launch.grid;
    b.launch = &launch;
    b.number = number;
    b.index = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
    b.size = b.alive = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
    b.warp_count = (b.size + LANES - 1) / LANES;
    b.epoch = 0;
    b.head = b.tail = 0;
    b.failed = false;
    b.random = Random(options().seed * 1000003u + uint64_t{number} * 7919u + launch.number);
    b.policy = options().shuffled ? static_cast<Block::Wake>(b.random.below(3)) : Block::Wake::Back;
    reset_shared(b, launch.shared);
    b.tma.clear();
    b.mbarrier_phase.clear();
    b.mbarrier_next.clear();
    for (Barrier& barrier : b.barriers) {
        barrier.arrived = 0;
        barrier.waiting.clear();
        barrier.clock = {};
    }
    for (int group = 0; group < MAX_WARPS / 4; ++group) {
        b.wgmma_done[group] = 0;
        b.wgmma_clock[group] = {};
    }
    for (int i = 0; i < b.warp_count; ++i) {
        reset_warp(b.warps[i], i, b.size);
    }
    for (int i = 0; i < b.size; ++i) {
        reset_thread(worker.threads[static_cast<size_t>(i)], b, i, launch.block);
        worker.threads[static_cast<size_t>(i)].stack_top = worker.stacks[static_cast<size_t>(i)];
    }
    running_block() = &b;
    run_fibers(b);
    running_block() = nullptr;
}

void work(Launch& launch) {
    const Loan loan;
    for (;;) {
        const uint32_t i = launch.next++;
        if (i >= launch.blocks || launch.failed) {
            return;
        }
        run_block(*loan.worker, launch, launch.order.empty() ? i : launch.order[i]);
    }
}

// Threads that help with the blocks of a launch and sleep between launches. They live until the process ends.
class Helpers {
  public:
    void run(Launch& launch, int helpers) {
        {
            const std::lock_guard lock(mutex_);
            while (started_ < helpers) {
                std::thread([this] { serve(); }).detach();
                ++started_;
            }
            launch_ = &launch;
            busy_ = started_;
            ++round_;
        }
        wake_.notify_all();
        work(launch);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
    }

  private:
    void serve() {
        for (uint64_t seen = 0;;) {
            Launch* launch;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return round_ != seen; });
                seen = round_;
                launch = launch_;
            }
            work(*launch);
            const std::lock_guard lock(mutex_);
            if (--busy_ == 0) {
                done_.notify_all();
            }
        }
    }
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Launch* launch_ = nullptr;
    uint64_t round_ = 0;
    int started_ = 0, busy_ = 0;
};

// Pointers must lead into live allocations, as far aligned as their type wants.
std::string check_arguments(const Kernel& kernel, void** arguments) {
    char text[300];
    for (int i = 0; i < kernel.parameter_count; ++i) {
        const Parameter& parameter = kernel.parameters[i];
        if (parameter.pointee_alignment == 0) {
            continue;
        }
        const void* pointer = *static_cast<void**>(arguments[i]);
        if (pointer == nullptr) {
            continue;  // "not given"; whoever dereferences it crashes with the kernel's name
        }
        const char* problem = !is_live(pointer, 0) ? "is not inside a live allocation"
                              : reinterpret_cast<uintptr_t>(pointer) % parameter.pointee_alignment != 0
                                  ? "is not aligned for its type"
                                  : nullptr;
        if (problem != nullptr) {
            std::snprintf(text, sizeof(text), "[launch] kernel %s: argument %d (%s) = %p %s", kernel.name, i,
                          parameter.type, pointer, problem);
            return text;
        }
    }
    return {};
}

std::string check_fences(const Kernel& kernel, void** arguments) {
    for (int i = 0; i < kernel.parameter_count; ++i) {
        if (kernel.parameters[i].pointee_alignment != 0 && !fences_intact(*static_cast<void**>(arguments[i]))) {
            char text[300];
            std::snprintf(text, sizeof(text),
                          "[fence] kernel %s overwrote bytes before or behind the allocation of argument %d (%s)",
                          kernel.name, i, kernel.parameters[i].type);
            return text;
        }
    }
    return {};
}

// Each kernel's name once a process; several processes may write at a time.
void tell_that_it_ran(const Kernel& kernel) {
    static std::set<const Kernel*> told;
    if (options().ran == nullptr || !told.insert(&kernel).second) {
        return;
    }
    if (FILE* file = std::fopen(options().ran, "a")) {
        std::fputs((std::string(kernel.name) + "\n").c_str(), file);
        std::fclose(file);
    }
}

}  // namespace

void register_kernel(const Kernel& kernel) {
    if (!registry().emplace(kernel.name, kernel).second) {
        std::fprintf(stderr, "emulated device: kernel %s is exported twice\n", kernel.name);
        std::abort();
    }
}

const Kernel* find_kernel(const std::string& name) {
    const auto it = registry().find(name);
    return it == registry().end() ? nullptr : &it->second;
}

std::vector<const Kernel*> all_kernels() {
    std::vector<const Kernel*> all;
    for (const auto& [name, kernel] : registry()) {
        all.push_back(&kernel);
    }
    return all;
}

void Launch::report(const std::string& text) {
    const std::lock_guard lock(mutex);
    if (!failed) {
        error = text;
        failed = true;
    }
}

std::string check_geometry(const Kernel& kernel, dim3 grid, dim3 block, unsigned shared, size_t shared_limit) {
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const char* problem = nullptr;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0) {
        problem = "no blocks or no threads";
    } else if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        problem = "more blocks than a grid may have";
    } else if (threads > kernel.max_threads || block.z > 64) {
        problem = "more threads than the kernel's blocks may have";
    } else if (shared > shared_limit) {
        problem = "more dynamic shared memory than cuFuncSetAttribute allowed";
    } else if (uint64_t{grid.x} * grid.y * grid.z > 0xffffffffu) {
        problem = "more blocks than the emulated device counts";
    }
    if (problem == nullptr) {
        return {};
    }
    char text[300];
    std::snprintf(text, sizeof(text), "[launch] kernel %s: %s: grid (%u, %u, %u), block (%u, %u, %u), %u bytes",
                  kernel.name, problem, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
    return text;
}

std::string run_launch(const Kernel& kernel, dim3 grid, dim3 block, unsigned shared, void** arguments) {
    static uint32_t launches = 0;  // Launches run one at a time, under the driver's lock.
    map_memory();
    if (std::string problem = check_arguments(kernel, arguments); !problem.empty()) {
        return problem;
    }
    Launch launch;
    tell_that_it_ran(kernel);
    launch.kernel = &kernel;
    launch.grid = grid;
    launch.block = block;
    launch.shared = shared;
    launch.arguments = arguments;
    launch.number = ++launches;
    launch.blocks = grid.x * grid.y * grid.z;
    checker::launch_begins(launch.number);
    if (options().shuffled) {
        launch.order.resize(launch.blocks);
        Random random(options().seed * 77777u + launch.number);
        for (uint32_t i = 0; i < launch.blocks; ++i) {
            const size_t j = random.below(i + 1);
            launch.order[i] = launch.order[j];
            launch.order[j] = i;
        }
    }
    const auto helpers = std::min<uint32_t>(static_cast<uint32_t>(options().workers), launch.blocks) - 1;
    if (helpers > 0 && uint64_t{launch.blocks} * block.x * block.y * block.z >= 512) {
        static Helpers& pool = *new Helpers;
        pool.run(launch, options().workers - 1);
    } else {
        work(launch);
    }
    return launch.failed ? launch.error : check_fences(kernel, arguments);
}

}  // namespace emu
