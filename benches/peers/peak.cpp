// The peak rate of this processor's multipliers: loops of independent products in registers.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

volatile float one = 1.0f;

// Twelve independent accumulators: more than enough to hide the latency of two units with four cycles each.
constexpr int ACCUMULATORS = 12;

#if defined(__AVX2__) && defined(__FMA__)
template <class V>
int64_t fma(int64_t n) {
    V acc[ACCUMULATORS] = {}, a = V{} + one, b = V{} + one;
    for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 12
        for (int j = 0; j < ACCUMULATORS; ++j) asm volatile("vfmadd231ps %1, %2, %0" : "+x"(acc[j]) : "x"(a), "x"(b));
    return n * ACCUMULATORS * 2 * static_cast<int64_t>(sizeof(V) / sizeof(float));
}
#endif

#if defined(__AVX512FP16__)
int64_t fp16(int64_t n) {
    __m512 acc[ACCUMULATORS] = {}, a = {}, b = {};
    for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 12
        for (int j = 0; j < ACCUMULATORS; ++j) asm volatile("vfmadd231ph %1, %2, %0" : "+v"(acc[j]) : "v"(a), "v"(b));
    return n * ACCUMULATORS * 2 * 32;
}
#endif

#if defined(__AMX_BF16__) && defined(__linux__)
int64_t amx(int64_t n) {
    // ARCH_REQ_XCOMP_PERM, XTILEDATA: a process must request tile data before its first use.
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return 0;
    alignas(64) uint8_t config[64] = {1}, before[64];
    for (int i = 0; i < 8; ++i) {
        config[16 + 2 * i] = 64;
        config[48 + i] = 16;
    }
    asm volatile("sttilecfg %0" : "=m"(before));
    asm volatile("ldtilecfg %0" : : "m"(config));
    for (int64_t i = 0; i < n; ++i)
        asm volatile("tdpbf16ps %tmm6, %tmm4, %tmm0\n tdpbf16ps %tmm7, %tmm4, %tmm1\n"
                     "tdpbf16ps %tmm6, %tmm5, %tmm2\n tdpbf16ps %tmm7, %tmm5, %tmm3");
    if (before[0]) {
        asm volatile("ldtilecfg %0" : : "m"(before));
    } else {
        asm volatile("tilerelease");
    }
    return n * 4 * 2 * 16 * 16 * 32;
}
#endif

}  // namespace

// Runs `n` iterations on a unit (0: AVX2 in f32, 1: AVX-512 in f32, 2: AMX in bf16, 3: AVX-512 FP16) and returns the
// number of multiplications and additions; 0 where the processor lacks the unit.
extern "C" int64_t peer_multiply(int unit, int64_t n) {
    switch (unit) {
#if defined(__AVX2__) && defined(__FMA__)
    case 0: return fma<__m256>(n);
#endif
#if defined(__AVX512F__)
    case 1: return fma<__m512>(n);
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
    case 2: return amx(n);
#endif
#if defined(__AVX512FP16__)
    case 3: return fp16(n);
#endif
    default: return 0;
    }
}
