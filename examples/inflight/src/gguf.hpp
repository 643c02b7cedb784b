// Tensors of a GGUF file, which is mapped into memory.
#pragma once

#include "gguf_file.hpp"
#include "mapped_file.hpp"
#include "matrix.hpp"

#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace inflight {

/** Calls throw std::runtime_error with a message that names the file and the problem. */
class Gguf : public programs::GgufFile {
public:
    explicit Gguf(const std::string &path);

    /** Rows and columns of a tensor that must be [n, k]. Columns must be whole blocks of a quantised type. */
    Matrix matrix(const std::string &name, std::size_t n, std::size_t k, Range rows, Range cols);
    Matrix matrix(const std::string &name, std::size_t n, std::size_t k) {
        return matrix(name, n, k, {0, n}, {0, k});
    }
    /** A tensor that must be [n], as f32. */
    std::vector<float> vector(const std::string &name, std::size_t n);
    /** Throws unless all tensors of the file have been asked for: the others would be ignored. */
    void expect_all_read() const;
    /** What matrices point into. */
    std::shared_ptr<const MappedFile> mapping() const { return mapping_; }

private:
    std::shared_ptr<const MappedFile> mapping_;
    std::set<std::string> read_;
};

}  // namespace inflight
