#include "float_kernels.hpp"

namespace inflight {

#ifdef INFLIGHT_X86
namespace avx2 {
extern const FloatKernels kernels;
}
namespace avx512 {
extern const FloatKernels kernels;
}
#endif

const FloatKernels *const *float_kernels() {
    static const FloatKernels *all[3] = {};
    static const bool listed = [] {
        [[maybe_unused]] const FloatKernels **next = all;
#ifdef INFLIGHT_X86
        // These include that the system saves the registers.
        const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        const bool f16c = __builtin_cpu_supports("f16c");
        if (fma && f16c && __builtin_cpu_supports("avx512f")) {
            *next++ = &avx512::kernels;
        }
        if (fma && f16c) {
            *next++ = &avx2::kernels;
        }
#endif
        return true;
    }();
    (void)listed;
    return all;
}

}  // namespace inflight
