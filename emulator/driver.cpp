// The CUDA driver API as far as the engine uses it: what a program loads as libcuda.so. One device, one context.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "launch.h"
#include "streams.h"

namespace emu {
namespace {

// CUresult, by the names of cuda.h.
enum Status : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
};

std::recursive_mutex& lock = *new std::recursive_mutex;  // around every call that does something
char context;                                            // its address is the handle
thread_local void* current_context;
thread_local std::string refusal;  // why this thread's last call was refused

struct Function {
    const Kernel* kernel;
    size_t shared_limit = DEFAULT_SHARED;
};
struct Module {
    std::map<std::string, Function> functions;
};

std::map<uintptr_t, size_t>& pinned() {
    static auto& ranges = *new std::map<uintptr_t, size_t>;
    return ranges;
}

bool is_pinned(const void* address, size_t bytes) {
    const auto start = reinterpret_cast<uintptr_t>(address);
    auto it = pinned().upper_bound(start);
    return it != pinned().begin() && (--it, start - it->first <= it->second && bytes <= it->second - (start - it->first));
}

int refuse(Status status, const std::string& why) {
    refusal = why;
    return status;
}

int status() { return fault().empty() ? SUCCESS : LAUNCH_FAILED; }

// What calls that touch the device need: a current context and a device without a fault.
int ready() {
    if (current_context != &context) {
        return refuse(INVALID_CONTEXT, "no context is current on this thread");
    }
    return status();
}

Stream* stream_of(void* handle) {
    // Null and CU_STREAM_LEGACY are the legacy default stream; CU_STREAM_PER_THREAD is not used.
    Stream* stream = reinterpret_cast<uintptr_t>(handle) <= 1 ? &default_stream() : static_cast<Stream*>(handle);
    return stream->destroyed ? nullptr : stream;
}

int no_stream() { return refuse(INVALID_HANDLE, "the stream has been destroyed"); }

// Calls that wait, or that a graph cannot hold, end a capture.
bool forbidden_by_capture() {
    if (!any_capture()) {
        return false;
    }
    break_captures();
    refusal = "the call is not allowed while a stream is being captured";
    return true;
}

void* pointer(unsigned long long address) { return reinterpret_cast<void*>(static_cast<uintptr_t>(address)); }

std::string outside(const char* what, const void* address, size_t bytes) {
    char text[200];
    std::snprintf(text, sizeof(text), "[copy] %s of %zu bytes at %p is not within a live allocation", what, bytes, address);
    return text;
}

std::string copy_to_device(void* to, const void* from, size_t bytes) {
    if (!is_live(to, bytes)) {
        return outside("copy to the device", to, bytes);
    }
    std::memcpy(to, from, bytes);
    mark(to, bytes, Initialised);
    return {};
}

std::string copy_to_host(void* to, const void* from, size_t bytes) {
    if (!is_live(from, bytes)) {
        return outside("copy from the device", from, bytes);
    }
    std::memcpy(to, from, bytes);
    return {};
}

std::string copy_on_device(void* to, const void* from, size_t bytes) {
    if (!is_live(from, bytes)) {
        return outside("copy from the device", from, bytes);
    }
    if (!is_live(to, bytes)) {
        return outside("copy to the device", to, bytes);
    }
    std::memmove(to, from, bytes);
    std::memmove(state_of(to), state_of(from), bytes);
    return {};
}

template <typename T>
std::string fill(void* to, T value, size_t count) {
    if (!is_live(to, count * sizeof(T))) {
        return outside("memset", to, count * sizeof(T));
    }
    std::fill_n(static_cast<T*>(to), count, value);
    mark(to, count * sizeof(T), Initialised);
    return {};
}

int submit_on(void* handle, size_t bytes, Work work) {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    if (bytes > 0) {
        submit(*stream, std::move(work));
    }
    return status();
}

// The same at once: after everything in the default stream, and before the call returns.
int now(Work work) {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    if (forbidden_by_capture()) {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    submit(default_stream(), std::move(work));
    finish(default_stream());
    return status();
}

// The values behind a launch's argument pointers: the caller may change them as soon as the call returns.
struct Arguments {
    std::vector<std::vector<max_align_t>> values;
    std::vector<void*> pointers;
    Arguments(const Kernel& kernel, void** from) {
        for (int i = 0; i < kernel.parameter_count; ++i) {
            const Parameter& p = kernel.parameters[i];
            // 64 spare bytes: a tensor map wants an alignment that no vector promises.
            std::vector<max_align_t> room((p.bytes + 64 + sizeof(max_align_t) - 1) / sizeof(max_align_t));
            auto address = reinterpret_cast<uintptr_t>(room.data());
            address = (address + p.alignment - 1) / p.alignment * p.alignment;
            std::memcpy(reinterpret_cast<void*>(address), from[i], p.bytes);
            pointers.push_back(reinterpret_cast<void*>(address));
            values.push_back(std::move(room));
        }
    }
};

int launch(const Function& function, dim3 grid, dim3 block, unsigned shared, void* handle, void** arguments) {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    const Kernel& kernel = *function.kernel;
    if (const std::string problem = check_geometry(kernel, grid, block, shared, function.shared_limit); !problem.empty()) {
        return refuse(INVALID_VALUE, problem);
    }
    auto values = std::make_shared<Arguments>(kernel, arguments);
    submit(*stream, [&kernel, grid, block, shared, values] {
        return run_launch(kernel, grid, block, shared, values->pointers.data());
    });
    return status();
}

int allocate_on_device(unsigned long long* address, size_t bytes) {
    if (bytes == 0) {
        return refuse(INVALID_VALUE, "an allocation of no bytes");
    }
    void* memory = allocate(bytes);
    if (memory == nullptr) {
        finish_all();  // frees that are still queued
        memory = allocate(bytes);
    }
    if (memory == nullptr) {
        return refuse(OUT_OF_MEMORY, "out of memory: " + std::to_string(bytes) + " bytes asked for, " +
                                         std::to_string(allocated_bytes()) + " of " + std::to_string(options().memory) +
                                         " in use");
    }
    *address = reinterpret_cast<uintptr_t>(memory);
    return status();
}

constexpr size_t SHARED_PER_BLOCK = 1024;  // which the system takes of a multiprocessor's shared memory

int attribute_value(int attribute) {
    switch (attribute) {
        case 1:  // MAX_THREADS_PER_BLOCK
        case 2:  // MAX_BLOCK_DIM_X
        case 3:  // MAX_BLOCK_DIM_Y
            return MAX_THREADS;
        case 4:  // MAX_BLOCK_DIM_Z
            return 64;
        case 5:  // MAX_GRID_DIM_X
            return 0x7fffffff;
        case 6:  // MAX_GRID_DIM_Y
        case 7:  // MAX_GRID_DIM_Z
            return 65535;
        case 8:  // MAX_SHARED_MEMORY_PER_BLOCK
            return static_cast<int>(DEFAULT_SHARED);
        case 10:  // WARP_SIZE
            return LANES;
        case 12:  // MAX_REGISTERS_PER_BLOCK
        case 82:  // MAX_REGISTERS_PER_MULTIPROCESSOR
            return 65536;
        case 13:  // CLOCK_RATE, kHz
        case 36:  // MEMORY_CLOCK_RATE, kHz
            return 1000000;
        case 16:  // MULTIPROCESSOR_COUNT
            return 4;
        case 37:  // GLOBAL_MEMORY_BUS_WIDTH, bits
            return 64;
        case 38:  // L2_CACHE_SIZE
            return 1 << 22;
        case 39:  // MAX_THREADS_PER_MULTIPROCESSOR
            return 2048;
        case 31:   // CONCURRENT_KERNELS
        case 40:   // ASYNC_ENGINE_COUNT
        case 41:   // UNIFIED_ADDRESSING
        case 115:  // MEMORY_POOLS_SUPPORTED
            return 1;
        case 75:  // COMPUTE_CAPABILITY_MAJOR
            return options().capability.major;
        case 76:  // COMPUTE_CAPABILITY_MINOR
            return options().capability.minor;
        case 81:  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
            return static_cast<int>(options().capability.shared + SHARED_PER_BLOCK);
        case 97:  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            return static_cast<int>(options().capability.shared);
        case 106:  // MAX_BLOCKS_PER_MULTIPROCESSOR
            return 32;
        default:  // whatever else we do not have
            return 0;
    }
}

std::string signature(const Kernel& kernel) {
    std::string text;
    for (int i = 0; i < kernel.parameter_count; ++i) {
        text += (i > 0 ? ", " : "") + std::string(kernel.parameters[i].type);
    }
    return text;
}

}  // namespace
}  // namespace emu

