#include "gguf.hpp"

#include "command_line.hpp"

#include <ggml-cpu.h>

#include <stdexcept>

namespace inflight {
namespace {

/** ggml reads scales of f32 and f16 in place. */
constexpr std::size_t ALIGNMENT = 4;

}  // namespace

Gguf::Gguf(const std::string &path) : GgufFile(path) {
    try {
        mapping_ = std::make_shared<MappedFile>(path);
    } catch (const std::runtime_error &error) {
        fail(error.what());
    }
}

Matrix Gguf::matrix(const std::string &name, std::size_t n, std::size_t k, Range rows, Range cols) {
    read_.insert(name);
    const programs::GgufTensor *tensor = this->tensor(name);
    if (!tensor) {
        fail("has no tensor '" + name + "'");
    }
    const std::int64_t *dims = tensor->dims;
    if (dims[0] != static_cast<std::int64_t>(k) || dims[1] != static_cast<std::int64_t>(n) || dims[2] != 1 ||
        dims[3] != 1) {
        fail("has tensor '" + name + "' of " + std::to_string(dims[1]) + " x " + std::to_string(dims[0]) +
             ": it should be " + std::to_string(n) + " x " + std::to_string(k));
    }
    const std::string of_type = "has tensor '" + name + "' of type " + ggml_type_name(tensor->type);
    if (!ggml_get_type_traits_cpu(tensor->type)->vec_dot ||
        (tensor->type != GGML_TYPE_F32 && !ggml_get_type_traits(tensor->type)->to_float)) {
        fail(of_type + ", which ggml cannot multiply");
    }
    if (tensor->offset % ALIGNMENT != 0) {
        fail("has tensor '" + name + "' at byte " + std::to_string(tensor->offset) + ": it must be a multiple of " +
             std::to_string(ALIGNMENT));
    }
    // The file may have changed since its header was read.
    if (tensor->offset > mapping_->size() || tensor->bytes > mapping_->size() - tensor->offset) {
        fail("is cut short: tensor " + programs::in_quotes(name) + " reaches beyond its " +
             std::to_string(mapping_->size()) + " bytes");
    }
    const auto block = static_cast<std::size_t>(ggml_blck_size(tensor->type));
    if (cols.from % block != 0 || cols.to % block != 0) {
        fail(of_type + " in blocks of " + std::to_string(block) + ": columns " + std::to_string(cols.from) + " to " +
             std::to_string(cols.to) + " of this rank are not whole blocks");
    }
    const std::size_t row_bytes = tensor->bytes / n;
    const std::size_t skipped = rows.from * row_bytes + cols.from / block * ggml_type_size(tensor->type);
    return {tensor->type, rows.size(), cols.size(), mapping_->data() + tensor->offset + skipped, row_bytes};
}

std::vector<float> Gguf::vector(const std::string &name, std::size_t n) {
    std::vector<float> values(n);
    matrix(name, 1, n).unpack(0, values.data());
    return values;
}

void Gguf::expect_all_read() const {
    for (const programs::GgufTensor &tensor : tensors()) {
        if (read_.count(tensor.name) == 0) {
            fail("has tensor " + programs::in_quotes(tensor.name) + ", which models of architecture '" +
                 programs::one_line(text("general.architecture")) + "' lack here");
        }
    }
}

}  // namespace inflight
