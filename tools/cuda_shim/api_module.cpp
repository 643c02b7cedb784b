// The driver API: modules and functions.

#include <algorithm>

#include "driver.hpp"
#include "image.hpp"

using namespace skc_shim;

namespace {

// Code for compute capability x.y runs on devices x.z with z >= y.
bool runs_on(uint32_t image, uint32_t device) { return image / 10 == device / 10 && image % 10 <= device % 10; }

}  // namespace

SKC_SHIM_API CUresult cuModuleLoadData(CUmodule* out, const void* image) {
    Call call;
    if (CUresult error = call.enter()) return error;
    if (!out || !image) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = reject_in_capture(call)) return error;
    size_t bytes = 0;
    uint32_t arch = check_image(image, &bytes);
    if (arch == 0) return CUDA_ERROR_INVALID_IMAGE;
    if (!runs_on(arch, static_cast<uint32_t>(call.d.settings.arch))) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    auto module = std::make_shared<Module>();
    module->context = call.context.get();
    module->arch = arch;
    module->code = load_code(image, bytes);
    if (!module->code) return CUDA_ERROR_INVALID_IMAGE;
    *out = reinterpret_cast<CUmodule>(call.d.modules.add(module));
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(out, image);
}

SKC_SHIM_API CUresult cuModuleUnload(CUmodule handle) {
    Call call;
    if (CUresult error = call.enter(); error && error != CUDA_ERROR_LAUNCH_FAILED) return error;
    auto module = call.d.modules.find(handle);
    if (!module || module->context != call.context.get()) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult error = reject_in_capture(call)) return error;
    module->loaded = false;
    call.d.functions.remove_if([&](const Function& f) { return f.module == module; });
    call.d.modules.remove(handle);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
    Call call;
    if (CUresult error = call.enter()) return error;
    auto module = call.d.modules.find(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    if (!out || !name) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<Kernel> kernel = module->code->find(name);
    if (!kernel) return CUDA_ERROR_NOT_FOUND;
    auto function = std::make_shared<Function>();
    function->module = module;
    function->name = name;
    function->kernel = std::move(kernel);
    *out = reinterpret_cast<CUfunction>(call.d.functions.add(function));
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuFuncSetAttribute(CUfunction handle, int which, int value) {
    Call call;
    if (CUresult error = call.enter()) return error;
    auto function = call.d.functions.find(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (which < 0 || which >= CU_FUNC_ATTRIBUTE_LAST) return CUDA_ERROR_INVALID_VALUE;
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value < 0 || value > call.d.settings.shared_optin) return CUDA_ERROR_INVALID_VALUE;
    function->max_shared = static_cast<uint32_t>(value);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuFuncGetAttribute(int* out, int which, CUfunction handle) {
    Call call;
    if (CUresult error = call.enter()) return error;
    auto function = call.d.functions.find(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    switch (which) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
            *out = static_cast<int>(function->kernel->max_threads);
            return CUDA_SUCCESS;
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *out = static_cast<int>(function->module->arch); return CUDA_SUCCESS;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            *out = static_cast<int>(function->max_shared);
            return CUDA_SUCCESS;
        default: return CUDA_ERROR_INVALID_VALUE;  // registers and the like, which host code lacks
    }
}

namespace {

// Blocks of a function that a multiprocessor has at the same time.
int resident_blocks(const Driver& d, const Function& function, size_t threads, size_t shared_bytes) {
    size_t all_shared = static_cast<size_t>(d.settings.shared_optin) + 1024;
    size_t blocks = std::min<size_t>({32, 2048 / threads, all_shared / (shared_bytes + 1024)});
    bool fits = threads <= function.kernel->max_threads && shared_bytes <= function.max_shared;
    return fits ? static_cast<int>(blocks) : 0;
}

}  // namespace

SKC_SHIM_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, CUfunction handle, int threads,
                                                                  size_t shared_bytes) {
    Call call;
    if (CUresult error = call.enter()) return error;
    auto function = call.d.functions.find(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (!out || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
    *out = resident_blocks(call.d, *function, static_cast<size_t>(threads), shared_bytes);
    return CUDA_SUCCESS;
}

// As if all multiprocessors were of one group, within which a cluster lies.
SKC_SHIM_API CUresult cuOccupancyMaxActiveClusters(int* out, CUfunction handle, const CUlaunchConfig* config) {
    Call call;
    if (CUresult error = call.enter()) return error;
    auto function = call.d.functions.find(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (!out || !config || config->block[0] == 0) return CUDA_ERROR_INVALID_VALUE;
    unsigned size = 1;
    for (unsigned i = 0; i < config->n_attributes; ++i) {
        const CUlaunchAttribute& a = config->attributes[i];
        if (a.id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) continue;
        size = a.value.cluster.x * a.value.cluster.y * a.value.cluster.z;
    }
    auto most = static_cast<unsigned>(call.d.max_cluster);
    if (call.d.settings.arch < 90 || most == 0) return CUDA_ERROR_NOT_SUPPORTED;
    if (size == 0 || size > most) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    int blocks = resident_blocks(call.d, *function, config->block[0], config->shared_bytes);
    *out = blocks * call.d.settings.multiprocessors / static_cast<int>(size);
    return CUDA_SUCCESS;
}
