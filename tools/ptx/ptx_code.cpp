// Device code as PTX: what the driver of tools/cuda_shim loads and runs.
#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>

#include "code.hpp"
#include "driver.hpp"
#include "ptx_image.hpp"
#include "random.hpp"
#include "shadow.hpp"
#include "statistics.hpp"
#include "warp.hpp"

namespace skc_shim {
namespace {

// What a kernel may access: the device's memory, and the host's where it is mapped.
std::vector<ptx::Range> accessible() {
    std::vector<ptx::Range> ranges;
    std::lock_guard lock(driver().mutex);
    for (const auto& [address, allocation] : driver().memory) {
        if (allocation.device || allocation.mapped) ranges.push_back({address, address + allocation.bytes, nullptr});
    }
    return ranges;
}

class PtxKernel : public Kernel {
public:
    PtxKernel(std::shared_ptr<ptx::Module> module, ptx::Kernel& kernel) : module_(std::move(module)), kernel_(kernel) {
        param_bytes = kernel.param_bytes;
        max_threads = kernel.max_threads;
    }

    std::string run(const LaunchShape& shape, const void* params, uint64_t seed) override {
        ptx::Launch launch;
        launch.module = module_.get();
        launch.kernel = &kernel_;
        launch.params = static_cast<const ptx::u8*>(params);
        std::copy(shape.grid, shape.grid + 3, launch.grid);
        std::copy(shape.cluster, shape.cluster + 3, launch.cluster);
        launch.threads = shape.block[0];
        launch.shared_bytes = shape.shared_bytes;
        launch.programmatic = shape.programmatic;
        launch.serial = ++launches;
        launch.start(seed);
        launch.ranges = accessible();
        ptx::attach_shadows(launch.ranges);
        std::string error = ptx::run(launch);
        return error.empty() ? error
                             : error + " [" + kernel_.label + ", SKC_SHIM_SEED=" + std::to_string(base_seed()) + "]";
    }

private:
    static std::atomic<uint32_t> launches;
    std::shared_ptr<ptx::Module> module_;
    ptx::Kernel& kernel_;
};
std::atomic<uint32_t> PtxKernel::launches{0};

class PtxCode : public Code {
public:
    explicit PtxCode(std::shared_ptr<ptx::Module> module) : module_(std::move(module)) {}
    std::shared_ptr<Kernel> find(const std::string& name) override {
        auto kernel = module_->kernels.find(name);
        if (kernel == module_->kernels.end()) return nullptr;
        return std::make_shared<PtxKernel>(module_, *kernel->second);
    }

private:
    std::shared_ptr<ptx::Module> module_;
};

}  // namespace

// A text is parsed once, however many caches load it.
std::shared_ptr<Code> load_code(const void* image, size_t bytes) {
    static std::mutex mutex;
    static auto& parsed = *new std::map<std::string, std::shared_ptr<ptx::Module>>;
    std::string text = ptx_text(image, bytes);
    std::lock_guard lock(mutex);
    auto& module = parsed[text];
    if (!module) {
        try {
            module = ptx::parse(text);
        } catch (const std::exception& e) {
            std::fprintf(stderr, "ptx: %s\n", e.what());
            return nullptr;
        }
        ptx::count(module);
    }
    return std::make_shared<PtxCode>(module);
}

}  // namespace skc_shim
