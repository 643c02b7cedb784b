// The driver API: modules, functions, launches; and what tests may ask of the shim.

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.hpp"
#include "grid.hpp"
#include "image.hpp"

using namespace skc_shim;

namespace {

// Loads a shared object from memory: each has a file of its own, as the loader would take two of one file for the same.
bool load(Module& module, const void* object, size_t bytes) {
    module.file = memfd_create("skc_shim_kernels", MFD_CLOEXEC);
    if (module.file < 0 || write(module.file, object, bytes) != static_cast<ssize_t>(bytes)) return false;
    std::string path = "/proc/self/fd/" + std::to_string(module.file);
    module.library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!module.library) std::fprintf(stderr, "skc_shim: %s\n", dlerror());
    return module.library;
}

struct Dimensions {
    unsigned grid[3];
    unsigned block[3];
    unsigned shared_bytes;
};

using Params = std::shared_ptr<void>;

// A copy of a kernel's parameters, exactly as long as they are.
Params copy_params(const Function& function, void** params, void** extra) {
    const void* from = params ? params[0] : nullptr;
    if (!params && extra) {
        size_t bytes = 0;
        for (; reinterpret_cast<uintptr_t>(extra[0]) != kParamEnd; extra += 2) {
            if (reinterpret_cast<uintptr_t>(extra[0]) == kParamBuffer) from = extra[1];
            if (reinterpret_cast<uintptr_t>(extra[0]) == kParamBufferSize) bytes = *static_cast<size_t*>(extra[1]);
        }
        if (bytes != function.param_bytes) return nullptr;
    }
    if (!from) return nullptr;
    Params copy(std::malloc(function.param_bytes), std::free);
    std::memcpy(copy.get(), from, function.param_bytes);
    return copy;
}

CUresult launch(CUfunction handle, const Dimensions& dims, bool programmatic, CUstream stream_handle, void** params, void** extra) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(stream_handle, stream)) return error;
    auto function = call.d.functions.find(handle);
    if (!function || function->module->context != stream->context) return CUDA_ERROR_INVALID_HANDLE;
    const unsigned* grid = dims.grid;
    bool grid_fits = grid[0] - 1u < 2147483647u && grid[1] - 1u < 65535 && grid[2] - 1u < 65535;
    // Kernels have one-dimensional blocks of whole warps.
    bool block_fits = dims.block[0] - 1u < function->threads && dims.block[0] % 32 == 0 && dims.block[1] == 1 && dims.block[2] == 1;
    if (!grid_fits || !block_fits || dims.shared_bytes > function->max_shared) return CUDA_ERROR_INVALID_VALUE;
    Params copy = copy_params(*function, params, extra);
    if (!copy) return CUDA_ERROR_INVALID_VALUE;
    Dimensions d = dims;
    Work work = [=]() -> std::string {
        if (!function->module->loaded) return function->name + ": its module was unloaded before it ran";
        uint64_t seed = base_seed() * 0x9e3779b97f4a7c15ULL + ++driver().seeds;
        Launch launch{function->kernel, copy.get(), {d.grid[0], d.grid[1], d.grid[2]}, d.block[0], d.shared_bytes, seed, programmatic};
        std::string error = run_grid(launch);
        return error.empty() ? error : function->name + ": " + error;
    };
    CUresult result = enqueue(call, *stream, std::move(work));
    if (result == CUDA_SUCCESS) ++call.d.n_launches;
    if (result == CUDA_SUCCESS && programmatic) ++call.d.n_programmatic;
    return result;
}

// Code for sm_90a (or any x.y) runs on devices of the same major version and no lower minor one.
bool runs_on(uint32_t image, uint32_t device) { return image / 10 == device / 10 && image % 10 <= device % 10; }

}  // namespace

