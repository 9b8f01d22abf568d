// Holds the emulated device to its promises: every fault of faults.cu is reported by its kind in the mode that finds it, the
// right kernels compute what they should without a report, whatever the seed, and streams, graphs and memory behave as the
// driver's documentation says. Each case is a process of its own, because a fault stays.
//
// usage: selftest fast|checked
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

using Pointer = unsigned long long;
extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuCtxSynchronize();
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuMemAlloc_v2(Pointer*, size_t);
int cuMemFree_v2(Pointer);
int cuMemFreeAsync(Pointer, void*);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemcpyHtoD_v2(Pointer, const void*, size_t);
int cuMemcpyDtoH_v2(void*, Pointer, size_t);
int cuMemcpyHtoDAsync_v2(Pointer, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, Pointer, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuTensorMapEncodeTiled(void*, int, unsigned, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*,
                           int, int, int, int);
int cuGetErrorString(int, const char**);
}

namespace {

constexpr int LAUNCH_FAILED = 719;
constexpr unsigned N = 256;

std::string words(int status) {
    const char* text = "";
    cuGetErrorString(status, &text);
    return text;
}

// Ends the case as failed.
void demand(bool holds, const std::string& what) {
    if (!holds) {
        std::fprintf(stderr, "%s ", what.c_str());
        std::exit(1);
    }
}

struct Device {
    void* module;
    Device() {
        void* context;
        demand(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxSetCurrent(context) == 0, "no device");
        cuModuleLoadData(&module, "");
    }
    void* kernel(const char* name) const {
        void* function;
        demand(cuModuleGetFunction(&function, module, name) == 0, std::string("no kernel ") + name);
        cuFuncSetAttribute(function, 8, 65536);
        return function;
    }
    Pointer memory(size_t floats) const {
        Pointer p;
        demand(cuMemAlloc_v2(&p, floats * 4) == 0, "no memory");
        return p;
    }
    // Whole numbers 0 to 6.
    Pointer numbers(size_t floats) const {
        std::vector<float> values(floats);
        for (size_t i = 0; i < floats; ++i) {
            values[i] = static_cast<float>(i * 5 % 7);
        }
        const Pointer p = memory(floats);
        cuMemcpyHtoD_v2(p, values.data(), floats * 4);
        return p;
    }
    std::vector<float> read(Pointer p, size_t floats) const {
        std::vector<float> values(floats);
        demand(cuMemcpyDtoH_v2(values.data(), p, floats * 4) == 0, "cannot read back");
        return values;
    }
};

int launch(void* function, unsigned grid, unsigned block, unsigned shared, void* stream, std::vector<void*> arguments) {
    return cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, arguments.data(), nullptr);
}

// The standard launch of a kernel of faults.cu. Returns the report, "NaN" for such a value, or nothing.
std::string outcome(const char* name, unsigned grid, unsigned block, unsigned shared, size_t out_floats) {
    const Device device;
    Pointer out = device.memory(out_floats), in = device.numbers(N);
    unsigned n = N;
    const std::string kernel = name;
    if (kernel.rfind("last_block", 0) == 0 || kernel.rfind("flagged", 0) == 0) {
        const unsigned zeros[8] = {};
        cuMemcpyHtoD_v2(out, zeros, sizeof(zeros));
    }
    int status = launch(device.kernel(name), grid, block, shared, nullptr, {&out, &in, &n});
    status = status != 0 ? status : cuCtxSynchronize();
    if (status != 0) {
        return words(status);
    }
    for (const float v : device.read(out, out_floats)) {
        if (std::isnan(v)) {
            return "NaN";
        }
    }
    return "";
}

struct Fault {
    const char* kernel;
    const char *fast, *checked;  // what the outcome begins with; several by |, an empty one for no outcome
    unsigned grid = 1, block = N, shared = 0;
    size_t out_floats = N;
};

