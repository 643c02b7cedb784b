#include "matrix.hpp"

#include <cstdint>
#include <cstring>
#include <utility>

namespace inflight {

void Matrix::unpack(std::size_t i, float *out) const {
    if (type == GGML_TYPE_F32) {
        std::memcpy(out, row(i), k * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(row(i), out, static_cast<std::int64_t>(k));
    }
}

Weight::Weight(std::vector<Matrix> matrices) : k(matrices.at(0).k), parts(std::move(matrices)) {
    for (const Matrix &part : parts) {
        n += part.n;
    }
}

}  // namespace inflight
