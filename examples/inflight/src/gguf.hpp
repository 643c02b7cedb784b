// Tensors of a GGUF file as f32.
#pragma once

#include "gguf_file.hpp"
#include "matrix.hpp"

#include <cstddef>
#include <fstream>
#include <string>
#include <vector>

namespace inflight {

/** A range of a tensor's rows or columns. */
struct Range {
    std::size_t from, to;

    std::size_t size() const { return to - from; }
};

/** Calls throw std::runtime_error with a message that names the file and the problem. */
class Gguf : public programs::GgufFile {
public:
    explicit Gguf(const std::string &path);

    /** Rows and columns of a tensor that must be [n, k]. */
    Matrix matrix(const std::string &name, std::size_t n, std::size_t k, Range rows, Range cols);
    Matrix matrix(const std::string &name, std::size_t n, std::size_t k) { return matrix(name, n, k, {0, n}, {0, k}); }
    /** A tensor that must be [n]. */
    std::vector<float> vector(const std::string &name, std::size_t n) { return matrix(name, 1, n).values; }

private:
    std::ifstream file_;
};

}  // namespace inflight
