#include "gguf_file.hpp"

#include "command_line.hpp"

#include <gguf.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <stdexcept>

namespace programs {
namespace {

/** Most bytes of a path that an error text shows. */
constexpr std::size_t MAX_PATH_BYTES = 500;

/** Collects what ggml says about a file that it cannot read, and gives the log back to who had it. */
class GgmlMessages {
public:
    GgmlMessages() {
        ggml_log_get(&callback_, &user_data_);
        ggml_log_set(collect, this);
    }
    ~GgmlMessages() { ggml_log_set(callback_, user_data_); }
    GgmlMessages(const GgmlMessages &) = delete;
    GgmlMessages &operator=(const GgmlMessages &) = delete;

    /** The first line: later ones say what failed because of it. */
    std::string first() const { return text_.substr(0, text_.find('\n')); }

private:
    static void collect(ggml_log_level, const char *text, void *self) {
        static_cast<GgmlMessages *>(self)->text_ += text;
    }

    ggml_log_callback callback_ = nullptr;
    void *user_data_ = nullptr;
    std::string text_;
};

std::string shown(std::uint64_t n) {
    return n >= 1U << 16 && (n & (n - 1)) == 0 ? "2^" + std::to_string(static_cast<int>(std::log2(double(n))))
                                               : std::to_string(n);
}

}  // namespace

void GgufFile::Free::operator()(gguf_context *context) const { gguf_free(context); }

void GgufFile::fail(const std::string &what) const {
    throw std::runtime_error("model '" + one_line(path_, MAX_PATH_BYTES) + "' " + what);
}

GgufFile::GgufFile(const std::string &path) : path_(path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
        fail("is not a file");
    }
    const std::uint64_t file_bytes = std::filesystem::file_size(path, error);
    if (error) {
        fail("cannot be opened: " + error.message());
    }
    {
        const GgmlMessages messages;
        context_.reset(gguf_init_from_file(path.c_str(), {/*no_alloc=*/true, /*ctx=*/nullptr}));
        if (!context_) {
            const std::string first = messages.first();
            fail("is not a valid GGUF file" + (first.empty() ? "" : ": " + first));
        }
    }
    read_tensors(file_bytes);
}

void GgufFile::read_tensors(std::uint64_t file_bytes) {
    const std::int64_t n = gguf_get_n_tensors(context_.get());
    for (std::int64_t i = 0; i < n; i++) {
        GgufTensor tensor{};
        tensor.name = gguf_get_tensor_name(context_.get(), i);
        std::copy_n(gguf_get_tensor_ne(context_.get(), i), 4, tensor.dims);
        tensor.type = gguf_get_tensor_type(context_.get(), i);
        tensor.offset = gguf_get_data_offset(context_.get()) + gguf_get_tensor_offset(context_.get(), i);
        tensor.bytes = gguf_get_tensor_size(context_.get(), i);
        for (const std::int64_t dim : tensor.dims) {
            if (dim < 1) {
                fail("has a dimension of " + std::to_string(dim) + " in tensor " + in_quotes(tensor.name) +
                     ": 1 or more is allowed");
            }
        }
        if (tensor.offset > file_bytes || tensor.bytes > file_bytes - tensor.offset) {
            fail("is cut short: tensor " + in_quotes(tensor.name) + " reaches beyond its " +
                 std::to_string(file_bytes) + " bytes");
        }
        tensors_.push_back(std::move(tensor));
    }
}

std::int64_t GgufFile::find(const std::string &key) const { return gguf_find_key(context_.get(), key.c_str()); }

void GgufFile::check_range(const std::string &key, std::uint64_t n, CountRange range) const {
    if (n < range.least || n > range.most) {
        fail("has " + std::to_string(n) + " for " + in_quotes(key) + ": " + shown(range.least) + " to " +
             shown(range.most) + " is allowed");
    }
}

void GgufFile::check_type(const std::string &key, std::int64_t at, gguf_type allowed) const {
    const gguf_type type = gguf_get_kv_type(context_.get(), at);
    if (type != allowed) {
        fail("has " + in_quotes(key) + " of type " + gguf_type_name(type) + ": " + gguf_type_name(allowed) +
             " is allowed");
    }
}

