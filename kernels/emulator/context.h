// Threads without threads: a context is a stack and the place on it where a fiber paused.
//
//   prepare(context, stack, size, entry)   entry() will run on that stack when the context is first entered
//   exchange(from, to)                     pauses here into `from`, goes on where `to` paused
//
// A pause is an ordinary function call, so only what the calling convention makes the callee keep has to be saved: six
// registers on x86-64, twenty on AArch64. That is some 100 times cheaper than a switch by the kernel, and it is why
// 1024 threads of a block are affordable. Other processors use the C library's ucontext, which adds a system call.
#pragma once

#include <stdint.h>
#include <string.h>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

#if defined(__x86_64__) || defined(__aarch64__)

// Pushes the saved registers, stores the stack pointer at *from, takes `to` as the stack pointer, pops, returns there.
extern "C" void grad_emulator_exchange(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
        .text
        .hidden grad_emulator_exchange
        .globl  grad_emulator_exchange
        .type   grad_emulator_exchange, @function
grad_emulator_exchange:
        pushq   %rbp
        pushq   %rbx
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, (%rdi)
        movq    %rsi, %rsp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbx
        popq    %rbp
        ret
        .size   grad_emulator_exchange, . - grad_emulator_exchange
)");
#else
asm(R"(
        .text
        .hidden grad_emulator_exchange
        .globl  grad_emulator_exchange
        .type   grad_emulator_exchange, %function
grad_emulator_exchange:
        sub     sp, sp, #160
        stp     x19, x20, [sp]
        stp     x21, x22, [sp, #16]
        stp     x23, x24, [sp, #32]
        stp     x25, x26, [sp, #48]
        stp     x27, x28, [sp, #64]
        stp     x29, x30, [sp, #80]
        stp     d8,  d9,  [sp, #96]
        stp     d10, d11, [sp, #112]
        stp     d12, d13, [sp, #128]
        stp     d14, d15, [sp, #144]
        mov     x9, sp
        str     x9, [x0]
        mov     sp, x1
        ldp     x19, x20, [sp]
        ldp     x21, x22, [sp, #16]
        ldp     x23, x24, [sp, #32]
        ldp     x25, x26, [sp, #48]
        ldp     x27, x28, [sp, #64]
        ldp     x29, x30, [sp, #80]
        ldp     d8,  d9,  [sp, #96]
        ldp     d10, d11, [sp, #112]
        ldp     d12, d13, [sp, #128]
        ldp     d14, d15, [sp, #144]
        add     sp, sp, #160
        ret
        .size   grad_emulator_exchange, . - grad_emulator_exchange
)");
#endif

namespace emulator {

struct Context { void* stack_pointer = nullptr; };

inline void exchange(Context& from, Context& to) { grad_emulator_exchange(&from.stack_pointer, to.stack_pointer); }

// Lays out the stack as if a fiber about to call nothing had paused just before the first instruction of entry().
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{15};
#if defined(__x86_64__)
  // From the top down: an empty return address (entry never returns; it also puts the stack 8 off a multiple of 16,
  // as at every function's start), the address `ret` goes to, six registers.
  uint64_t frame[8] = {0, 0, 0, 0, 0, 0, reinterpret_cast<uint64_t>(entry), 0};
#else
  uint64_t frame[20] = {};
  frame[11] = reinterpret_cast<uint64_t>(entry);  // x30, the link register
#endif
  top -= sizeof frame;
  memcpy(reinterpret_cast<void*>(top), frame, sizeof frame);
  context.stack_pointer = reinterpret_cast<void*>(top);
}

}  // namespace emulator

#else

namespace emulator {

struct Context { ucontext_t state; };

inline void exchange(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = size;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

}  // namespace emulator

#endif
