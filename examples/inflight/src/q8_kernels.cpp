#include "q8_kernels.hpp"

namespace inflight {

#ifdef INFLIGHT_X86
namespace avx512vnni {
extern const Q8Kernels kernels;
}

const Q8Kernels *q8_kernels() {
    const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
    return vnni && __builtin_cpu_supports("f16c") ? &avx512vnni::kernels : nullptr;
}
#else
const Q8Kernels *q8_kernels() { return nullptr; }
#endif

}  // namespace inflight