using namespace emu;

#define API extern "C" __attribute__((visibility("default")))
using DevicePointer = unsigned long long;

// ---- Device and context

API int cuInit(unsigned) {
    options();
    return SUCCESS;
}
API int cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
API int cuDeviceGetCount(int* count) {
    *count = 1;
    return SUCCESS;
}
API int cuDeviceGet(int* device, int ordinal) {
    *device = 0;
    return ordinal == 0 ? SUCCESS : refuse(INVALID_DEVICE, "there is one emulated device, number 0");
}
API int cuDeviceGetName(char* name, int length, int) {
    std::snprintf(name, static_cast<size_t>(length), "prunectl emulated device");
    return SUCCESS;
}
API int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = options().memory;
    return SUCCESS;
}
API int cuDeviceGetUuid_v2(void* uuid, int) {
    std::memset(uuid, 0xEE, 16);
    return SUCCESS;
}
API int cuDeviceGetUuid(void* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
API int cuDeviceGetPCIBusId(char* text, int length, int) {
    std::snprintf(text, static_cast<size_t>(length), "0000:00:00.0");
    return SUCCESS;
}
API int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute_value(attribute);
    return SUCCESS;
}
API int cuDevicePrimaryCtxRetain(void** handle, int) {
    *handle = &context;
    return SUCCESS;
}
API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
API int cuCtxSetCurrent(void* handle) {
    current_context = handle;
    return SUCCESS;
}
API int cuCtxGetCurrent(void** handle) {
    *handle = current_context;
    return SUCCESS;
}
API int cuCtxGetDevice(int* device) {
    *device = 0;
    return current_context == &context ? SUCCESS : INVALID_CONTEXT;
}
API int cuCtxSetFlags(unsigned) { return SUCCESS; }
API int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = *greatest = 0;
    return SUCCESS;
}
API int cuCtxSynchronize() {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    if (forbidden_by_capture()) {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    finish_all();
    return status();
}

// ---- Streams and events

API int cuStreamCreate(void** stream, unsigned flags) {
    const std::lock_guard guard(lock);
    *stream = make_stream((flags & 1) == 0);  // 1: CU_STREAM_NON_BLOCKING
    return ready();
}
API int cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API int cuStreamDestroy_v2(void* handle) {
    const std::lock_guard guard(lock);
    Stream* stream = stream_of(handle);
    if (stream == nullptr || stream == &default_stream()) {
        return no_stream();
    }
    finish(*stream);  // On a device it goes on in the background; nothing can tell the difference.
    stream->destroyed = true;
    return status();
}
API int cuStreamSynchronize(void* handle) {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    if (stream->capture != nullptr) {
        forbidden_by_capture();
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    finish(*stream);
    return status();
}
API int cuStreamQuery(void* handle) {
    const std::lock_guard guard(lock);
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    return !fault().empty() ? LAUNCH_FAILED : stream->finished == stream->issued ? SUCCESS : NOT_READY;
}
API int cuStreamGetCtx(void*, void** handle) {
    *handle = &context;
    return SUCCESS;
}
API int cuStreamWaitEvent(void* handle, void* event, unsigned) {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    if (!wait_event(*stream, *static_cast<Event*>(event))) {
        break_captures();
        return refuse(STREAM_CAPTURE_UNSUPPORTED, "a captured stream cannot wait for an event outside of its graph");
    }
    return status();
}
API int cuEventCreate(void** event, unsigned) {
    *event = new Event;
    return SUCCESS;
}
API int cuEventDestroy_v2(void* event) {
    const std::lock_guard guard(lock);
    delete static_cast<Event*>(event);
    return SUCCESS;
}
API int cuEventRecord(void* event, void* handle) {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    record(*static_cast<Event*>(event), *stream);
    return status();
}
API int cuEventSynchronize(void* event) {
    const std::lock_guard guard(lock);
    run_until(static_cast<Event*>(event)->progress);
    return status();
}
API int cuEventQuery(void* event) {
    const std::lock_guard guard(lock);
    return !fault().empty() ? LAUNCH_FAILED : reached(static_cast<Event*>(event)->progress) ? SUCCESS : NOT_READY;
}
API int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    const std::lock_guard guard(lock);
    const auto &from = *static_cast<Event*>(start), &to = *static_cast<Event*>(end);
    if (from.time == nullptr || to.time == nullptr) {
        return refuse(INVALID_HANDLE, "an event that was not recorded");
    }
    if (!reached(from.progress) || !reached(to.progress)) {
        return NOT_READY;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(*to.time - *from.time).count();
    return SUCCESS;
}
API int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
API int cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    return submit_on(stream, 1, [function, data] {
        function(data);
        return std::string();
    });
}

// ---- Graphs

API int cuStreamBeginCapture_v2(void* handle, int) {
    const std::lock_guard guard(lock);
    Stream* stream = stream_of(handle);
    if (stream == nullptr || stream == &default_stream() || stream->capture != nullptr) {
        return refuse(STREAM_CAPTURE_UNSUPPORTED, "the default stream and a captured one cannot be captured");
    }
    begin_capture(*stream);
    return status();
}
API int cuStreamEndCapture(void* handle, void** graph) {
    const std::lock_guard guard(lock);
    Stream* stream = stream_of(handle);
    *graph = nullptr;
    if (stream == nullptr || stream->capture == nullptr) {
        return refuse(INVALID_VALUE, "the stream is not being captured");
    }
    *graph = end_capture(*stream).release();
    return *graph != nullptr ? status() : refuse(STREAM_CAPTURE_INVALIDATED, "the capture was broken: " + refusal);
}
API int cuStreamIsCapturing(void* handle, int* state) {
    const std::lock_guard guard(lock);
    Stream* stream = stream_of(handle);
    *state = stream == nullptr || stream->capture == nullptr ? 0 : stream->capture->broken ? 2 : 1;
    return SUCCESS;
}
API int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new std::shared_ptr<Graph>(std::make_shared<Graph>(*static_cast<Graph*>(graph)));
    return SUCCESS;
}
API int cuGraphUpload(void*, void*) { return SUCCESS; }
API int cuGraphLaunch(void* executable, void* stream) {
    const std::shared_ptr<Graph> graph = *static_cast<std::shared_ptr<Graph>*>(executable);
    return submit_on(stream, 1, [graph] { return run_graph(*graph); });
}
API int cuGraphExecDestroy(void* executable) {
    delete static_cast<std::shared_ptr<Graph>*>(executable);
    return SUCCESS;
}
API int cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}

