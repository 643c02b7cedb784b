// The structs through which ggml calls a device that a library adds, as ggml's backend interface of version 3 lays them
// out. ggml declares them in a header that it does not install. tests/ggml_abi.cpp compares the two.
#ifndef SINKCACHE_LLAMA_GGML_ABI_HPP
#define SINKCACHE_LLAMA_GGML_ABI_HPP

#include <ggml-backend.h>
#include <ggml.h>

#include <cstddef>

namespace sinkcache {
namespace llama_cpp {
namespace ggml_abi {

constexpr int API_VERSION = 3;

/** A function that is not there: ggml can do without. */
using Absent = void (*)();

/** ggml_backend: what computes on a device. */
struct Backend {
    ggml_guid_t guid = nullptr;
    const char *(*get_name)(Backend *) = nullptr;
    void (*free)(Backend *) = nullptr;
    Absent set_tensor_async = nullptr, get_tensor_async = nullptr, set_tensor_2d_async = nullptr,
           get_tensor_2d_async = nullptr, cpy_tensor_async = nullptr;
    void (*synchronize)(Backend *) = nullptr;
    Absent graph_plan_create = nullptr, graph_plan_free = nullptr, graph_plan_update = nullptr,
           graph_plan_compute = nullptr;
    ggml_status (*graph_compute)(Backend *, ggml_cgraph *) = nullptr;
    Absent event_record = nullptr, event_wait = nullptr, graph_optimize = nullptr;
    ggml_backend_dev_t device = nullptr;
    void *context = nullptr;
};

/** ggml_backend_device. */
struct Device {
    const char *(*get_name)(Device *) = nullptr;
    const char *(*get_description)(Device *) = nullptr;
    void (*get_memory)(Device *, std::size_t *free, std::size_t *total) = nullptr;
    enum ggml_backend_dev_type (*get_type)(Device *) = nullptr;
    void (*get_props)(Device *, ggml_backend_dev_props *) = nullptr;
    Backend *(*init_backend)(Device *, const char *params) = nullptr;
    ggml_backend_buffer_type_t (*get_buffer_type)(Device *) = nullptr;
    Absent get_host_buffer_type = nullptr, buffer_from_host_ptr = nullptr;
    bool (*supports_op)(Device *, const ggml_tensor *) = nullptr;
    bool (*supports_buft)(Device *, ggml_backend_buffer_type_t) = nullptr;
    Absent offload_op = nullptr, event_new = nullptr, event_free = nullptr, event_synchronize = nullptr;
    ggml_backend_reg_t reg = nullptr;
    void *context = nullptr;
};

/** ggml_backend_reg: a library's devices. */
struct Registration {
    int api_version = API_VERSION;
    const char *(*get_name)(Registration *) = nullptr;
    std::size_t (*get_device_count)(Registration *) = nullptr;
    Device *(*get_device)(Registration *, std::size_t index) = nullptr;
    void *(*get_proc_address)(Registration *, const char *name) = nullptr;
    void *context = nullptr;
};

/** What ggml_custom_4d stores in the parameters of a node. */
struct CustomOp {
    ggml_custom_op_t function = nullptr;
    int n_tasks = 0;
    void *userdata = nullptr;
};

}  // namespace ggml_abi
}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_GGML_ABI_HPP
