#include "fiber.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#if defined(SKC_SHIM_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// System V ABI: rbx, rbp, r12-r15 are preserved by the callee.
asm(R"(
.text
.globl skc_shim_switch
.hidden skc_shim_switch
.type skc_shim_switch, @function
skc_shim_switch:
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
    retq
.size skc_shim_switch, .-skc_shim_switch
)");
#elif defined(__aarch64__)
// AAPCS64: x19-x30 and d8-d15 are preserved by the callee.
asm(R"(
.text
.globl skc_shim_switch
.hidden skc_shim_switch
.type skc_shim_switch, %function
skc_shim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size skc_shim_switch, .-skc_shim_switch
)");
#else
#error "the shim switches stacks on x86-64 and aarch64 only"
#endif

namespace skc_shim {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kThreadsOfRegion = 128;

// Lowest usable byte of a thread's stack; a guard page lies below.
[[maybe_unused]] uintptr_t stack_bottom(const DeviceThread* thread) {
    return (reinterpret_cast<uintptr_t>(thread) >> kStackShift << kStackShift) + kPage;
}

}  // namespace

Fibers::~Fibers() {
    for (const Region& region : regions_) munmap(region.address, region.bytes);
}

void Fibers::grow(size_t n) {
    while (threads_.size() < n) {
        size_t bytes = (kThreadsOfRegion + 1) * kStackBytes;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* region = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (region == MAP_FAILED) {
            std::perror("shim: stacks");
            std::abort();
        }
        regions_.push_back({region, bytes});
        uintptr_t first = (reinterpret_cast<uintptr_t>(region) + kStackBytes - 1) >> kStackShift << kStackShift;
        for (size_t i = 0; i < kThreadsOfRegion; ++i) {
            uintptr_t stack = first + i * kStackBytes;
            mprotect(reinterpret_cast<void*>(stack), kPage, PROT_NONE);
            threads_.push_back(new (reinterpret_cast<void*>(device_thread_address(stack))) DeviceThread{});
        }
    }
}

void Fibers::prepare(DeviceThread* thread, void (*start)()) {
    auto* top = reinterpret_cast<uint64_t*>(thread);
#if defined(SKC_SHIM_ASAN)
    ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(stack_bottom(thread)),
                                reinterpret_cast<uintptr_t>(thread) - stack_bottom(thread));
#endif
#if defined(__x86_64__)
    top -= 1;
    *top-- = 0;  // the return address of `start`: unwinders stop at 0
    *top = reinterpret_cast<uint64_t>(start);
    for (int i = 0; i < 6; ++i) *--top = 0;
#else
    top -= 2;
    for (int i = 0; i < 20; ++i) *--top = 0;
    top[11] = reinterpret_cast<uint64_t>(start);  // x30
#endif
    thread->stack_pointer = top;
}

DeviceThread* Fibers::at(size_t i, void (*start)()) {
    grow(i + 1);
    for (; prepared_ <= i; ++prepared_) prepare(threads_[prepared_], start);
    return threads_[i];
}

void Fibers::reset(void (*start)()) {
    for (size_t i = 0; i < prepared_; ++i) prepare(threads_[i], start);
}

void enter(HostStack& host, DeviceThread* to) {
#if defined(SKC_SHIM_ASAN)
    void* fake_stack = nullptr;
    uintptr_t bottom = stack_bottom(to);
    __sanitizer_start_switch_fiber(&fake_stack, reinterpret_cast<void*>(bottom),
                                   reinterpret_cast<uintptr_t>(to) - bottom);
    host.entering = true;
    skc_shim_switch(&host.stack_pointer, to->stack_pointer);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    skc_shim_switch(&host.stack_pointer, to->stack_pointer);
#endif
}

void entered([[maybe_unused]] HostStack& host) {
#if defined(SKC_SHIM_ASAN)
    if (!host.entering) return;
    host.entering = false;
    __sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.bytes);
#endif
}

void leave_to(HostStack& host, DeviceThread* from) {
#if defined(SKC_SHIM_ASAN)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, host.bottom, host.bytes);
#endif
    skc_shim_switch(&from->stack_pointer, host.stack_pointer);
    entered(host);
}

}  // namespace skc_shim
