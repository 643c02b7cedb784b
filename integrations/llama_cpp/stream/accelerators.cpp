#include "accelerators.hpp"

#include "ggml_abi.hpp"
#include "llama_api.hpp"

#include "sinkcache.hpp"

#include <atomic>
#include <cstring>
#include <deque>
#include <set>
#include <vector>

namespace sinkcache {
namespace llama_cpp {
namespace {

/** The device beside a CUDA device. It lives as long as the process, like ggml's list of devices. */
struct Accelerator : ggml_abi::Device {
    ggml_backend_dev_t cuda = nullptr;
    std::int32_t ordinal = 0;
    IsOpOf is_op_of = nullptr;
    std::string name;
};

struct Accelerators {
    explicit Accelerators(IsOpOf is_op_of);

    std::deque<Accelerator> devices;
    ggml_abi::Registration registration;
    std::string problem;
};

/** NULL until they are added. */
std::atomic<const Accelerators *> added{nullptr};

const char *name_of(ggml_abi::Device *device) { return static_cast<Accelerator *>(device)->name.c_str(); }

ggml_status compute(ggml_abi::Backend *, ggml_cgraph *graph) {
    for (int i = 0; i < api().ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor *node = api().ggml_graph_node(graph, i);
        if (node->op == GGML_OP_CUSTOM) {
            ggml_abi::CustomOp op;
            std::memcpy(&op, node->op_params, sizeof op);
            op.function(node, 0, 1, op.userdata);
        }
    }
    return GGML_STATUS_SUCCESS;
}

ggml_abi::Backend *new_backend(ggml_abi::Device *device, const char *) {
    static ggml_guid guid = {'s', 'i', 'n', 'k', 'c', 'a', 'c', 'h', 'e', ' ', 'C', 'U', 'D', 'A', ' ', '1'};
    auto *backend = new ggml_abi::Backend;
    backend->guid = &guid;
    backend->get_name = [](ggml_abi::Backend *b) { return name_of(reinterpret_cast<ggml_abi::Device *>(b->device)); };
    backend->free = [](ggml_abi::Backend *b) { delete b; };
    // An op waits for its own work.
    backend->synchronize = [](ggml_abi::Backend *) {};
    backend->graph_compute = &compute;
    backend->device = reinterpret_cast<ggml_backend_dev_t>(device);
    return backend;
}

/** Views move nothing, so they may be anyone's. Anything else would put tensors of others here, such as weights. */
bool supports(ggml_abi::Device *device, const ggml_tensor *op) {
    switch (op->op) {
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
        return true;
    default:
        const auto *self = static_cast<const Accelerator *>(device);
        return self->is_op_of(op, self->ordinal);
    }
}

Accelerator accelerator(ggml_backend_dev_t cuda, std::int32_t ordinal, IsOpOf is_op_of,
                        ggml_abi::Registration *registration) {
    Accelerator device;
    device.cuda = cuda;
    device.ordinal = ordinal;
    device.is_op_of = is_op_of;
    device.name = "sinkcache on " + std::string(api().ggml_backend_dev_name(cuda));
    device.get_name = device.get_description = &name_of;
    device.get_memory = [](ggml_abi::Device *, std::size_t *free, std::size_t *total) { *free = *total = 0; };
    device.get_type = [](ggml_abi::Device *) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; };
    device.get_props = [](ggml_abi::Device *self, ggml_backend_dev_props *props) {
        *props = {};
        props->name = props->description = name_of(self);
        props->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
    };
    device.init_backend = &new_backend;
    device.get_buffer_type = [](ggml_abi::Device *self) {
        return api().ggml_backend_dev_buffer_type(static_cast<Accelerator *>(self)->cuda);
    };
    device.supports_op = &supports;
    device.supports_buft = [](ggml_abi::Device *self, ggml_backend_buffer_type_t type) {
        // Positions lie in the host's memory.
        return type == self->get_buffer_type(self) || api().ggml_backend_buft_is_host(type);
    };
    device.reg = reinterpret_cast<ggml_backend_reg_t>(registration);
    return device;
}

/** ggml's scheduler takes so many, and llama.cpp gives it the CPU, a model's devices and all of type ACCEL. */
constexpr std::size_t MOST_BACKENDS = 16;

/** What tells a piece of hardware from others; empty if ggml does not say. */
std::string hardware_id(ggml_backend_dev_t device) {
    ggml_backend_dev_props props{};
    api().ggml_backend_dev_get_props(device, &props);
    return props.device_id ? props.device_id : "";
}

Accelerators::Accelerators(IsOpOf is_op_of) {
    // ggml lists its CUDA devices by their ordinals, integrated ones included.
    std::vector<ggml_backend_dev_t> of_cuda;
    std::set<std::string> ids;
    bool are_distinct = true;
    for (std::size_t i = 0; i < api().ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = api().ggml_backend_dev_get(i);
        if (std::string(api().ggml_backend_reg_name(api().ggml_backend_dev_backend_reg(device))) != "CUDA") {
            continue;
        }
        of_cuda.push_back(device);
        const std::string id = hardware_id(device);
        are_distinct = are_distinct && (id.empty() || ids.insert(id).second);
    }
    if (of_cuda.empty()) {
        return;
    }
    const std::string instead = ": attention of layers on a GPU is computed on the CPU, with copies";
    skc_capability_info can{};
    can.struct_size = sizeof can;
    const std::size_t n_backends = api().ggml_backend_dev_count() + of_cuda.size();
    if (skc_capabilities(&can) != SKC_STATUS_OK || !(can.backends & (1U << SKC_BACKEND_CUDA))) {
        problem = "sinkcache cannot use CUDA here" + instead;
    } else if (n_backends > MOST_BACKENDS) {
        problem = "with a device beside each of " + std::to_string(of_cuda.size()) + " CUDA devices ggml would have " +
                  std::to_string(n_backends) + ", and takes " + std::to_string(MOST_BACKENDS) + instead;
    } else if (!are_distinct) {
        problem = "some of ggml's CUDA devices are the same hardware" + instead;
    }
    if (!problem.empty()) {
        return;
    }
    for (std::size_t i = 0; i < of_cuda.size(); ++i) {
        if (api().ggml_backend_dev_type(of_cuda[i]) == GGML_BACKEND_DEVICE_TYPE_GPU) {
            devices.push_back(accelerator(of_cuda[i], static_cast<std::int32_t>(i), is_op_of, &registration));
        }
    }
    registration.context = this;
    registration.get_name = [](ggml_abi::Registration *) { return "sinkcache"; };
    registration.get_device_count = [](ggml_abi::Registration *self) {
        return static_cast<Accelerators *>(self->context)->devices.size();
    };
    registration.get_device = [](ggml_abi::Registration *self, std::size_t i) -> ggml_abi::Device * {
        return &static_cast<Accelerators *>(self->context)->devices[i];
    };
    registration.get_proc_address = [](ggml_abi::Registration *, const char *) -> void * { return nullptr; };
    api().ggml_backend_register(reinterpret_cast<ggml_backend_reg_t>(&registration));
}

}  // namespace

const std::string &add_accelerators(IsOpOf is_op_of) {
    static const Accelerators *const all = new Accelerators(is_op_of);
    added = all;
    return all->problem;
}

std::int32_t cuda_device_of(const ggml_tensor *t) {
    const Accelerators *const all = added;
    const ggml_backend_buffer_t buffer = !t ? nullptr : t->view_src ? t->view_src->buffer : t->buffer;
    if (!all || !buffer) {
        return ON_CPU;
    }
    const ggml_backend_buffer_type_t type = api().ggml_backend_buffer_get_type(buffer);
    for (const Accelerator &device : all->devices) {
        if (type == api().ggml_backend_dev_buffer_type(device.cuda)) {
            return device.ordinal;
        }
    }
    return ON_CPU;
}

}  // namespace llama_cpp
}  // namespace sinkcache
