#include "options.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

namespace emu {
namespace {

[[noreturn]] void refuse(const char* name, const std::string& value) {
    std::fprintf(stderr, "emulated device: %s=%s is not one of its values (emulator/README.md)\n", name, value.c_str());
    std::exit(2);
}

uint64_t number(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    if (text == nullptr || *text == 0) {
        return otherwise;
    }
    char* end;
    const uint64_t value = std::strtoull(text, &end, 10);
    if (*end != 0) {
        refuse(name, text);
    }
    return value;
}

// The index of the variable's value among `words`; the first is the default.
template <size_t N>
size_t choice(const char* name, const char* const (&words)[N]) {
    const char* text = std::getenv(name);
    if (text == nullptr || *text == 0) {
        return 0;
    }
    const auto found = std::find(words, words + N, std::string(text));
    if (found == words + N) {
        refuse(name, text);
    }
    return static_cast<size_t>(found - words);
}

Options read() {
    Options o;
    o.seed = number("PRUNECTL_EMULATOR_SEED", 1);
    o.shuffled = choice("PRUNECTL_EMULATOR_ORDER", {"shuffled", "plain"}) == 0;
    o.async = static_cast<Options::Async>(choice("PRUNECTL_EMULATOR_ASYNC", {"late", "early", "random"}));
    o.streams = static_cast<Options::Streams>(choice("PRUNECTL_EMULATOR_STREAMS", {"random", "lazy", "eager"}));
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    o.workers = static_cast<int>(std::clamp<uint64_t>(number("PRUNECTL_EMULATOR_THREADS", std::min(cores, 2u)), 1, 32));
    if (CHECKED) {
        o.workers = 1;  // The shadow memory has no locks.
    }
    // Shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    constexpr Options::Capability capabilities[] = {{9, 0, 227 << 10}, {8, 0, 163 << 10}, {8, 6, 99 << 10}};
    o.capability = capabilities[choice("PRUNECTL_EMULATOR_COMPUTE_CAPABILITY", {"9.0", "8.0", "8.6"})];
    o.memory = static_cast<size_t>(number("PRUNECTL_EMULATOR_MEMORY", uint64_t{4} << 30));
    o.ran = std::getenv("PRUNECTL_EMULATOR_RAN");
    return o;
}

}  // namespace

const Options& options() {
    static const Options o = read();
    return o;
}

}  // namespace emu
