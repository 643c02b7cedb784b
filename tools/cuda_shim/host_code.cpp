// Device code as a shared object of host code, which compiler.cpp has made.

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

#include "code.hpp"
#include "grid.hpp"

namespace skc_shim {
namespace {

class HostKernel : public Kernel {
public:
    HostKernel(void (*entry)(const void*), uint32_t bytes, uint32_t threads) : entry_(entry) {
        param_bytes = bytes;
        max_threads = threads;
    }
    std::string run(const LaunchShape& s, const void* params, uint64_t seed) override {
        return run_grid({entry_, params, {s.grid[0], s.grid[1], s.grid[2]}, s.block[0], s.shared_bytes, seed,
                         s.programmatic, {s.cluster[0], s.cluster[1], s.cluster[2]}});
    }

private:
    void (*entry_)(const void*);
};

class HostCode : public Code {
public:
    ~HostCode() override {
        if (library_) dlclose(library_);
        if (file_ >= 0) close(file_);
    }

    // Each gets a file of its own: dlopen identifies objects by their file.
    bool load(const void* object, size_t bytes) {
        file_ = memfd_create("skc_shim_kernels", MFD_CLOEXEC);
        if (file_ < 0 || write(file_, object, bytes) != static_cast<ssize_t>(bytes)) return false;
        std::string path = "/proc/self/fd/" + std::to_string(file_);
        library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library_) std::fprintf(stderr, "skc_shim: %s\n", dlerror());
        return library_;
    }

    std::shared_ptr<Kernel> find(const std::string& name) override {
        auto symbol = [&](const char* suffix) { return dlsym(library_, (name + suffix).c_str()); };
        auto* bytes = static_cast<unsigned*>(symbol("_param_bytes"));
        auto* threads = static_cast<unsigned*>(symbol("_threads"));
        void* entry = symbol("");
        if (!entry || !bytes || !threads) return nullptr;
        return std::make_shared<HostKernel>(reinterpret_cast<void (*)(const void*)>(entry), *bytes, *threads);
    }

private:
    void* library_ = nullptr;
    int file_ = -1;  // stays open while loaded: AddressSanitizer reads symbols from it
};

}  // namespace

std::shared_ptr<Code> load_code(const void* image, size_t bytes) {
    auto code = std::make_shared<HostCode>();
    return code->load(image, bytes) ? code : nullptr;
}

}  // namespace skc_shim
