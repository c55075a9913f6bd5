// Threads of a block as fibres, and in what order their accesses are: ThreadSanitizer takes each for a thread, and is
// told of what makes one wait for another: barriers of a block and a cluster, mbarriers and the copies that they count,
// warp operations. Blocks and kernels run one after another.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <vector>

#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
// What the shim keeps for itself is in no order that matters.
#define UNORDERED __attribute__((no_sanitize("thread"), noinline))
#else
#define UNORDERED
#endif

namespace shim {

#ifdef __SANITIZE_THREAD__
// What was before one thread's release is before what is behind another's acquire.
static inline void acquire(const void* at) { __tsan_acquire(const_cast<void*>(at)); }
static inline void release(const void* at) { __tsan_release(const_cast<void*>(at)); }

struct Order {
    void* fibre = nullptr;
    void start() { fibre = __tsan_create_fiber(0); }
    UNORDERED void be_this() { fibre = __tsan_get_current_fiber(); }
    UNORDERED void go_on() { __tsan_switch_to_fiber(fibre, 1); }
};
#else
static inline void acquire(const void*) {}
static inline void release(const void*) {}

struct Order {
    void start() {}
    void be_this() {}
    void go_on() {}
};
#endif

#ifdef __x86_64__
// The stack pointer; the registers that a call keeps lie there. Sanitizers do not see it change, and need not.
typedef void* Context;

extern "C" __attribute__((visibility("hidden"))) void shim_switch_stacks(void** from, void* to);
asm(R"(
    .text
    .type shim_switch_stacks, @function
shim_switch_stacks:
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
)");

static void start(Context& context, std::vector<char>& stack, void (*run)()) {
    uintptr_t top = reinterpret_cast<uintptr_t>(stack.data() + stack.size()) / 16 * 16;
    void** at = reinterpret_cast<void**>(top) - 2;
    *at = reinterpret_cast<void*>(run);
    for (int i = 0; i < 6; ++i) *--at = nullptr;
    context = at;
}
UNORDERED static void switch_to(Context& from, Context& to) { shim_switch_stacks(&from, to); }
#else
typedef ucontext_t Context;

static void start(Context& context, std::vector<char>& stack, void (*run)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack.data();
    context.uc_stack.ss_size = stack.size();
    context.uc_link = nullptr;
    makecontext(&context, run, 0);
}
UNORDERED static void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

}  // namespace shim