std::uint64_t GgufFile::count(const std::string &key, std::optional<std::uint64_t> default_value,
                              CountRange range) const {
    const std::int64_t at = find(key);
    std::optional<std::uint64_t> n = default_value;
    if (at >= 0) {
        check_type(key, at, GGUF_TYPE_UINT32);
        n = gguf_get_val_u32(context_.get(), at);
    }
    if (!n) {
        fail("has no count " + in_quotes(key));
    }
    check_range(key, *n, range);
    return *n;
}

std::vector<std::uint64_t> GgufFile::counts(const std::string &key, CountRange range) const {
    const std::int64_t at = find(key);
    std::vector<std::uint64_t> all;
    if (at < 0) {
        return all;
    }
    if (gguf_get_kv_type(context_.get(), at) != GGUF_TYPE_ARRAY) {
        return {count(key, {}, range)};
    }
    const gguf_type type = gguf_get_arr_type(context_.get(), at);
    if (type != GGUF_TYPE_UINT32 && type != GGUF_TYPE_INT32) {
        fail("has an array of type " + std::string(gguf_type_name(type)) + " for " + in_quotes(key) +
             ": u32 and i32 are allowed");
    }
    // Of either type: a negative number is beyond every range.
    const auto *values = static_cast<const std::uint32_t *>(gguf_get_arr_data(context_.get(), at));
    all.assign(values, values + gguf_get_arr_n(context_.get(), at));
    for (const std::uint64_t n : all) {
        check_range(key, n, range);
    }
    return all;
}

double GgufFile::number(const std::string &key, std::optional<double> default_value) const {
    const std::int64_t at = find(key);
    std::optional<double> x = default_value;
    if (at >= 0) {
        check_type(key, at, GGUF_TYPE_FLOAT32);
        x = static_cast<double>(gguf_get_val_f32(context_.get(), at));
    }
    if (!x) {
        fail("has no number " + in_quotes(key));
    }
    if (!std::isfinite(*x) || *x <= 0) {
        fail("has " + std::to_string(*x) + " for " + in_quotes(key) + ": it must be finite and above 0");
    }
    return *x;
}

std::optional<bool> GgufFile::flag(const std::string &key) const {
    const std::int64_t at = find(key);
    const bool is_flag = at >= 0 && gguf_get_kv_type(context_.get(), at) == GGUF_TYPE_BOOL;
    return is_flag ? std::optional<bool>(gguf_get_val_bool(context_.get(), at)) : std::nullopt;
}

std::string GgufFile::text(const std::string &key) const {
    const std::int64_t at = find(key);
    const bool is_text = at >= 0 && gguf_get_kv_type(context_.get(), at) == GGUF_TYPE_STRING;
    return is_text ? gguf_get_val_str(context_.get(), at) : "";
}

std::vector<std::string> GgufFile::texts(const std::string &key) const {
    std::vector<std::string> all;
    const std::int64_t at = find(key);
    if (at >= 0 && gguf_get_kv_type(context_.get(), at) == GGUF_TYPE_ARRAY &&
        gguf_get_arr_type(context_.get(), at) == GGUF_TYPE_STRING) {
        for (std::size_t i = 0; i < gguf_get_arr_n(context_.get(), at); i++) {
            all.emplace_back(gguf_get_arr_str(context_.get(), at, i));
        }
    }
    return all;
}

std::vector<GgufNumber> GgufFile::numbers() const {
    std::vector<GgufNumber> all;
    for (std::int64_t i = 0; i < gguf_get_n_kv(context_.get()); i++) {
        if (gguf_get_kv_type(context_.get(), i) == GGUF_TYPE_FLOAT32) {
            all.push_back({gguf_get_key(context_.get(), i), double(gguf_get_val_f32(context_.get(), i))});
        }
    }
    return all;
}

const GgufTensor *GgufFile::tensor(const std::string &name) const {
    const std::int64_t at = gguf_find_tensor(context_.get(), name.c_str());
    return at < 0 ? nullptr : &tensors_[static_cast<std::size_t>(at)];
}

}  // namespace programs
