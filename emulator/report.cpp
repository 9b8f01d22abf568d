// How a problem becomes text: the kernel, block, thread and source line it belongs to.
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "launch.h"

namespace emu {

const char* base_name(const char* path) {
    const char* slash = path == nullptr ? nullptr : std::strrchr(path, '/');
    return path == nullptr ? "?" : slash == nullptr ? path : slash + 1;
}

Block*& running_block() {
    static __thread Block* block;
    return block;
}

void fail(const char* kind, const char* format, ...) {
    char message[1024], place[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    Block& block = *running_block();
    const uint3 none = {0, 0, 0};
    const uint3& t = current != nullptr ? self().thread : none;
    std::snprintf(place, sizeof(place), "[%s] kernel %s block (%u, %u, %u) thread (%u, %u, %u): ", kind,
                  block.launch->kernel->name, block.index.x, block.index.y, block.index.z, t.x, t.y, t.z);
    block.launch->report(std::string(place) + message);
    abandon(block);
}

// addr2line (binutils) or llvm-symbolizer know the line, and the lines where it was inlined; without either there is none.
std::string source_line(const void* code) {
    Dl_info library;
    if (code == nullptr || dladdr(code, &library) == 0) {
        return {};
    }
    // A return address points behind the call.
    const auto offset =
        static_cast<size_t>(static_cast<const char*>(code) - static_cast<const char*>(library.dli_fbase)) - 1;
    char command[600];
    std::snprintf(command, sizeof(command),
                  "addr2line -i -e '%s' 0x%zx 2>/dev/null || llvm-symbolizer --functions=none --obj='%s' 0x%zx 2>/dev/null",
                  library.dli_fname, offset, library.dli_fname, offset);
    FILE* pipe = popen(command, "r");
    if (pipe == nullptr) {
        return {};
    }
    std::string text;
    char line[512];
    while (std::fgets(line, sizeof(line), pipe) != nullptr) {
        line[std::strcspn(line, " \n")] = 0;
        if (line[0] != '?' && line[0] != 0) {
            text += (text.empty() ? " at " : " < ") + std::string(base_name(line));
        }
    }
    pclose(pipe);
    return text;
}

namespace {

// The kernel dereferenced what is not memory, or ran out of stack: the launch fails, with the thread whose doing it was, and
// the process lives on. Elsewhere the signal does what it always does.
void crashed(int signal, siginfo_t* info, void*) {
    if (running_block() != nullptr && current != nullptr) {
        fail("crash", "signal %d (%s) at address %p; the checked mode may name the line", signal, strsignal(signal),
             info->si_addr);
    }
    ::signal(signal, SIG_DFL);
    raise(signal);
}

}  // namespace

void install_crash_handler() {
    // A fiber that has run out of its stack has none left for the handler.
    static __thread bool has_stack;
    if (!has_stack) {
        has_stack = true;
        stack_t alternative = {};
        alternative.ss_size = 65536;
        alternative.ss_sp = std::malloc(alternative.ss_size);
        sigaltstack(&alternative, nullptr);
    }
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = crashed;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
            sigaction(signal, &action, nullptr);
        }
    });
}

}  // namespace emu
