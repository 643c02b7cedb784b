// Entry points of the library: what happens when it is loaded, and when a processor does not know an instruction.

#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "patch.hpp"

namespace {

struct sigaction before;

// An instruction of fewer bytes than these is printed with what follows it.
constexpr int kPrinted = 12;

void report_unknown(const uint8_t* address) {
    char text[160];
    int n = std::snprintf(text, sizeof text, "isa_emulator: not an instruction that is emulated, at %p:", address);
    // The page behind this one may not be there.
    int readable = 4096 - static_cast<int>(reinterpret_cast<uintptr_t>(address) & 4095);
    for (int i = 0; i < kPrinted && i < readable; ++i)
        n += std::snprintf(text + n, sizeof text - n, " %02x", address[i]);
    text[n++] = '\n';
    if (write(STDERR_FILENO, text, n) < 0) {
        // Nothing left to tell it to.
    }
}

void on_undefined_instruction(int, siginfo_t*, void* context) {
    auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    auto* address = reinterpret_cast<uint8_t*>(registers[REG_RIP]);
    // The program goes on at the same address, where there is a jump now.
    if (isa_emulator::patch(address)) return;
    report_unknown(address);
    // And there the signal comes again, to whom it would have come without this library.
    sigaction(SIGILL, &before, nullptr);
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

bool ready;

__attribute__((constructor)) void install() {
    // Emulation needs AVX-512, and who does not have that has no use for the rest.
    __builtin_cpu_init();
    if (!has_avx512()) return;
    if (const char* missing = isa_emulator::prepare_patches()) {
        std::fprintf(stderr, "isa_emulator: not used, this kernel does not have %s\n", missing);
        return;
    }
    struct sigaction action = {};
    action.sa_sigaction = on_undefined_instruction;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigemptyset(&action.sa_mask);
    ready = sigaction(SIGILL, &action, &before) == 0;
}

// Shows that a test has really met the emulator.
__attribute__((destructor)) void report() {
    if (std::getenv("ISA_EMULATOR_REPORT") == nullptr) return;
    std::fprintf(stderr, "isa_emulator: %s, code replaced at %d places\n", ready ? "ready" : "not ready",
                 isa_emulator::patched_places());
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Whether AMX and AVX-512 FP16 instructions work because of this library.
EXPORT int isa_emulator_ready() {
    return ready;
}

// Emulates the instruction at `code` from now on, even where the processor has it; 0 if it is not one that is emulated.
EXPORT int isa_emulator_replace(void* code) {
    return isa_emulator::patch(static_cast<uint8_t*>(code));
}
