// Fibers and their order. A switch is a few instructions; a thread that never waits costs no switch at all, because the next
// one starts on the stack of the one that ended.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>

#include "block.h"
#include "launch.h"

#if !defined(__x86_64__)
#error "emulator/fibers.cpp has the switch of stacks for x86-64 only"
#endif

// Saves the registers that calls preserve on this stack, its pointer in *save, and goes on where `load` was saved.
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, . - emulator_switch
)");

namespace emu {

__thread Position* current __attribute__((tls_model("initial-exec")));

namespace {

constexpr size_t STACK = size_t{256} << 10;
constexpr size_t GUARD = 4096;

void enqueue(Block& block, Thread& thread, bool front) {
    constexpr unsigned mask = 2 * MAX_THREADS - 1;
    thread.waiting = nullptr;
    if (front) {
        block.queue[--block.head & mask] = static_cast<uint16_t>(thread.index);
    } else {
        block.queue[block.tail++ & mask] = static_cast<uint16_t>(thread.index);
    }
}

[[noreturn]] void report_deadlock(Block& block) {
    std::map<std::string, std::vector<int>> places;
    int exited = 0;
    for (int i = 0; i < block.size; ++i) {
        const Thread& t = block.threads[i];
        if (t.exited) {
            ++exited;
        } else {
            // The report's thread is one that waits.
            current = places.empty() ? &block.threads[i] : current;
            places[std::string(t.waiting) + " at " + base_name(t.site.file) + ":" + std::to_string(t.site.line)].push_back(
                i);
        }
    }
    std::string text;
    for (const auto& [place, threads] : places) {
        text += std::to_string(threads.size()) + " thread(s) wait for " + place + " (threads " +
                std::to_string(threads.front()) + " to " + std::to_string(threads.back()) + "); ";
    }
    fail("deadlock", "no thread can go on: %s%d returned", text.c_str(), exited);
}

Thread& next_runnable(Block& block) {
    while (block.head == block.tail) {
        if (block.tma.empty()) {
            report_deadlock(block);
        }
        run_one_tma(block);
    }
    if (!block.tma.empty() && options().shuffled && block.random.below(16) == 0) {
        run_one_tma(block);
    }
    return block.threads[block.queue[block.head++ & (2 * MAX_THREADS - 1)]];
}

void fiber_main();

// A stack on which the first switch to the thread enters fiber_main.
void prepare(Thread& thread) {
    // Tops of stacks are multiples of a page; staggered, they do not all fall into the same sets of the cache.
    auto* top = reinterpret_cast<uintptr_t*>(thread.stack_top - (thread.index * 13 % 64) * 64);
    *--top = 0;
    *--top = reinterpret_cast<uintptr_t>(&fiber_main);
    for (int i = 0; i < 6; ++i) {
        *--top = 0;
    }
    thread.stack_pointer = top;
}

void switch_to(Thread& from, Thread& to) {
    if (&from == &to) {
        return;
    }
    if (to.stack_pointer == nullptr) {
        prepare(to);
    }
    current = &to;
    emulator_switch(&from.stack_pointer, to.stack_pointer);
}

void fiber_main() {
    for (;;) {
        Block& block = *self().block;
        block.launch->kernel->run(block.launch->arguments);
        Thread& me = self();
        thread_leaves(me);
        void* dead;
        if (block.alive == 0) {
            current = nullptr;
            emulator_switch(&dead, block.main_stack_pointer);
        }
        Thread& next = next_runnable(block);
        current = &next;
        if (next.stack_pointer != nullptr) {
            emulator_switch(&dead, next.stack_pointer);
        }
        // Not started yet: it begins on this stack, which is in the cache, and leaves its own to the dead.
        std::swap(next.stack_top, me.stack_top);
        next.stack_pointer = &dead;
    }
}

}  // namespace

std::vector<char*> make_stacks() {
    const size_t bytes = STACK * MAX_THREADS;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("emulated device: mmap of stacks");
        std::abort();
    }
    std::vector<char*> tops;
    for (int i = 0; i < MAX_THREADS; ++i) {
        char* low = static_cast<char*>(memory) + STACK * static_cast<size_t>(i);
        mprotect(low, GUARD, PROT_NONE);
        tops.push_back(low + STACK);
    }
    return tops;
}

void run_fibers(Block& block) {
    std::vector<Thread*> all(static_cast<size_t>(block.size));
    for (int i = 0; i < block.size; ++i) {
        all[static_cast<size_t>(i)] = &block.threads[i];
    }
    wake(block, all.data(), block.size);
    Thread& first = next_runnable(block);
    prepare(first);
    current = &first;
    emulator_switch(&block.main_stack_pointer, first.stack_pointer);
    current = nullptr;
}

void wait_for(const char* what, Site site, const void* object, int phase) {
    Thread& me = self();
    me.waiting = what;
    me.site = site;
    me.object = object;
    me.phase = phase;
    switch_to(me, next_runnable(*me.block));
}

void resume() {
    Thread& me = self();
    switch_to(me, next_runnable(*me.block));
}

void wake(Block& block, Thread** threads, int count) {
    if (!options().shuffled) {
        for (int i = 0; i < count; ++i) {
            enqueue(block, *threads[i], false);
        }
        return;
    }
    // A stride that shares no divisor with the count visits everyone once, in an order unlike that of the indices.
    const uint64_t r = block.random.next();
    const int start = static_cast<int>((r >> 8 & 0xffff) % static_cast<unsigned>(count));
    int stride = static_cast<int>((r >> 24 & 0xffff) % static_cast<unsigned>(count)) | 1;
    while (std::gcd(stride, count) != 1) {
        stride += 2;
    }
    const bool front = block.policy == Block::Wake::Front || (block.policy == Block::Wake::Mixed && (r >> 60 & 1) != 0);
    for (int i = 0, j = start; i < count; ++i, j = (j + stride) % count) {
        enqueue(block, *threads[j], front);
    }
}

void abandon(Block& block) {
    block.failed = true;
    void* dead;
    emulator_switch(&dead, block.main_stack_pointer);
    __builtin_unreachable();
}

}  // namespace emu
