// The driver API: memory, copies, memsets.

#include <cstring>

#include "driver.hpp"

using namespace skc_shim;

namespace {

uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }
void* pointer(CUdeviceptr p) { return reinterpret_cast<void*>(static_cast<uintptr_t>(p)); }

// Whether device work may access the range. Checked again when the work runs.
bool still_allocated(uintptr_t at, size_t bytes) {
    std::lock_guard lock(driver().mutex);
    return find_allocation(driver(), at, bytes) != nullptr;
}

bool is_pinned(const Driver& d, const void* p, size_t bytes) {
    const Allocation* memory = find_allocation(d, address(p), bytes);
    return memory && !memory->device;
}

bool is_device(const Driver& d, CUdeviceptr p, size_t bytes) {
    return find_allocation(d, static_cast<uintptr_t>(p), bytes);
}

Work copy_work(void* to, const void* from, size_t bytes, bool to_device, bool from_device) {
    return [=]() -> std::string {
        if (to_device && !still_allocated(address(to), bytes)) return "a copy to device memory that has been freed";
        if (from_device && !still_allocated(address(from), bytes)) {
            return "a copy from device memory that has been freed";
        }
        std::memmove(to, from, bytes);
        return {};
    };
}

// Pageable memory is read before the call returns; in capture nothing is read before a graph launch.
CUresult to_device(Call& call, Stream& stream, CUdeviceptr to, const void* from, size_t bytes) {
    if (bytes == 0) return CUDA_SUCCESS;
    if (!from || !is_device(call.d, to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (stream.capture || is_pinned(call.d, from, bytes)) {
        return enqueue(call, stream, copy_work(pointer(to), from, bytes, true, false));
    }
    auto* begin = static_cast<const uint8_t*>(from);
    auto staged = std::make_shared<std::vector<uint8_t>>(begin, begin + bytes);
    return enqueue(call, stream,
                   [=]() -> std::string { return copy_work(pointer(to), staged->data(), bytes, true, false)(); });
}

// A copy to pageable memory has completed when the call returns.
CUresult to_host(Call& call, Stream& stream, void* to, CUdeviceptr from, size_t bytes) {
    if (bytes == 0) return CUDA_SUCCESS;
    if (!to || !is_device(call.d, from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    bool wait = !stream.capture && !is_pinned(call.d, to, bytes);
    if (CUresult error = enqueue(call, stream, copy_work(to, pointer(from), bytes, false, true))) return error;
    return wait ? wait_for(call, stream) : CUDA_SUCCESS;
}

CUresult fill(CUdeviceptr at, const void* pattern, size_t size, size_t n, CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (n == 0) return CUDA_SUCCESS;
    if (at % size != 0 || n > SIZE_MAX / size || !is_device(call.d, at, n * size)) return CUDA_ERROR_INVALID_VALUE;
    uint32_t value = 0;
    std::memcpy(&value, pattern, size);
    return enqueue(call, *stream, [=]() -> std::string {
        if (!still_allocated(static_cast<uintptr_t>(at), n * size)) {
            return "a memset of device memory that has been freed";
        }
        auto* to = static_cast<uint8_t*>(pointer(at));
        if (size == 1) {
            std::memset(to, static_cast<int>(value), n);
        } else {
            for (size_t i = 0; i < n; ++i) std::memcpy(to + i * size, &value, size);
        }
        return {};
    });
}

CUresult allocate_if_permitted(void** out, Allocation allocation) {
    Call call;
    if (CUresult error = call.enter()) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = reject_in_capture(call)) return error;
    allocation.context = call.context.get();
    return allocate(call.d, allocation, out);
}

// Frees the memory without waiting: work that still uses it is an error, which AddressSanitizer reports.
CUresult free_if_permitted(uintptr_t at, bool device) {
    Call call;
    if (CUresult error = call.enter(); error && error != CUDA_ERROR_LAUNCH_FAILED) return error;
    if (at == 0) return device ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = reject_in_capture(call)) return error;
    auto it = call.d.memory.find(at);
    if (it == call.d.memory.end() || it->second.device != device) return CUDA_ERROR_INVALID_VALUE;
    release(call.d, it);
    return CUDA_SUCCESS;
}

}  // namespace

SKC_SHIM_API CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
    void* p = nullptr;
    CUresult error = allocate_if_permitted(out ? &p : nullptr, {bytes});
    if (error == CUDA_SUCCESS) *out = address(p);
    return error;
}

SKC_SHIM_API CUresult cuMemFree_v2(CUdeviceptr p) { return free_if_permitted(static_cast<uintptr_t>(p), true); }

SKC_SHIM_API CUresult cuMemAllocAsync(CUdeviceptr* out, size_t bytes, CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    // A driver would add a memory node to the graph; the shim has no such nodes.
    if (CUresult error = reject_if_stream_captures(*stream)) return error;
    void* p = nullptr;
    CUresult error = allocate(call.d, {bytes, call.context.get()}, &p);
    if (error == CUDA_SUCCESS) *out = address(p);
    return error;
}

SKC_SHIM_API CUresult cuMemFreeAsync(CUdeviceptr p, CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (p == 0) return CUDA_SUCCESS;
    auto it = call.d.memory.find(static_cast<uintptr_t>(p));
    if (it == call.d.memory.end() || !it->second.device) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = reject_if_stream_captures(*stream)) return error;
    return enqueue(call, *stream, [p]() -> std::string {
        Driver& d = driver();
        std::lock_guard lock(d.mutex);
        auto found = d.memory.find(static_cast<uintptr_t>(p));
        if (found == d.memory.end()) return "cuMemFreeAsync: the memory has been freed already";
        release(d, found);
        return {};
    });
}

