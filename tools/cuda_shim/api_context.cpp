// The driver API: initialisation, devices, contexts, errors.

#include <cstdio>
#include <cstring>

#include "driver.hpp"

using namespace skc_shim;

namespace {

// Numbers: CUdevice_attribute of CUDA 13.0. Values: an H100's.
int attribute(const Settings& s, int which, bool& known) {
    known = true;
    switch (which) {
        case 1: case 2: case 3: return 1024;         // threads of a block, block dims x and y
        case 4: return 64;                           // block dim z
        case 5: return 2147483647;                   // grid dim x
        case 6: case 7: return 65535;                // grid dims y and z
        case 8: return 48 * 1024;                    // shared memory of a block, without opt-in
        case 9: return 65536;                        // constant memory
        case 10: return 32;                          // warp
        case 12: case 82: return 65536;              // registers of a block, of a multiprocessor
        case 13: return 1980000;                     // clock, kHz
        case 16: return s.multiprocessors;
        case 18: return 0;                           // integrated
        case 19: case 31: case 41: return 1;         // maps host memory, concurrent kernels, unified addressing
        case 20: return 0;                           // compute mode
        case 36: return 2619000;                     // memory clock, kHz
        case 37: return 5120;                        // memory bus, bits
        case 38: return 50 << 20;                    // L2
        case 39: return 2048;                        // threads of a multiprocessor
        case 40: return 3;                           // copy engines
        case 75: return s.arch / 10;                 // compute capability
        case 76: return s.arch % 10;
        case 78: case 95: case 115: return 1;        // stream priorities, cooperative launch, memory pools
        case 81: return s.shared_optin + 1024;       // shared memory of a multiprocessor
        case 83: case 88: return 0;                  // managed memory, pageable access: not supported
        case 97: return s.shared_optin;              // shared memory of a block, with opt-in
        case 106: return 32;                         // blocks of a multiprocessor
        case 111: return 1024;                       // shared memory reserved for the system
        case 120: return s.arch >= 90 && driver().max_cluster > 0;  // launches of clusters
        default: known = false; return 0;
    }
}

CUresult new_context(CUcontext* out, CUdevice device) {
    Call call;
    if (CUresult error = call.check_initialised()) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = call.check_device(device)) return error;
    auto context = std::make_shared<Context>();
    context->device = device;
    context->legacy.context = context.get();
    context->legacy.legacy = true;
    *out = reinterpret_cast<CUcontext>(call.d.contexts.add(context));
    thread_state().stack.push_back(*out);
    return CUDA_SUCCESS;
}

}  // namespace