// ---- Memory

API int cuMemAlloc_v2(DevicePointer* address, size_t bytes) {
    const std::lock_guard guard(lock);
    const int s = ready();
    return s != SUCCESS ? s : allocate_on_device(address, bytes);
}
API int cuMemAllocAsync(DevicePointer* address, size_t bytes, void* handle) {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    if (Stream* stream = stream_of(handle); stream == nullptr) {
        return no_stream();
    } else if (stream->capture != nullptr) {
        forbidden_by_capture();
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    return allocate_on_device(address, bytes);
}
API int cuMemFree_v2(DevicePointer address) {
    const std::lock_guard guard(lock);
    if (const int s = ready(); s != SUCCESS) {
        return s;
    }
    finish_all();
    const std::string problem = release(pointer(address));
    return problem.empty() ? status() : refuse(INVALID_VALUE, problem);
}
API int cuMemFreeAsync(DevicePointer address, void* stream) {
    return submit_on(stream, 1, [address] { return release(pointer(address)); });
}
API int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = options().memory;
    *free = options().memory - std::min(options().memory, allocated_bytes());
    return ready();
}
API int cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    const std::lock_guard guard(lock);
    const size_t size = (std::max<size_t>(bytes, 1) + 4095) / 4096 * 4096;
    *address = std::aligned_alloc(4096, size);
    if (*address == nullptr) {
        return refuse(OUT_OF_MEMORY, "out of host memory");
    }
    std::memset(*address, POISON, size);
    pinned()[reinterpret_cast<uintptr_t>(*address)] = bytes;
    return ready();
}
API int cuMemFreeHost(void* address) {
    const std::lock_guard guard(lock);
    finish_all();
    if (pinned().erase(reinterpret_cast<uintptr_t>(address)) == 0) {
        return refuse(INVALID_VALUE, "not pinned memory");
    }
    std::free(address);
    return status();
}
API int cuMemHostRegister_v2(void* address, size_t bytes, unsigned) {
    const std::lock_guard guard(lock);
    pinned()[reinterpret_cast<uintptr_t>(address)] = bytes;
    return ready();
}
API int cuMemHostUnregister(void* address) {
    const std::lock_guard guard(lock);
    finish_all();
    return pinned().erase(reinterpret_cast<uintptr_t>(address)) == 1 ? status()
                                                                     : refuse(INVALID_VALUE, "not pinned memory");
}

