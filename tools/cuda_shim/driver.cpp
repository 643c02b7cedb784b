#include "driver.hpp"

#include <cstdio>
#include <cstdlib>

#include "random.hpp"

namespace skc_shim {
namespace {

long long setting(const char* name, long long default_value) {
    const char* text = std::getenv(name);
    return text && *text ? std::strtoll(text, nullptr, 0) : default_value;
}

}  // namespace

// An H100, with less memory.
Settings::Settings()
    : devices(static_cast<int>(setting("SKC_SHIM_DEVICES", 1))),
      arch(static_cast<int>(setting("SKC_SHIM_ARCH", 90))),
      multiprocessors(static_cast<int>(setting("SKC_SHIM_MULTIPROCESSORS", 132))),
      shared_optin(static_cast<int>(setting("SKC_SHIM_SHARED", 227 * 1024))),
      memory(static_cast<size_t>(setting("SKC_SHIM_MEMORY", 2LL << 30))) {}

Driver::Driver() : queue(base_seed()) {
    fail_after = setting("SKC_SHIM_FAIL", 0);
    max_cluster = static_cast<int>(setting("SKC_SHIM_CLUSTER", 8));
    for (int device = 0; device < settings.devices; ++device) {
        auto context = std::make_shared<Context>();
        context->device = device;
        context->primary = true;
        context->alive = false;
        context->legacy.context = context.get();
        context->legacy.legacy = true;
        primary.emplace_back(reinterpret_cast<CUcontext>(contexts.add(context)), context);
    }
}

Driver& driver() {
    static Driver& driver = *new Driver;
    return driver;
}

ThreadState& thread_state() {
    thread_local ThreadState state;
    return state;
}

void Context::fail(const std::string& why) {
    std::fprintf(stderr, "skc_shim: %s\n", why.c_str());
    failed = CUDA_ERROR_LAUNCH_FAILED;
}

CUresult Call::check_initialised() const { return d.initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED; }

CUresult Call::check_device(CUdevice device) const {
    if (CUresult error = check_initialised()) return error;
    return device >= 0 && device < d.settings.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult Call::enter() {
    if (CUresult error = check_initialised()) return error;
    const auto& stack = thread_state().stack;
    if (stack.empty() || !stack.back()) return CUDA_ERROR_INVALID_CONTEXT;
    context = d.contexts.find(stack.back());
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context->alive) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return context->failed;
}

CUresult Call::enter(CUstream handle, Stream*& stream) {
    if (CUresult error = enter()) return error;
    auto raw = reinterpret_cast<uintptr_t>(handle);
    if (raw == 0 || raw == kLegacyStream) {
        stream = &context->legacy;
        return CUDA_SUCCESS;
    }
    if (raw == kPerThreadStream) return CUDA_ERROR_NOT_SUPPORTED;
    auto found = d.streams.find(handle);
    if (!found || found->context != context.get()) return CUDA_ERROR_INVALID_HANDLE;
    stream = found.get();
    return CUDA_SUCCESS;
}

// Destroys everything that belongs to the context.
void end_context(Driver& d, Context& context) {
    context.alive = false;
    auto belongs = [&](const auto& object) { return object.context == &context; };
    for (auto it = d.memory.begin(); it != d.memory.end();) {
        auto next = std::next(it);
        if (belongs(it->second)) release(d, it);
        it = next;
    }
    for (const auto& capture : d.captures) {
        if (belongs(*capture->graph)) invalidate(*capture);
    }
    d.functions.remove_if([&](const Function& f) { return belongs(*f.module); });
    d.modules.remove_if(belongs);
    d.events.remove_if(belongs);
    d.streams.remove_if(belongs);
    d.graphs.remove_if(belongs);
    d.graph_execs.remove_if(belongs);
    context.legacy.last = nullptr;
    context.streams.clear();
    context.failed = CUDA_SUCCESS;
}

}  // namespace skc_shim