const Fault FAULTS[] = {
    {"neighbour", "", ""},
    {"neighbour_without_barrier", "NaN", "[uninitialised]|[shared race]"},
    {"reuse_without_barrier", "", "[shared race]"},
    {"warp_exchange_without_syncwarp", "NaN", "[uninitialised]|[shared race]"},
    {"same_value_by_all", "", "[shared race]"},
    {"shared_overrun", "", "[shared oob]", 1, N, N * 4},
    {"static_overrun", "", "[undefined behaviour]|[shared oob]", 1, 64, 0, 64},
    {"shared_unset", "NaN", "[uninitialised]"},
    {"register_unset", "NaN", "NaN"},
    {"two_barriers", "[divergent barrier]", "[divergent barrier]"},
    {"early_return", "[barrier after exit]", "[barrier after exit]"},
    {"half_shuffle", "[exited lane]|[bad mask]", "[exited lane]|[bad mask]"},
    {"not_in_mask", "[bad mask]", "[bad mask]"},
    {"named_barrier_count", "[deadlock]|[named barrier]", "[deadlock]|[named barrier]"},
    {"handover", "", "", 1, 64, 0, 32},
    {"handover_too_early", "", "[shared race]", 1, 64, 0, 32},
    {"read_behind", "NaN", "[global oob]"},
    {"write_behind", "[fence]", "[global oob]"},
    {"read_unset", "NaN", "[uninitialised]"},
    {"misaligned_vector", "", "[misaligned]"},
    {"blocks_race", "", "[global race]", 3},
    {"threads_race", "", "[global race]", 1, N, 0, N / 2},
    {"null_pointer", "[crash]", "[crash]|[undefined behaviour]"},
    {"shift_too_far", "", "[undefined behaviour]"},
    {"index_overflow", "", "[undefined behaviour]"},
    {"last_block", "", "", 5, N, 0, 1 + 5 * N},
    // Unchecked, it depends on how two of the host's threads meet.
    {"last_block_without_barrier", "|NaN", "[global race]", 5, N, 0, 1 + 5 * N},
    {"last_block_relaxed", "", "[global race]", 5, N, 0, 1 + 5 * N},
    {"flagged", "", "", 5, N, 0, 8 + 10 * N},
    {"flagged_relaxed", "", "[global race]", 5, N, 0, 8 + 10 * N},
    {"async_copy", "", "", 1, N, 8192},
    {"async_copy_wait_too_weak", "NaN", "[async]", 1, N, 8192},
    {"async_copy_without_barrier", "NaN", "[async]|[shared race]|[uninitialised]", 1, N, 8192},
    {"async_copy_never_waited", "[async]", "[async]", 1, N, 4096},
    {"async_copy_misaligned", "[misaligned]", "[misaligned]", 1, N, 4096},
    {"async_copy_behind", "[global oob]", "[global oob]", 1, N, 4096},
    {"ldmatrix_misaligned", "[misaligned]", "[misaligned]", 1, 32, 1024},
    {"mma_by_half_a_warp", "[exited lane]|[bad mask]", "[exited lane]|[bad mask]", 1, 32},
    {"registers_moved", "", ""},
    {"registers_by_half_a_warp", "[exited lane]|[bad mask]", "[exited lane]|[bad mask]"},
    {"mbarrier_not_initialised", "[mbarrier]", "[mbarrier]", 1, 32, 1024},
    {"mbarrier_wrong_parity", "[deadlock]", "[deadlock]", 1, 64, 1024},
    {"product", "", "", 1, 128, 16384, 4096},
    {"product_mn_major", "", "", 1, 128, 16384, 4096},
    {"product_without_fence", "", "[proxy]", 1, 128, 16384, 4096},
    {"product_without_wait", "NaN", "NaN", 1, 128, 16384, 4096},
};

void check_fault(const Fault& fault, bool checked) {
    const std::string found = outcome(fault.kernel, fault.grid, fault.block, fault.shared, fault.out_floats);
    const std::string expected = checked ? fault.checked : fault.fast;
    bool matches = false;
    for (size_t start = 0; start <= expected.size();) {
        const size_t end = std::min(expected.find('|', start), expected.size());
        const std::string one = expected.substr(start, end - start);
        matches |= one.empty() ? found.empty() : found.rfind(one, 0) == 0;
        start = end + 1;
    }
    demand(matches, "expected '" + expected + "', found '" + found + "'");
}

