// The driver API: kernel launches.

#include <cstdlib>
#include <cstring>

#include "driver.hpp"
#include "random.hpp"

using namespace skc_shim;

namespace {

using Params = std::shared_ptr<void>;

// A copy of a kernel's parameters, of exactly their size: AddressSanitizer reports reads beyond them.
Params copy_params(const Function& function, void** params, void** extra) {
    const void* from = params ? params[0] : nullptr;
    if (!params && extra) {
        size_t bytes = 0;
        for (; reinterpret_cast<uintptr_t>(extra[0]) != kParamEnd; extra += 2) {
            if (reinterpret_cast<uintptr_t>(extra[0]) == kParamBuffer) from = extra[1];
            if (reinterpret_cast<uintptr_t>(extra[0]) == kParamBufferSize) bytes = *static_cast<size_t*>(extra[1]);
        }
        if (bytes != function.kernel->param_bytes) return nullptr;
    }
    if (!from) return nullptr;
    Params copy(std::malloc(function.kernel->param_bytes), std::free);
    std::memcpy(copy.get(), from, function.kernel->param_bytes);
    return copy;
}

// A grid is a whole number of clusters. Portable clusters have at most 8 blocks.
CUresult check_cluster(const Driver& d, const LaunchShape& shape) {
    const unsigned* c = shape.cluster;
    uint64_t size = uint64_t{c[0]} * c[1] * c[2];
    if (size == 1) return CUDA_SUCCESS;
    if (d.settings.arch < 90) return CUDA_ERROR_NOT_SUPPORTED;
    bool fits = size != 0 && size <= 8;
    for (int i = 0; i < 3; ++i) fits = fits && shape.grid[i] % c[i] == 0;
    return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CLUSTER_SIZE;
}

CUresult launch(CUfunction handle, CUstream stream_handle, const LaunchShape& shape, void** params, void** extra) {
    Call call;
    Stream* stream = nullptr;
    if (CUresult error = call.enter(stream_handle, stream)) return error;
    auto function = call.d.functions.find(handle);
    if (!function || function->module->context != stream->context) return CUDA_ERROR_INVALID_HANDLE;
    const unsigned* grid = shape.grid;
    bool grid_fits = grid[0] - 1u < 2147483647u && grid[1] - 1u < 65535 && grid[2] - 1u < 65535;
    // Kernels have one-dimensional blocks of whole warps.
    bool block_fits = shape.block[0] - 1u < function->kernel->max_threads && shape.block[0] % 32 == 0 &&
                      shape.block[1] == 1 && shape.block[2] == 1;
    if (!grid_fits || !block_fits || shape.shared_bytes > function->max_shared) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = check_cluster(call.d, shape)) return error;
    Params copy = copy_params(*function, params, extra);
    if (!copy) return CUDA_ERROR_INVALID_VALUE;
    Work work = [=]() -> std::string {
        if (!function->module->loaded) return function->name + ": its module was unloaded before it ran";
        uint64_t seed = base_seed() * 0x9e3779b97f4a7c15ULL + ++driver().seeds;
        std::string error = function->kernel->run(shape, copy.get(), seed);
        return error.empty() ? error : function->name + ": " + error;
    };
    CUresult result = enqueue(call, *stream, std::move(work));
    if (result == CUDA_SUCCESS) ++call.d.n_launches;
    if (result == CUDA_SUCCESS && shape.programmatic) ++call.d.n_programmatic;
    if (result == CUDA_SUCCESS && shape.cluster[0] * shape.cluster[1] * shape.cluster[2] > 1) ++call.d.n_clustered;
    return result;
}

}  // namespace

SKC_SHIM_API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                     unsigned bz, unsigned shared_bytes, CUstream stream, void** params, void** extra) {
    return launch(f, stream, {{gx, gy, gz}, {bx, by, bz}, shared_bytes, false}, params, extra);
}

// Stream priorities are ignored. A programmatic launch, too, begins when the preceding kernel has ended; that its
// threads wait for that kernel before anything else is checked.
SKC_SHIM_API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction f, void** params, void** extra) {
    if (!config) return CUDA_ERROR_INVALID_VALUE;
    const unsigned* g = config->grid;
    const unsigned* b = config->block;
    LaunchShape shape = {{g[0], g[1], g[2]}, {b[0], b[1], b[2]}, config->shared_bytes, false};
    for (unsigned i = 0; i < config->n_attributes; ++i) {
        const CUlaunchAttribute& a = config->attributes[i];
        switch (a.id) {
            case CU_LAUNCH_ATTRIBUTE_IGNORE:
            case CU_LAUNCH_ATTRIBUTE_PRIORITY: break;
            case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM: shape.programmatic = a.value.flag != 0; break;
            case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
                shape.cluster[0] = a.value.cluster.x;
                shape.cluster[1] = a.value.cluster.y;
                shape.cluster[2] = a.value.cluster.z;
                break;
            default: return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    return launch(f, config->stream, shape, params, extra);
}
