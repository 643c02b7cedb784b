#include "gguf.hpp"

#include <ggml.h>

#include <algorithm>

namespace inflight {

Gguf::Gguf(const std::string &path) : GgufFile(path), file_(path, std::ios::binary) {
    if (!file_) {
        fail("cannot be opened");
    }
}

Matrix Gguf::matrix(const std::string &name, std::size_t n, std::size_t k, Range rows, Range cols) {
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
    const auto to_float = ggml_get_type_traits(tensor->type)->to_float;
    if (!to_float && tensor->type != GGML_TYPE_F32) {
        fail("has tensor '" + name + "' of type " + ggml_type_name(tensor->type) + ", which has no conversion to f32");
    }
    const std::size_t row_bytes = tensor->bytes / n;
    Matrix matrix{rows.size(), cols.size(), {}};
    matrix.values.reserve(matrix.n * matrix.k);
    std::vector<char> raw(row_bytes);
    std::vector<float> row(k);
    file_.seekg(static_cast<std::streamoff>(tensor->offset + rows.from * row_bytes));
    for (std::size_t i = rows.from; i < rows.to; i++) {
        if (!file_.read(raw.data(), static_cast<std::streamsize>(row_bytes))) {
            fail("cannot be read at tensor '" + name + "'");
        }
        if (to_float) {
            to_float(raw.data(), row.data(), static_cast<std::int64_t>(k));
        } else {
            std::copy_n(reinterpret_cast<const char *>(raw.data()), row_bytes, reinterpret_cast<char *>(row.data()));
        }
        const auto first = row.begin() + static_cast<std::ptrdiff_t>(cols.from);
        matrix.values.insert(matrix.values.end(), first, first + static_cast<std::ptrdiff_t>(cols.size()));
    }
    return matrix;
}

}  // namespace inflight
