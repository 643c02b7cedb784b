// A GGUF file, read with ggml and checked: what its header names is in the file.
#ifndef SINKCACHE_PROGRAMS_GGUF_FILE_HPP
#define SINKCACHE_PROGRAMS_GGUF_FILE_HPP

#include <ggml.h>
#include <gguf.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct gguf_context;

namespace programs {

/** Numbers that a key may hold. */
struct CountRange {
    std::uint64_t least = 1, most = 1U << 20;
};

struct GgufNumber {
    std::string key;
    double value;
};

/** A tensor of the file. Dimensions that it does not have are 1. */
struct GgufTensor {
    std::string name;
    std::int64_t dims[4];
    ggml_type type;
    /** From the file's beginning. */
    std::uint64_t offset, bytes;
};

/** Calls throw std::runtime_error with a text that names the file and the problem. */
class GgufFile {
public:
    /** Reads the header. Every tensor has elements, and they lie within the file. */
    explicit GgufFile(const std::string &path);

    const std::string &path() const { return path_; }
    bool has(const std::string &key) const { return find(key) >= 0; }
    /** A count, of type u32. Without a default it must exist. */
    std::uint64_t count(const std::string &key, std::optional<std::uint64_t> default_value = {},
                        CountRange range = CountRange()) const;
    /** A count for all layers or one for each; empty if there is none. */
    std::vector<std::uint64_t> counts(const std::string &key, CountRange range) const;
    /** A finite number above 0, of type f32. Without a default it must exist. */
    double number(const std::string &key, std::optional<double> default_value = {}) const;
    /** A boolean, if there is one. */
    std::optional<bool> flag(const std::string &key) const;
    /** A text, empty if there is none. */
    std::string text(const std::string &key) const;
    /** An array of texts, empty if there is none. */
    std::vector<std::string> texts(const std::string &key) const;
    /** All numbers of type f32, whatever their values. */
    std::vector<GgufNumber> numbers() const;

    const std::vector<GgufTensor> &tensors() const { return tensors_; }
    /** NULL if there is none of this name. */
    const GgufTensor *tensor(const std::string &name) const;

    [[noreturn]] void fail(const std::string &what) const;

private:
    struct Free {
        void operator()(gguf_context *context) const;
    };
    std::string path_;
    std::unique_ptr<gguf_context, Free> context_;
    std::vector<GgufTensor> tensors_;

    std::int64_t find(const std::string &key) const;
    /** That the value at `at`, of `key`, is of the type. */
    void check_type(const std::string &key, std::int64_t at, gguf_type allowed) const;
    void check_range(const std::string &key, std::uint64_t n, CountRange range) const;
    void read_tensors(std::uint64_t file_bytes);
};

}  // namespace programs

#endif