SKC_SHIM_API CUresult cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
    if (flags > (CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return allocate_if_permitted(out, {bytes, nullptr, false, (flags & CU_MEMHOSTALLOC_DEVICEMAP) != 0});
}

SKC_SHIM_API CUresult cuMemFreeHost(void* p) { return free_if_permitted(address(p), false); }

SKC_SHIM_API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* p, unsigned flags) {
    Call call;
    if (CUresult error = call.enter()) return error;
    const Allocation* memory = find_allocation(call.d, address(p), 1);
    if (!out || flags != 0 || !memory || memory->device || !memory->mapped) return CUDA_ERROR_INVALID_VALUE;
    *out = address(p);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    Call call;
    if (CUresult error = call.enter()) return error;
    if (!free || !total) return CUDA_ERROR_INVALID_VALUE;
    *total = call.d.settings.memory;
    *free = *total - call.d.memory_used;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuMemsetD8Async(CUdeviceptr at, uint8_t value, size_t n, CUstream stream) {
    return fill(at, &value, 1, n, stream);
}
SKC_SHIM_API CUresult cuMemsetD32Async(CUdeviceptr at, uint32_t value, size_t n, CUstream stream) {
    return fill(at, &value, 4, n, stream);
}
SKC_SHIM_API CUresult cuMemsetD8_v2(CUdeviceptr at, uint8_t value, size_t n) { return fill(at, &value, 1, n, nullptr); }
SKC_SHIM_API CUresult cuMemsetD32_v2(CUdeviceptr at, uint32_t value, size_t n) {
    return fill(at, &value, 4, n, nullptr);
}

SKC_SHIM_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    return to_device(call, *stream, to, from, bytes);
}

SKC_SHIM_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    return to_host(call, *stream, to, from, bytes);
}

SKC_SHIM_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (bytes == 0) return CUDA_SUCCESS;
    if (!is_device(call.d, to, bytes) || !is_device(call.d, from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(call, *stream, copy_work(pointer(to), pointer(from), bytes, true, true));
}

// Between host and device, row by row.
SKC_SHIM_API CUresult cuMemcpy2DAsync_v2(const CUmemcpy2D* copy, CUstream handle) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(handle, stream)) return error;
    if (!copy) return CUDA_ERROR_INVALID_VALUE;
    const CUmemcpy2DSide &from = copy->from, &to = copy->to;
    bool writes = from.memory_type == CU_MEMORYTYPE_HOST && to.memory_type == CU_MEMORYTYPE_DEVICE;
    bool reads = from.memory_type == CU_MEMORYTYPE_DEVICE && to.memory_type == CU_MEMORYTYPE_HOST;
    bool plain = !from.x_bytes && !from.y && !to.x_bytes && !to.y;
    if (!plain || (!writes && !reads)) return CUDA_ERROR_NOT_SUPPORTED;
    if (from.pitch < copy->width || to.pitch < copy->width) return CUDA_ERROR_INVALID_VALUE;
    for (size_t row = 0; row < copy->height; ++row) {
        size_t at_source = row * from.pitch, at_target = row * to.pitch;
        CUresult error =
            writes ? to_device(call, *stream, to.device + at_target,
                               static_cast<const uint8_t*>(from.host.from) + at_source, copy->width)
                   : to_host(call, *stream, static_cast<uint8_t*>(to.host.to) + at_target, from.device + at_source,
                             copy->width);
        if (error) return error;
    }
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(nullptr, stream)) return error;
    if (CUresult error = reject_in_capture(call)) return error;
    if (CUresult error = to_device(call, *stream, to, from, bytes)) return error;
    return wait_for(call, *stream);
}

SKC_SHIM_API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(nullptr, stream)) return error;
    if (CUresult error = reject_in_capture(call)) return error;
    if (CUresult error = to_host(call, *stream, to, from, bytes)) return error;
    return wait_for(call, *stream);
}

SKC_SHIM_API CUresult cuPointerGetAttribute(void* out, int which, CUdeviceptr p) {
    Call call;
    if (CUresult error = call.check_initialised()) return error;
    auto at = static_cast<uintptr_t>(p);
    const Allocation* memory = find_allocation(call.d, at, 1);
    if (!out || !memory) return CUDA_ERROR_INVALID_VALUE;
    auto put = [out](auto value) {
        std::memcpy(out, &value, sizeof value);
        return CUDA_SUCCESS;
    };
    auto begin = std::prev(call.d.memory.upper_bound(at))->first;
    switch (which) {
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            return put(unsigned{memory->device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST});
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
            return memory->device || memory->mapped ? put(p) : CUDA_ERROR_INVALID_VALUE;
        case CU_POINTER_ATTRIBUTE_HOST_POINTER: return memory->device ? CUDA_ERROR_INVALID_VALUE : put(p);
        case CU_POINTER_ATTRIBUTE_IS_MANAGED: return put(unsigned{0});
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: return put(memory->context->device);
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: return put(CUdeviceptr{begin});
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE: return put(memory->bytes);
        default: return CUDA_ERROR_INVALID_VALUE;
    }
}
