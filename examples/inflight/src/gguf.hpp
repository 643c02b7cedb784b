// Reads a GGUF file with ggml: metadata, and tensors as f32.
#pragma once

#include "matrix.hpp"

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct gguf_context;

namespace inflight {

/** A range of a tensor's rows or columns. */
struct Range {
    std::size_t from, to;

    std::size_t size() const { return to - from; }
};

/** Calls throw std::runtime_error with a message that names the file and the problem. */
class Gguf {
public:
    explicit Gguf(const std::string &path);

    /** A count of the metadata, 1 to 2^20. Without a default it must exist. */
    std::size_t count(const std::string &key, std::optional<std::size_t> default_value = {}) const;
    /** A finite number above 0. */
    double number(const std::string &key, std::optional<double> default_value = {}) const;
    /** A text, empty if there is none. */
    std::string text(const std::string &key) const;
    /** An array of texts, empty if there is none. */
    std::vector<std::string> texts(const std::string &key) const;
    bool has_tensor(const std::string &name) const;

    /** Rows and columns of a tensor that must be [n, k]. */
    Matrix matrix(const std::string &name, std::size_t n, std::size_t k, Range rows, Range cols);
    Matrix matrix(const std::string &name, std::size_t n, std::size_t k) { return matrix(name, n, k, {0, n}, {0, k}); }
    /** A tensor that must be [n]. */
    std::vector<float> vector(const std::string &name, std::size_t n) { return matrix(name, 1, n).values; }

    [[noreturn]] void fail(const std::string &what) const;

private:
    struct Free {
        void operator()(gguf_context *context) const;
    };
    std::string path_;
    std::unique_ptr<gguf_context, Free> context_;
    std::ifstream file_;
    std::uint64_t file_bytes_ = 0;
};

}  // namespace inflight