SKC_SHIM_API CUresult cuInit(unsigned flags) {
    Call call;
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (call.d.settings.devices <= 0) return CUDA_ERROR_NO_DEVICE;
    call.d.initialised = true;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDriverGetVersion(int* version) {
    if (!version) return CUDA_ERROR_INVALID_VALUE;
    *version = 13000;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDeviceGetCount(int* count) {
    Call call;
    if (CUresult error = call.check_initialised()) return error;
    if (!count) return CUDA_ERROR_INVALID_VALUE;
    *count = call.d.settings.devices;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    Call call;
    if (CUresult error = call.check_initialised()) return error;
    if (!device) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = call.check_device(ordinal)) return error;
    *device = ordinal;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    Call call;
    if (CUresult error = call.check_device(device)) return error;
    if (!name || length <= 0) return CUDA_ERROR_INVALID_VALUE;
    std::snprintf(name, static_cast<size_t>(length), "host shim (no GPU)");
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    Call call;
    if (CUresult error = call.check_device(device)) return error;
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    *bytes = call.d.settings.memory;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDeviceGetAttribute(int* value, int which, CUdevice device) {
    Call call;
    if (CUresult error = call.check_device(device)) return error;
    bool known = false;
    int found = attribute(call.d.settings, which, known);
    if (!value || !known) return CUDA_ERROR_INVALID_VALUE;
    *value = found;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
    Call call;
    if (CUresult error = call.check_initialised()) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = call.check_device(device)) return error;
    auto& [handle, context] = call.d.primary[static_cast<size_t>(device)];
    ++context->retained;
    context->alive = true;
    *out = handle;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    Call call;
    if (CUresult error = call.check_device(device)) return error;
    auto context = call.d.primary[static_cast<size_t>(device)].second;
    if (context->retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--context->retained != 0) return CUDA_SUCCESS;
    call.d.queue.wait_all(call.lock, context.get());
    if (context->retained == 0) end_context(call.d, *context);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuDevicePrimaryCtxRelease(CUdevice device) { return cuDevicePrimaryCtxRelease_v2(device); }

SKC_SHIM_API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    Call call;
    if (CUresult error = call.check_device(device)) return error;
    if (!flags || !active) return CUDA_ERROR_INVALID_VALUE;
    *flags = 0;
    *active = call.d.primary[static_cast<size_t>(device)].second->alive;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuCtxCreate_v2(CUcontext* out, unsigned, CUdevice device) { return new_context(out, device); }
SKC_SHIM_API CUresult cuCtxCreate_v4(CUcontext* out, void*, unsigned, CUdevice device) {
    return new_context(out, device);
}

SKC_SHIM_API CUresult cuCtxDestroy_v2(CUcontext handle) {
    Call call;
    auto context = call.d.contexts.find(handle);
    if (!context || !context->alive || context->primary) return CUDA_ERROR_INVALID_CONTEXT;
    call.d.queue.wait_all(call.lock, context.get());
    end_context(call.d, *context);
    call.d.destroyed.push_back(context);
    call.d.contexts.remove(handle);
    auto& stack = thread_state().stack;
    if (!stack.empty() && stack.back() == handle) stack.pop_back();
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuCtxPushCurrent_v2(CUcontext handle) {
    Call call;
    if (CUresult error = call.check_initialised()) return error;
    auto context = call.d.contexts.find(handle);
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context->alive) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    thread_state().stack.push_back(handle);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuCtxPopCurrent_v2(CUcontext* out) {
    auto& stack = thread_state().stack;
    if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (out) *out = stack.back();
    stack.pop_back();
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuCtxGetCurrent(CUcontext* out) {
    Call call;
    if (CUresult error = call.check_initialised()) return error;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    auto& stack = thread_state().stack;
    *out = stack.empty() ? nullptr : stack.back();
    return CUDA_SUCCESS;
}

// Replaces the top of the stack; NULL removes it.
SKC_SHIM_API CUresult cuCtxSetCurrent(CUcontext handle) {
    Call call;
    if (CUresult error = call.check_initialised()) return error;
    if (handle && !call.d.contexts.find(handle)) return CUDA_ERROR_INVALID_CONTEXT;
    auto& stack = thread_state().stack;
    if (!stack.empty()) stack.pop_back();
    if (handle) stack.push_back(handle);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuCtxGetDevice(CUdevice* device) {
    Call call;
    CUresult error = call.enter();
    if (!call.context) return error;
    if (!device) return CUDA_ERROR_INVALID_VALUE;
    *device = call.context->device;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuCtxGetApiVersion(CUcontext handle, unsigned* version) {
    Call call;
    if (!version) return CUDA_ERROR_INVALID_VALUE;
    if (handle && !call.d.contexts.find(handle)) return CUDA_ERROR_INVALID_CONTEXT;
    if (!handle) {
        if (CUresult error = call.enter()) return error;
    }
    *version = 3020;
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuCtxSynchronize() {
    Call call;
    if (CUresult error = call.enter()) return error;
    if (CUresult error = reject_if_context_captures(call)) return error;
    ++call.d.n_sync;
    call.d.queue.wait_all(call.lock, call.context.get());
    return sticky_error(call);
}

SKC_SHIM_API CUresult cuGetErrorName(CUresult error, const char** out) {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    switch (static_cast<int>(error)) {
#define X(name, number) \
    case number: *out = #name; return CUDA_SUCCESS;
        SKC_SHIM_ERRORS(X)
#undef X
        default: *out = nullptr; return CUDA_ERROR_INVALID_VALUE;
    }
}

SKC_SHIM_API CUresult cuGetErrorString(CUresult error, const char** out) { return cuGetErrorName(error, out); }
