// Device memory is heap memory, so that AddressSanitizer detects accesses beyond its ends and after it is freed.

#include <cstdlib>
#include <cstring>

#include "driver.hpp"

namespace skc_shim {
namespace {

constexpr size_t kAlign = 256;

}  // namespace

const Allocation* find_allocation(const Driver& d, uintptr_t address, size_t bytes) {
    auto it = d.memory.upper_bound(address);
    if (it == d.memory.begin()) return nullptr;
    --it;
    bool inside = address - it->first <= it->second.bytes && bytes <= it->second.bytes - (address - it->first);
    return inside ? &it->second : nullptr;
}

CUresult allocate(Driver& d, const Allocation& allocation, void** out) {
    size_t bytes = allocation.bytes;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    ++d.n_allocations;
    if (d.fail_after > 0 && --d.fail_after == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    if (allocation.device && bytes > d.settings.memory - d.memory_used) return CUDA_ERROR_OUT_OF_MEMORY;
    void* p = nullptr;
    if (posix_memalign(&p, kAlign, bytes) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    std::memset(p, 0xFF, bytes);
    d.memory[reinterpret_cast<uintptr_t>(p)] = allocation;
    if (allocation.device) d.memory_used += bytes;
    *out = p;
    return CUDA_SUCCESS;
}

void release(Driver& d, std::map<uintptr_t, Allocation>::iterator it) {
    if (it->second.device) d.memory_used -= it->second.bytes;
    std::free(reinterpret_cast<void*>(it->first));
    d.memory.erase(it);
}

}  // namespace skc_shim