// Copies from pageable memory are read before the call returns, copies to it are finished by then; pinned memory is read
// and written when the stream comes to it (CUDA driver API, "API synchronization behavior").
API int cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, size_t bytes, void* stream) {
    if (const std::lock_guard guard(lock); !is_pinned(from, bytes)) {
        const auto* first = static_cast<const char*>(from);
        auto staged = std::make_shared<std::vector<char>>(first, first + bytes);
        return submit_on(stream, bytes, [to, staged, bytes] { return copy_to_device(pointer(to), staged->data(), bytes); });
    }
    return submit_on(stream, bytes, [to, from, bytes] { return copy_to_device(pointer(to), from, bytes); });
}
API int cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, size_t bytes, void* stream) {
    const std::lock_guard guard(lock);
    const int s = submit_on(stream, bytes, [to, from, bytes] { return copy_to_host(to, pointer(from), bytes); });
    if (s != SUCCESS || is_pinned(to, bytes)) {
        return s;
    }
    if (stream_of(stream)->capture != nullptr) {
        forbidden_by_capture();
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    finish(*stream_of(stream));
    return status();
}
API int cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, size_t bytes, void* stream) {
    return submit_on(stream, bytes, [to, from, bytes] { return copy_on_device(pointer(to), pointer(from), bytes); });
}
API int cuMemcpyHtoD_v2(DevicePointer to, const void* from, size_t bytes) {
    return now([=] { return copy_to_device(pointer(to), from, bytes); });
}
API int cuMemcpyDtoH_v2(void* to, DevicePointer from, size_t bytes) {
    return now([=] { return copy_to_host(to, pointer(from), bytes); });
}
API int cuMemcpyDtoD_v2(DevicePointer to, DevicePointer from, size_t bytes) {
    return now([=] { return copy_on_device(pointer(to), pointer(from), bytes); });
}
API int cuMemsetD8Async(DevicePointer to, unsigned char value, size_t count, void* stream) {
    return submit_on(stream, count, [=] { return fill<uint8_t>(pointer(to), value, count); });
}
API int cuMemsetD16Async(DevicePointer to, unsigned short value, size_t count, void* stream) {
    return submit_on(stream, count, [=] { return fill<uint16_t>(pointer(to), value, count); });
}
API int cuMemsetD32Async(DevicePointer to, unsigned value, size_t count, void* stream) {
    return submit_on(stream, count, [=] { return fill<uint32_t>(pointer(to), value, count); });
}
API int cuMemsetD8_v2(DevicePointer to, unsigned char value, size_t count) {
    return now([=] { return fill<uint8_t>(pointer(to), value, count); });
}
API int cuMemsetD32_v2(DevicePointer to, unsigned value, size_t count) {
    return now([=] { return fill<uint32_t>(pointer(to), value, count); });
}
// Pools: the device has one, and nothing about it can be set.
API int cuDeviceGetDefaultMemPool(void** pool, int) {
    *pool = &context;
    return SUCCESS;
}
API int cuDeviceGetMemPool(void** pool, int) {
    *pool = &context;
    return SUCCESS;
}
API int cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API int cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