// The line of faults.cu that holds `text`, of which there has to be one, as reports write it.
std::string place(const std::string& text) {
    std::ifstream source("emulator/selftest/faults.cu");
    std::string line, found;
    for (int number = 1; std::getline(source, line); ++number) {
        if (line.find(text) != std::string::npos) {
            demand(found.empty(), "'" + text + "' stands twice in faults.cu");
            found = "faults.cu:" + std::to_string(number);
        }
    }
    demand(!found.empty(), "'" + text + "' is not in faults.cu");
    return found;
}

// A report and what has to stand in it: kernel, block and thread, and places in the source by what their lines hold.
struct Report {
    const char* kernel;
    unsigned grid;
    bool fast, checked;  // the modes that make it
    std::vector<std::string> parts, lines;
};

const Report REPORTS[] = {
    {"one_thread_waits", 3, true, true,
     {"[deadlock] kernel one_thread_waits block (2, 0, 0) thread (7, 0, 0): ", "1 thread(s) wait for bar.sync at ", " (threads 7 to 7); 255 returned"},
     {"bar_sync(1, 64);  // by one"}},
    {"two_barriers", 1, true, true,
     {"[divergent barrier] kernel two_barriers block (0, 0, 0) thread ("}, {"// of even threads", "// of odd threads"}},
    {"one_thread_astray", 3, true, false, {"[crash] kernel one_thread_astray block (2, 0, 0) thread (7, 0, 0)"}, {}},
    {"one_thread_behind", 3, false, true,
     {"[global oob] kernel one_thread_behind block (2, 0, 0) thread (7, 0, 0)"}, {"out[n] = in[0];"}},
};

void check_report(const Report& report) {
    const std::string found = outcome(report.kernel, report.grid, N, 0, N);
    std::vector<std::string> parts = report.parts;
    for (const std::string& line : report.lines) {
        parts.push_back(place(line));
    }
    for (const std::string& part : parts) {
        demand(found.find(part) != std::string::npos, "no '" + part + "' in '" + found + "'");
    }
}

// ---- Values of the right kernels

float number(size_t i) { return static_cast<float>(i % N * 5 % 7); }

void product_is_right(const char* name) {
    const Device device;
    Pointer out = device.memory(4096), in = device.numbers(N);
    unsigned n = N;
    demand(launch(device.kernel(name), 1, 128, 16384, nullptr, {&out, &in, &n}) == 0 && cuCtxSynchronize() == 0, "fails");
    const std::vector<float> d = device.read(out, 4096);
    for (size_t row = 0; row < 64; ++row) {
        for (size_t column = 0; column < 64; ++column) {
            float sum = 0;
            for (size_t k = 0; k < 64; ++k) {
                sum += number(k) * number(k + 2 * column);
            }
            demand(d[row * 64 + column] == sum, "wrong value");
        }
    }
}

std::string load_box(const char* name) {
    const Device device;
    Pointer tensor = device.numbers(40 * 20), out = device.memory(1024);
    alignas(64) uint64_t map[16];
    const uint64_t extent[] = {40, 20}, stride[] = {160};
    const uint32_t box[] = {32, 32}, ones[] = {1, 1};
    demand(cuTensorMapEncodeTiled(map, 7, 2, reinterpret_cast<void*>(tensor), extent, stride, box, ones, 0, 3, 0, 0) == 0,
           "no map");
    int status = launch(device.kernel(name), 1, 64, 8192 + 8, nullptr, {map, &out});
    status = status != 0 ? status : cuCtxSynchronize();
    if (status != 0) {
        return words(status);
    }
    const std::vector<float> found = device.read(out, 1024);
    for (int i = 0; i < 32; ++i) {
        for (int j = 0; j < 32; ++j) {
            const int row = i - 2, column = j + 8;
            const bool inside = row >= 0 && row < 20 && column < 40;
            const uint32_t offset = static_cast<uint32_t>(i * 128 + j * 4), swizzled = offset ^ (offset >> 3 & 0x70);
            const float expected = inside ? static_cast<float>((row * 40 + column) * 5 % 7) : 0.0f;
            if (found[swizzled / 4] != expected) {
                return "wrong value";
            }
        }
    }
    return "";
}

// ---- The driver

