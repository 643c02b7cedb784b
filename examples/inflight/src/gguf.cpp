#include "gguf.hpp"

#include <ggml.h>
#include <gguf.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <stdexcept>

namespace inflight {
namespace {

/** ggml's messages about a file that it cannot read, which it would otherwise print. */
thread_local std::string ggml_messages;

void collect_message(ggml_log_level, const char *text, void *) {
    ggml_messages += text;
    while (!ggml_messages.empty() && ggml_messages.back() == '\n') {
        ggml_messages.pop_back();
    }
}

}  // namespace

void Gguf::Free::operator()(gguf_context *context) const { gguf_free(context); }

void Gguf::fail(const std::string &what) const { throw std::runtime_error("model '" + path_ + "' " + what); }

Gguf::Gguf(const std::string &path) : path_(path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
        fail("is not a file");
    }
    file_bytes_ = std::filesystem::file_size(path, error);
    file_.open(path, std::ios::binary);
    if (error || !file_) {
        fail("cannot be opened");
    }
    ggml_log_set(collect_message, nullptr);
    ggml_messages.clear();
    context_.reset(gguf_init_from_file(path.c_str(), {/*no_alloc=*/true, /*ctx=*/nullptr}));
    if (!context_) {
        fail("is not a complete GGUF file" + (ggml_messages.empty() ? "" : ": " + ggml_messages));
    }
}

std::size_t Gguf::count(const std::string &key, std::optional<std::size_t> default_value) const {
    const auto at = gguf_find_key(context_.get(), key.c_str());
    std::optional<std::size_t> n = default_value;
    if (at >= 0) {
        n.reset();
        if (gguf_get_kv_type(context_.get(), at) == GGUF_TYPE_UINT32) {
            n = gguf_get_val_u32(context_.get(), at);
        }
    }
    if (!n) {
        fail("has no count '" + key + "'");
    }
    if (*n < 1 || *n > 1u << 20) {
        fail("has " + std::to_string(*n) + " for '" + key + "': 1 to 2^20 is allowed");
    }
    return *n;
}

double Gguf::number(const std::string &key, std::optional<double> default_value) const {
    const auto at = gguf_find_key(context_.get(), key.c_str());
    std::optional<double> x = default_value;
    if (at >= 0) {
        x.reset();
        if (gguf_get_kv_type(context_.get(), at) == GGUF_TYPE_FLOAT32) {
            x = static_cast<double>(gguf_get_val_f32(context_.get(), at));
        }
    }
    if (!x) {
        fail("has no number '" + key + "'");
    }
    if (!std::isfinite(*x) || *x <= 0) {
        fail("has " + std::to_string(*x) + " for '" + key + "': it must be above 0");
    }
    return *x;
}

std::string Gguf::text(const std::string &key) const {
    const auto at = gguf_find_key(context_.get(), key.c_str());
    const bool is_text = at >= 0 && gguf_get_kv_type(context_.get(), at) == GGUF_TYPE_STRING;
    return is_text ? gguf_get_val_str(context_.get(), at) : "";
}

std::vector<std::string> Gguf::texts(const std::string &key) const {
    std::vector<std::string> all;
    const auto at = gguf_find_key(context_.get(), key.c_str());
    if (at >= 0 && gguf_get_kv_type(context_.get(), at) == GGUF_TYPE_ARRAY &&
        gguf_get_arr_type(context_.get(), at) == GGUF_TYPE_STRING) {
        for (std::size_t i = 0; i < gguf_get_arr_n(context_.get(), at); i++) {
            all.emplace_back(gguf_get_arr_str(context_.get(), at, i));
        }
    }
    return all;
}

bool Gguf::has_tensor(const std::string &name) const { return gguf_find_tensor(context_.get(), name.c_str()) >= 0; }

Matrix Gguf::matrix(const std::string &name, std::size_t n, std::size_t k, Range rows, Range cols) {
    const auto at = gguf_find_tensor(context_.get(), name.c_str());
    if (at < 0) {
        fail("has no tensor '" + name + "'");
    }
    const std::int64_t *ne = gguf_get_tensor_ne(context_.get(), at);
    if (ne[0] != static_cast<std::int64_t>(k) || ne[1] != static_cast<std::int64_t>(n) || ne[2] != 1 || ne[3] != 1) {
        fail("has tensor '" + name + "' of " + std::to_string(ne[1]) + " x " + std::to_string(ne[0]) +
             ": it should be " + std::to_string(n) + " x " + std::to_string(k));
    }
    const ggml_type type = gguf_get_tensor_type(context_.get(), at);
    const auto to_float = ggml_get_type_traits(type)->to_float;
    if (!to_float && type != GGML_TYPE_F32) {
        fail("has tensor '" + name + "' of type " + ggml_type_name(type) + ", which has no conversion to f32");
    }
    const std::uint64_t begin = gguf_get_data_offset(context_.get()) + gguf_get_tensor_offset(context_.get(), at);
    const std::uint64_t bytes = gguf_get_tensor_size(context_.get(), at);
    if (begin > file_bytes_ || bytes > file_bytes_ - begin) {
        fail("is cut short: tensor '" + name + "' reaches beyond its " + std::to_string(file_bytes_) + " bytes");
    }
    const std::size_t row_bytes = bytes / n;
    Matrix matrix{rows.size(), cols.size(), {}};
    matrix.values.reserve(matrix.n * matrix.k);
    std::vector<char> raw(row_bytes);
    std::vector<float> row(k);
    file_.seekg(static_cast<std::streamoff>(begin + rows.from * row_bytes));
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