// ---- Modules and launches. Images are not looked at: the kernels are in this library.

API int cuModuleLoadData(void** module, const void*) {
    *module = new Module;
    return ready();
}
API int cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*) {
    return cuModuleLoadData(module, image);
}
API int cuModuleUnload(void* module) {
    const std::lock_guard guard(lock);
    finish_all();
    delete static_cast<Module*>(module);
    return SUCCESS;
}
API int cuModuleGetFunction(void** function, void* module, const char* name) {
    const std::lock_guard guard(lock);
    const Kernel* kernel = find_kernel(name);
    if (kernel == nullptr) {
        return refuse(NOT_FOUND, std::string("no kernel ") + name + ": is EXPORT_KERNEL missing?");
    }
    *function = &static_cast<Module*>(module)->functions.try_emplace(name, Function{kernel}).first->second;
    return SUCCESS;
}
API int cuFuncSetAttribute(void* function, int attribute, int value) {
    constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
    if (attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value < 0 || static_cast<size_t>(value) > options().capability.shared) {
            return refuse(INVALID_VALUE, "more shared memory than a block may have: " + std::to_string(value));
        }
        static_cast<Function*>(function)->shared_limit = std::max(DEFAULT_SHARED, static_cast<size_t>(value));
    }
    return SUCCESS;
}
API int cuFuncGetAttribute(int* value, int attribute, void* function) {
    const auto& f = *static_cast<Function*>(function);
    *value = attribute == 0   ? static_cast<int>(f.kernel->max_threads)  // MAX_THREADS_PER_BLOCK
             : attribute == 8 ? static_cast<int>(f.shared_limit)
                              : 0;
    return SUCCESS;
}
API int cuFuncSetCacheConfig(void*, int) { return SUCCESS; }
API int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
    const Kernel& kernel = *static_cast<Function*>(function)->kernel;
    if (index >= static_cast<size_t>(kernel.parameter_count)) {
        return refuse(INVALID_VALUE, "the kernel has fewer parameters");
    }
    size_t end = 0;
    for (size_t i = 0; i <= index; ++i) {
        const Parameter& p = kernel.parameters[i];
        *offset = (end + p.alignment - 1) / p.alignment * p.alignment;
        end = *offset + p.bytes;
    }
    if (size != nullptr) {
        *size = kernel.parameters[index].bytes;
    }
    return SUCCESS;
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t shared) {
    *blocks = threads <= 0 ? 0 : std::min<int>(std::min(32, 2048 / threads),
                                               static_cast<int>((options().capability.shared + SHARED_PER_BLOCK) /
                                                                (shared + SHARED_PER_BLOCK)));
    return SUCCESS;
}
API int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra) {
    if (extra != nullptr) {
        return refuse(NOT_SUPPORTED, "arguments as one buffer");
    }
    return launch(*static_cast<Function*>(function), {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream,
                  arguments);
}
struct LaunchConfig {  // CUlaunchConfig
    unsigned grid[3], block[3], shared;
    void* stream;
    const int* attributes;  // an array of structs that begin with their kind
    unsigned attribute_count;
};
API int cuLaunchKernelEx(const LaunchConfig* c, void* function, void** arguments, void** extra) {
    if (extra != nullptr || c->attribute_count != 0) {
        return refuse(NOT_SUPPORTED, "launch attributes (clusters and the like), or arguments as one buffer");
    }
    return launch(*static_cast<Function*>(function), {c->grid[0], c->grid[1], c->grid[2]},
                  {c->block[0], c->block[1], c->block[2]}, c->shared, c->stream, arguments);
}

// ---- Tensor maps

API int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* base, const uint64_t* extent,
                               const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                               int interleave, int swizzle, int, int fill) {
    if (options().capability.major < 9) {
        return refuse(NOT_SUPPORTED, "tensor maps need compute capability 9.0");
    }
    static const uint32_t sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};  // CUtensorMapDataType
    if (type < 0 || type >= static_cast<int>(std::size(sizes)) || rank != 2 || interleave != 0 || swizzle < 0 ||
        swizzle > 3) {
        return refuse(NOT_SUPPORTED, "tensor maps other than of 2 dimensions without interleaving");
    }
    TensorMapFields fields = {TENSOR_MAP_MAGIC,
                              static_cast<char*>(base),
                              sizes[type],
                              rank,
                              static_cast<uint32_t>(swizzle),
                              fill != 0,
                              {extent[0], extent[1]},
                              strides[0],
                              {box[0], box[1]}};
    const uint32_t inner = box[0] * fields.element_bytes;
    const char* problem = reinterpret_cast<uintptr_t>(base) % 16 != 0     ? "its address is not a multiple of 16"
                          : strides[0] % 16 != 0                          ? "its rows are not multiples of 16 bytes"
                          : strides[0] < extent[0] * fields.element_bytes ? "its rows overlap"
                          : extent[0] == 0 || extent[1] == 0              ? "it is empty"
                          : box[0] == 0 || box[0] > 256 || box[1] == 0 || box[1] > 256
                              ? "a side of its box is not within 1 to 256"
                          : element_strides[0] != 1 || element_strides[1] != 1 ? "it leaves elements out"
                          : inner % 16 != 0                        ? "its box is not a multiple of 16 bytes wide"
                          : swizzle != 0 && inner > 16u << swizzle ? "its box is wider than the swizzle"
                          : !is_live(base, 0)                      ? "it is not within a live allocation"
                                                                   : nullptr;
    if (problem != nullptr) {
        return refuse(INVALID_VALUE, std::string("[tensor map] ") + problem);
    }
    std::memset(map, 0, 128);
    std::memcpy(map, &fields, sizeof(fields));
    return SUCCESS;
}