SKC_SHIM_API CUresult cuModuleLoadData(CUmodule* out, const void* image) {
    Call call;
    if (CUresult error = call.enter()) return error;
    if (!out || !image) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = refuse_in_capture(call)) return error;
    size_t bytes = 0;
    uint32_t arch = check_image(image, &bytes);
    if (arch == 0) return CUDA_ERROR_INVALID_IMAGE;
    if (!runs_on(arch, static_cast<uint32_t>(call.d.settings.arch))) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    auto module = std::make_shared<Module>();
    module->context = call.context.get();
    module->arch = arch;
    if (!load(*module, image, bytes)) return CUDA_ERROR_INVALID_IMAGE;
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
    if (CUresult error = refuse_in_capture(call)) return error;
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
    auto symbol = [&](const std::string& suffix) { return dlsym(module->library, (name + suffix).c_str()); };
    auto* bytes = static_cast<unsigned*>(symbol("_param_bytes"));
    auto* threads = static_cast<unsigned*>(symbol("_threads"));
    void* kernel = symbol("");
    if (!kernel || !bytes || !threads) return CUDA_ERROR_NOT_FOUND;
    auto function = std::make_shared<Function>();
    function->module = module;
    function->name = name;
    function->kernel = reinterpret_cast<void (*)(const void*)>(kernel);
    function->param_bytes = *bytes;
    function->threads = *threads;
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
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *out = static_cast<int>(function->threads); return CUDA_SUCCESS;
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *out = static_cast<int>(function->module->arch); return CUDA_SUCCESS;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *out = static_cast<int>(function->max_shared); return CUDA_SUCCESS;
        default: return CUDA_ERROR_INVALID_VALUE;  // registers and the like, which this code does not have
    }
}

SKC_SHIM_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, CUfunction handle, int threads, size_t shared_bytes) {
    Call call;
    if (CUresult error = call.enter()) return error;
    auto function = call.d.functions.find(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (!out || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
    size_t all_shared = static_cast<size_t>(call.d.settings.shared_optin) + 1024;
    size_t most = std::min<size_t>({32, 2048 / static_cast<size_t>(threads), all_shared / (shared_bytes + 1024)});
    *out = static_cast<uint32_t>(threads) > function->threads || shared_bytes > function->max_shared ? 0 : static_cast<int>(most);
    return CUDA_SUCCESS;
}

SKC_SHIM_API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                     unsigned shared_bytes, CUstream stream, void** params, void** extra) {
    return launch(f, {{gx, gy, gz}, {bx, by, bz}, shared_bytes}, false, stream, params, extra);
}

// Stream priorities are ignored. A kernel launched programmatically begins when the one before has ended, too, but must wait
// for it first of all.
SKC_SHIM_API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction f, void** params, void** extra) {
    if (!config) return CUDA_ERROR_INVALID_VALUE;
    bool programmatic = false;
    for (unsigned i = 0; i < config->n_attributes; ++i) {
        const CUlaunchAttribute& a = config->attributes[i];
        bool one = a.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION && a.value.cluster.x * a.value.cluster.y * a.value.cluster.z == 1;
        bool ignored = a.id == CU_LAUNCH_ATTRIBUTE_IGNORE || a.id == CU_LAUNCH_ATTRIBUTE_PRIORITY;
        bool known = a.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM;
        if (known && a.value.flag != 0) programmatic = true;
        if (!one && !ignored && !known) return CUDA_ERROR_NOT_SUPPORTED;
    }
    const unsigned *g = config->grid, *b = config->block;
    return launch(f, {{g[0], g[1], g[2]}, {b[0], b[1], b[2]}, config->shared_bytes}, programmatic, config->stream, params, extra);
}

// ---- For tests: found by dlsym, where the driver is the shim.

SKC_SHIM_API uint64_t skc_shim_count_sync() { return driver().n_sync; }
SKC_SHIM_API uint64_t skc_shim_count_allocations() { return driver().n_allocations; }
SKC_SHIM_API uint64_t skc_shim_count_launches() { return driver().n_launches; }
SKC_SHIM_API uint64_t skc_shim_count_programmatic() { return driver().n_programmatic; }
SKC_SHIM_API uint64_t skc_shim_count_graph_launches() { return driver().n_graph_launches; }
// Allocations that have not been freed, of the device and of pinned memory.
SKC_SHIM_API uint64_t skc_shim_live_allocations() {
    Call call;
    return call.d.memory.size();
}
// Lets the n-th allocation from now on fail; 0 = none.
SKC_SHIM_API void skc_shim_fail_allocation(int64_t n) { driver().fail_after = n; }
