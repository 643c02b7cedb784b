#include "quantized_model.hpp"

#include <ggml-cpp.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <unistd.h>
#include <vector>

namespace test {
namespace {

ggml_type type_of(const ggml_tensor *tensor, ggml_type type) {
    if (ggml_n_dims(tensor) < 2) {
        return GGML_TYPE_F32;
    }
    return tensor->ne[0] % ggml_blck_size(type) == 0 ? type : GGML_TYPE_Q8_0;
}

}  // namespace

QuantizedModel::QuantizedModel(ggml_type type)
    : path_(testing::TempDir() + "inflight-" + std::to_string(getpid()) + "-" + ggml_type_name(type) + ".gguf") {
    ggml_context *data = nullptr;
    const gguf_context_ptr source(gguf_init_from_file(MODEL, {false, &data}));
    const ggml_context_ptr tensors(data);
    if (!source) {
        throw std::runtime_error("cannot read " MODEL);
    }
    std::vector<const ggml_tensor *> all;
    std::size_t bytes = 0;
    for (std::int64_t i = 0; i < gguf_get_n_tensors(source.get()); i++) {
        all.push_back(ggml_get_tensor(data, gguf_get_tensor_name(source.get(), i)));
        bytes += static_cast<std::size_t>(ggml_nelements(all.back())) * sizeof(float) + ggml_tensor_overhead() + 64;
    }
    const ggml_context_ptr converted(ggml_init({bytes, nullptr, false}));
    const gguf_context_ptr gguf(gguf_init_empty());
    gguf_set_kv(gguf.get(), source.get());
    for (const ggml_tensor *from : all) {
        const auto n = ggml_nelements(from);
        std::vector<float> values(static_cast<std::size_t>(n));
        if (from->type == GGML_TYPE_F32) {
            std::memcpy(values.data(), from->data, ggml_nbytes(from));
        } else {
            ggml_get_type_traits(from->type)->to_float(from->data, values.data(), n);
        }
        ggml_tensor *to =
            ggml_new_tensor(converted.get(), type_of(from, type), ggml_n_dims(from), from->ne);
        ggml_set_name(to, from->name);
        ggml_quantize_chunk(to->type, values.data(), to->data, 0, n / from->ne[0], from->ne[0], nullptr);
        gguf_add_tensor(gguf.get(), to);
    }
    if (!gguf_write_to_file(gguf.get(), path_.c_str(), false)) {
        throw std::runtime_error("cannot write " + path_);
    }
}

QuantizedModel::~QuantizedModel() { std::remove(path_.c_str()); }

}  // namespace test