// ---- Errors

API int cuGetErrorName(int error, const char** name) {
    switch (error) {
        case SUCCESS:
            *name = "CUDA_SUCCESS";
            break;
        case INVALID_VALUE:
            *name = "CUDA_ERROR_INVALID_VALUE";
            break;
        case OUT_OF_MEMORY:
            *name = "CUDA_ERROR_OUT_OF_MEMORY";
            break;
        case INVALID_DEVICE:
            *name = "CUDA_ERROR_INVALID_DEVICE";
            break;
        case INVALID_CONTEXT:
            *name = "CUDA_ERROR_INVALID_CONTEXT";
            break;
        case INVALID_HANDLE:
            *name = "CUDA_ERROR_INVALID_HANDLE";
            break;
        case NOT_FOUND:
            *name = "CUDA_ERROR_NOT_FOUND";
            break;
        case NOT_READY:
            *name = "CUDA_ERROR_NOT_READY";
            break;
        case LAUNCH_FAILED:
            *name = "CUDA_ERROR_LAUNCH_FAILED";
            break;
        case NOT_SUPPORTED:
            *name = "CUDA_ERROR_NOT_SUPPORTED";
            break;
        case STREAM_CAPTURE_UNSUPPORTED:
            *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
            break;
        case STREAM_CAPTURE_INVALIDATED:
            *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
            break;
        default:
            *name = nullptr;
            return INVALID_VALUE;
    }
    return SUCCESS;
}
// A launch's own report for a failed launch, and the reason of this thread's last refusal for the rest.
API int cuGetErrorString(int error, const char** text) {
    *text = error == LAUNCH_FAILED ? fault().c_str() : error == SUCCESS ? "no error" : refusal.c_str();
    return SUCCESS;
}

// ---- For tests

// The types of a kernel's parameters, "bf16*, const bf16*, Sizes"; null where there is no such kernel. Valid until the next call.
API const char* prunectl_emulator_signature(const char* name) {
    static thread_local std::string text;
    const Kernel* kernel = find_kernel(name);
    return kernel == nullptr ? nullptr : (text = signature(*kernel)).c_str();
}

// ---- For emulator/cublaslt, whose products run in the order of a stream, on this device's memory

// `work(data)` returns null, or what went wrong.
API int prunectl_emulator_submit(void* stream, const char* (*work)(void*), void* data) {
    return submit_on(stream, 1, [work, data] {
        const char* problem = work(data);
        return problem == nullptr ? std::string() : std::string(problem);
    });
}
API int prunectl_emulator_is_live(const void* address, size_t bytes) { return is_live(address, bytes) ? 1 : 0; }
API void prunectl_emulator_wrote(const void* address, size_t bytes) { mark(address, bytes, Initialised); }