Pointer one_more(const Device& device, Pointer in, void* stream, unsigned n) {
    Pointer out = device.memory(n);
    launch(device.kernel("add_one"), 1, N, 0, stream, {&out, &in, &n});  // may report a fault of work before it
    return out;
}

// A chain over two streams; without the wait some seed has to give something else.
bool two_streams_agree(bool wait) {
    const Device device;
    void *first, *second, *event;
    cuStreamCreate(&first, 1);
    cuStreamCreate(&second, 1);
    cuEventCreate(&event, 0);
    const Pointer in = device.numbers(N), middle = one_more(device, in, first, N);
    cuEventRecord(event, first);
    if (wait) {
        cuStreamWaitEvent(second, event, 0);
    }
    const Pointer out = one_more(device, middle, second, N);
    return cuCtxSynchronize() == 0 && device.read(out, 1)[0] == 2.0f;
}

// A copy whose source changes before the synchronisation.
float copied(bool pinned) {
    const Device device;
    void* stream;
    cuStreamCreate(&stream, 1);
    std::vector<float> pageable(64, 1.0f);
    void* locked;
    cuMemHostAlloc(&locked, 256, 0);
    float* source = pinned ? static_cast<float*>(locked) : pageable.data();
    source[0] = 1.0f;
    const Pointer p = device.memory(64);
    cuMemcpyHtoDAsync_v2(p, source, 256, stream);
    source[0] = 2.0f;
    cuStreamSynchronize(stream);
    return device.read(p, 1)[0];
}

bool freed_too_early_shows() {
    const Device device;
    void *first, *second;
    cuStreamCreate(&first, 1);
    cuStreamCreate(&second, 1);
    const Pointer in = device.numbers(N);
    one_more(device, in, first, N);
    cuMemFreeAsync(in, second);
    return cuCtxSynchronize() == LAUNCH_FAILED;
}

// x + 3 by a graph with a fork, replayed.
void graphs_replay() {
    const Device device;
    void *stream, *side, *forked, *joined, *graph, *executable;
    cuStreamCreate(&stream, 1);
    cuStreamCreate(&side, 1);
    cuEventCreate(&forked, 0);
    cuEventCreate(&joined, 0);
    Pointer x = device.numbers(N), y = device.memory(N), z = device.memory(N);
    unsigned n = N;
    void* add = device.kernel("add_one");
    demand(cuStreamBeginCapture_v2(stream, 0) == 0, "no capture");
    launch(add, 1, N, 0, stream, {&y, &x, &n});
    cuEventRecord(forked, stream);
    cuStreamWaitEvent(side, forked, 0);
    launch(add, 1, N, 0, side, {&z, &y, &n});
    cuEventRecord(joined, side);
    cuStreamWaitEvent(stream, joined, 0);
    launch(add, 1, N, 0, stream, {&x, &z, &n});
    demand(cuStreamEndCapture(stream, &graph) == 0 && graph != nullptr, "capture failed: " + words(901));
    demand(device.read(x, 1)[0] == 0.0f, "capturing ran the kernels");
    cuGraphInstantiateWithFlags(&executable, graph, 0);
    cuGraphLaunch(executable, stream);
    cuGraphLaunch(executable, stream);
    demand(cuStreamSynchronize(stream) == 0 && device.read(x, 1)[0] == 6.0f, "wrong value");
    // A wait inside of a capture, and a fork that is not joined, are refused.
    cuStreamBeginCapture_v2(stream, 0);
    demand(cuStreamSynchronize(stream) == 900 && cuStreamEndCapture(stream, &graph) == 901, "a wait was captured");
    cuStreamBeginCapture_v2(stream, 0);
    launch(add, 1, N, 0, stream, {&y, &x, &n});
    cuEventRecord(forked, stream);
    cuStreamWaitEvent(side, forked, 0);
    launch(add, 1, N, 0, side, {&z, &y, &n});
    demand(cuStreamEndCapture(stream, &graph) == 901, "an open fork was captured");
}

