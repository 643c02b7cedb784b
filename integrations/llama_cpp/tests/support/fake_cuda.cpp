#include "fake_cuda.hpp"

#include <ggml-backend-impl.h>
#include <ggml-cpu.h>

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

template <class... Args>
void cuda(const char *name, Args... args) {
    static void *const library = dlopen("libcuda.so.1", RTLD_NOW);
    void *const symbol = library ? dlsym(library, name) : nullptr;
    const int code = symbol ? reinterpret_cast<int (*)(Args...)>(symbol)(args...) : -1;
    if (code != 0) {
        throw std::runtime_error(std::string(name) + " gave " + std::to_string(code));
    }
}

void make_context_current() {
    static void *const context = [] {
        void *retained = nullptr;
        cuda("cuInit", 0U);
        cuda("cuDevicePrimaryCtxRetain", &retained, 0);
        return retained;
    }();
    cuda("cuCtxSetCurrent", context);
}

struct Device {
    ggml_backend_device device{};
    ggml_backend_buffer_type type{};
    std::string name;
};

FakeCuda counters;
std::vector<Device> devices;
ggml_backend_reg registration;

Device &of(ggml_backend_dev_t device) { return *static_cast<Device *>(device->context); }
const char *name_of(ggml_backend_dev_t device) { return of(device).name.c_str(); }

char *address(const ggml_tensor *t, std::size_t offset) { return static_cast<char *>(t->data) + offset; }

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, std::size_t size) {
    make_context_current();
    unsigned long long memory = 0;
    cuda("cuMemAlloc_v2", &memory, size);
    ggml_backend_buffer_i iface{};
    iface.free_buffer = [](ggml_backend_buffer_t b) {
        make_context_current();
        cuda("cuMemFree_v2", reinterpret_cast<unsigned long long>(b->context));
    };
    iface.get_base = [](ggml_backend_buffer_t b) { return b->context; };
    iface.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor *t, std::uint8_t value, std::size_t offset,
                             std::size_t n) { std::memset(address(t, offset), value, n); };
    iface.set_tensor = [](ggml_backend_buffer_t, ggml_tensor *t, const void *data, std::size_t offset, std::size_t n) {
        ++counters.n_sets;
        std::memcpy(address(t, offset), data, n);
    };
    iface.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor *t, void *data, std::size_t offset, std::size_t n) {
        ++counters.n_gets;
        std::memcpy(data, address(t, offset), n);
    };
    iface.clear = [](ggml_backend_buffer_t b, std::uint8_t value) { std::memset(b->context, value, b->size); };
    return ggml_backend_buffer_init(type, iface, reinterpret_cast<void *>(memory), size);
}

ggml_backend_t new_backend(ggml_backend_dev_t dev, const char *) {
    static ggml_guid guid = {'f', 'a', 'k', 'e', ' ', 'c', 'u', 'd', 'a'};
    auto *backend = new ggml_backend{};
    backend->guid = &guid;
    backend->device = dev;
    const ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, 1);
    backend->context = cpu;
    backend->iface.get_name = [](ggml_backend_t b) { return name_of(b->device); };
    backend->iface.free = [](ggml_backend_t b) {
        ggml_backend_free(static_cast<ggml_backend_t>(b->context));
        delete b;
    };
    backend->iface.synchronize = [](ggml_backend_t) {};
    backend->iface.graph_compute = [](ggml_backend_t b, ggml_cgraph *graph) {
        ++counters.n_graphs;
        return ggml_backend_graph_compute(static_cast<ggml_backend_t>(b->context), graph);
    };
    return backend;
}

void describe(Device &d, std::size_t index) {
    ggml_backend_device &device = d.device;
    d.name = "CUDA" + std::to_string(index);
    device.reg = &registration;
    device.context = &d;
    device.iface.get_name = device.iface.get_description = &name_of;
    device.iface.get_memory = [](ggml_backend_dev_t, std::size_t *free, std::size_t *total) {
        *free = *total = std::size_t{1} << 30;
    };
    device.iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    device.iface.get_props = [](ggml_backend_dev_t dev, ggml_backend_dev_props *props) {
        *props = {};
        props->name = props->description = name_of(dev);
        props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
        props->device_id = std::getenv("SKC_FAKE_CUDA_ID");
        dev->iface.get_memory(dev, &props->memory_free, &props->memory_total);
    };
    device.iface.init_backend = &new_backend;
    device.iface.get_buffer_type = [](ggml_backend_dev_t dev) -> ggml_backend_buffer_type_t { return &of(dev).type; };
    device.iface.supports_op = [](ggml_backend_dev_t, const ggml_tensor *op) {
        const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        return op->op != GGML_OP_CUSTOM && ggml_backend_dev_supports_op(cpu, op);
    };
    device.iface.supports_buft = [](ggml_backend_dev_t dev, ggml_backend_buffer_type_t type) {
        return type == &of(dev).type;
    };
    d.type.device = &device;
    d.type.iface.get_name = [](ggml_backend_buffer_type_t type) { return name_of(type->device); };
    d.type.iface.alloc_buffer = &allocate;
    d.type.iface.get_alignment = [](ggml_backend_buffer_type_t) -> std::size_t { return 128; };
    d.type.iface.is_host = [](ggml_backend_buffer_type_t) { return false; };
}

}  // namespace

FakeCuda &register_fake_cuda() {
    static const bool done = [] {
        const char *n = std::getenv("SKC_FAKE_CUDA_DEVICES");
        devices.resize(n ? std::strtoul(n, nullptr, 10) : 1);
        for (std::size_t i = 0; i < devices.size(); ++i) {
            describe(devices[i], i);
        }
        registration.api_version = GGML_BACKEND_API_VERSION;
        registration.iface.get_name = [](ggml_backend_reg_t) { return "CUDA"; };
        registration.iface.get_device_count = [](ggml_backend_reg_t) { return devices.size(); };
        registration.iface.get_device = [](ggml_backend_reg_t, std::size_t i) { return &devices[i].device; };
        registration.iface.get_proc_address = [](ggml_backend_reg_t, const char *) -> void * { return nullptr; };
        ggml_backend_register(&registration);
        return true;
    }();
    (void)done;
    return counters;
}
