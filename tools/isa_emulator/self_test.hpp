// What the tests share. They run instructions as a program does: the first time on the processor, which either has them
// or does not.

#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

extern "C" int isa_emulator_ready();
extern "C" int isa_emulator_replace(void* code);

namespace self_test {

inline unsigned cpuid_7_edx() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) ? d : 0;
}

inline bool processor_has_fp16() {
    return cpuid_7_edx() >> 23 & 1;
}

// Asks the kernel for the use of tiles, too.
inline bool processor_has_amx() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return (cpuid_7_edx() >> 22 & 5) == 5 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace self_test

#define NEEDS_EMULATOR() \
    if (!isa_emulator_ready()) GTEST_SKIP() << "skipped: this processor has no AVX-512, which the emulator needs"