void launches_are_checked() {
    const Device device;
    Pointer p = device.numbers(N), beyond = p + 4 * N, odd = p + 2;
    unsigned n = N;
    void* add = device.kernel("add_one");
    demand(launch(add, 1, 1025, 0, nullptr, {&p, &p, &n}) == 1, "1025 threads");
    demand(launch(add, 0, 32, 0, nullptr, {&p, &p, &n}) == 1, "no blocks");
    demand(launch(add, 1, 32, 65537, nullptr, {&p, &p, &n}) == 1 && words(1).find("shared memory") != std::string::npos,
           "shared");
    demand(cuMemFree_v2(p + 4) == 1, "free of an inner address");
    Pointer huge;
    demand(cuMemAlloc_v2(&huge, size_t{1} << 40) == 2 && words(2).find("out of memory") == 0, "a terabyte");
    cuCtxSetCurrent(nullptr);
    demand(cuMemAlloc_v2(&huge, 4) == 201, "no context");
    Device again;
    demand(launch(add, 1, 32, 0, nullptr, {&beyond, &p, &n}) == 0 || true, "");
    demand(cuCtxSynchronize() == LAUNCH_FAILED && words(LAUNCH_FAILED).find("[launch]") == 0,
           "a pointer behind its buffer");
    demand(launch(add, 1, 32, 0, nullptr, {&odd, &p, &n}) == LAUNCH_FAILED, "a fault stays");
}

// ---- Cases in processes of their own

int failures = 0;

// `body` returns whether it holds; it may also end the process.
bool holds(const std::function<void()>& body, int seed, bool quiet = false) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        setenv("PRUNECTL_EMULATOR_SEED", std::to_string(seed).c_str(), 1);
        if (quiet && std::freopen("/dev/null", "w", stderr) == nullptr) {
            _exit(3);
        }
        body();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    return status == 0;
}

void expect(const std::string& name, const std::function<void()>& body) {
    for (int seed = 1; seed <= 4; ++seed) {
        if (!holds(body, seed)) {
            std::fprintf(stderr, "FAILED: %s (seed %d)\n", name.c_str(), seed);
            ++failures;
        }
    }
}

// At least one of a dozen orders shows it.
void expect_some(const std::string& name, const std::function<bool()>& shows) {
    for (int seed = 1; seed <= 12; ++seed) {
        if (holds([&] { demand(shows(), ""); }, seed, true)) {
            return;
        }
    }
    std::fprintf(stderr, "FAILED: %s with every seed\n", name.c_str());
    ++failures;
}

}  // namespace

int main(int argc, char** argv) {
    const bool checked = argc > 1 && std::strcmp(argv[1], "checked") == 0;
    for (const Fault& fault : FAULTS) {
        expect(fault.kernel, [&] { check_fault(fault, checked); });
    }
    for (const Report& report : REPORTS) {
        if (checked ? report.checked : report.fast) {
            expect(std::string("the report of ") + report.kernel, [&] { check_report(report); });
        }
    }
    for (const char* name : {"product", "product_mn_major"}) {
        expect(std::string("values of ") + name, [&] { product_is_right(name); });
    }
    expect("box", [] { demand(load_box("box").empty(), load_box("box")); });
    expect("box without a wait", [&] {
        const std::string found = load_box("box_without_wait");
        demand(found.find("[async]") == 0 || (checked && found.find("[uninitialised]") == 0) ||
                   (!checked && found == "wrong value"),
               found);
    });
    expect("box that expects more bytes",
           [] { demand(load_box("box_expects_more").find("[deadlock]") == 0, "no deadlock"); });
    expect("launches are checked", launches_are_checked);
    expect("graphs replay", graphs_replay);
    expect("streams with an event", [] { demand(two_streams_agree(true), "wrong value"); });
    expect_some("streams without an event differ", [] { return !two_streams_agree(false); });
    expect("a pageable source may change", [] { demand(copied(false) == 1.0f, "changed"); });
    expect_some("a pinned source may not", [] { return copied(true) == 2.0f; });
    expect_some("a buffer freed too early shows", freed_too_early_shows);
    std::printf("%zu kernels and the driver, %s: %s\n", std::size(FAULTS), checked ? "checked" : "fast",
                failures == 0 ? "as promised" : "FAILED");
    return failures == 0 ? 0 : 1;
}
