#include "stock.hpp"

#include "../../program/llama_log.hpp"

#include <ggml-cpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>

namespace {

void init_llama() {
    static const bool done = [] {
        log_errors_only();
        llama_backend_init();
        return true;
    }();
    (void)done;
}

void decode(llama_context *ctx, OwnBatch &batch) {
    const std::int32_t status = llama_decode(ctx, batch.get());
    if (status != 0) {
        throw std::runtime_error("llama_decode returned " + std::to_string(status));
    }
}

struct TemporaryGguf {
    explicit TemporaryGguf(const std::string &name)
        : path(testing::TempDir() + "skc_" + std::to_string(std::random_device()()) + "_" + name + ".gguf") {}
    TemporaryGguf(const TemporaryGguf &) = delete;
    TemporaryGguf &operator=(const TemporaryGguf &) = delete;
    ~TemporaryGguf() { std::remove(path.c_str()); }

    const std::string path;
};

/** Copies a GGUF with all its tensors converted to f32. */
void write_as_f32(const std::string &from, const std::string &to) {
    ggml_context *data = nullptr;
    const gguf_context_ptr source(gguf_init_from_file(from.c_str(), {false, &data}));
    const ggml_context_ptr tensors(data);
    if (!source) {
        throw std::runtime_error("cannot read " + from);
    }
    // Not all tensors of the context: gguf puts its data into one of its own.
    std::vector<const ggml_tensor *> all;
    std::size_t bytes = 0;
    for (std::int64_t i = 0; i < gguf_get_n_tensors(source.get()); ++i) {
        const ggml_tensor *t = all.emplace_back(ggml_get_tensor(data, gguf_get_tensor_name(source.get(), i)));
        bytes += static_cast<std::size_t>(ggml_nelements(t)) * sizeof(float) + ggml_tensor_overhead() + 64;
    }
    const ggml_context_ptr converted(ggml_init({bytes, nullptr, false}));
    const gguf_context_ptr gguf(gguf_init_empty());
    gguf_set_kv(gguf.get(), source.get());
    for (const ggml_tensor *t : all) {
        ggml_tensor *f32 = ggml_new_tensor(converted.get(), GGML_TYPE_F32, ggml_n_dims(t), t->ne);
        ggml_set_name(f32, t->name);
        if (t->type == GGML_TYPE_F32) {
            std::memcpy(f32->data, t->data, ggml_nbytes(t));
        } else {
            ggml_get_type_traits(t->type)->to_float(t->data, static_cast<float *>(f32->data), ggml_nelements(t));
        }
        gguf_add_tensor(gguf.get(), f32);
    }
    if (!gguf_write_to_file(gguf.get(), to.c_str(), false)) {
        throw std::runtime_error("cannot write " + to);
    }
}

}  // namespace

decltype(&llama_init_from_model) init_stock = &llama_init_from_model;

llama_model_ptr load(const std::string &path, int n_gpu_layers, const char *on_cpu) {
    init_llama();
    llama_model_params p = llama_model_default_params();
    p.n_gpu_layers = n_gpu_layers;
    const llama_model_tensor_buft_override overrides[] = {{on_cpu, ggml_backend_cpu_buffer_type()}, {nullptr, nullptr}};
    p.tensor_buft_overrides = on_cpu ? overrides : nullptr;
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), p));
    if (!model) {
        throw std::runtime_error("llama.cpp cannot load " + path);
    }
    return model;
}

llama_model_ptr load(const RandomModel &model, const std::string &name, int n_gpu_layers, const char *on_cpu) {
    const TemporaryGguf file(name);
    model.write(file.path);
    return load(file.path, n_gpu_layers, on_cpu);
}

llama_model_ptr load_bundled() {
    const TemporaryGguf file("bundled");
    write_as_f32(DATA "/tiny-llama-bytes.gguf", file.path);
    return load(file.path);
}

Tokens bundled_text(const llama_model *model, std::size_t n) {
    std::ifstream file(DATA "/stream.txt", std::ios::binary);
    std::string text(n, '\0');
    file.read(text.data(), static_cast<std::streamsize>(n));
    Tokens tokens(n + 8);
    const std::int32_t got =
        llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                       static_cast<std::int32_t>(tokens.size()), true, false);
    if (got < static_cast<std::int32_t>(n)) {
        throw std::runtime_error("the bundled text is too short");
    }
    tokens.resize(n);
    return tokens;
}

Tokens random_tokens(const llama_model *model, std::size_t n, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<llama_token> token(0, llama_vocab_n_tokens(llama_model_get_vocab(model)) - 1);
    Tokens tokens(n);
    for (auto &t : tokens) {
        t = token(random);
    }
    return tokens;
}

Tokens slice(const Tokens &tokens, std::size_t from, std::size_t to) {
    const auto at = [&](std::size_t i) {
        return tokens.begin() + static_cast<std::ptrdiff_t>(std::min(i, tokens.size()));
    };
    return Tokens(at(from), at(to));
}

llama_context_params params(std::uint32_t n_batch, int n_threads) {
    llama_context_params p = llama_context_default_params();
    p.n_batch = n_batch;
    p.n_ubatch = n_batch;
    p.n_threads = n_threads;
    p.n_threads_batch = n_threads;
    return p;
}

llama_context_ptr stock(llama_model *model, std::uint32_t n_ctx, ggml_type kv, bool flash) {
    llama_context_params p = params(n_ctx);
    p.n_ctx = n_ctx;
    p.type_k = kv;
    p.type_v = kv;
    p.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context_ptr ctx(init_stock(model, p));
    if (!ctx) {
        throw std::runtime_error("llama.cpp cannot create a context");
    }
    return ctx;
}

OwnBatch &OwnBatch::add(const Tokens &more, llama_seq_id seq_id, llama_pos from) {
    for (std::size_t i = 0; i < more.size(); ++i) {
        tokens.push_back(more[i]);
        if (from >= 0) {
            positions.push_back(from + static_cast<llama_pos>(i));
        }
        counts.push_back(1);
        ids.push_back(seq_id);
        outputs.push_back(1);
    }
    return *this;
}

llama_batch OwnBatch::get() {
    id_pointers.clear();
    for (auto &id : ids) {
        id_pointers.push_back(&id);
    }
    llama_batch b{};
    b.n_tokens = static_cast<std::int32_t>(tokens.size());
    b.token = tokens.data();
    b.pos = positions.empty() ? nullptr : positions.data();
    b.n_seq_id = counts.data();
    b.seq_id = id_pointers.data();
    b.logits = outputs.data();
    return b;
}

Row logits(llama_context *ctx, std::int32_t i) {
    const float *row = llama_get_logits_ith(ctx, i);
    if (!row) {
        throw std::runtime_error("no logits of token " + std::to_string(i));
    }
    return Row(row, row + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
}

Rows run(llama_context *ctx, const Tokens &tokens, std::size_t chunk) {
    Rows rows;
    for (std::size_t from = 0; from < tokens.size(); from += chunk) {
        OwnBatch batch(slice(tokens, from, from + chunk));
        decode(ctx, batch);
        for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
            rows.push_back(logits(ctx, static_cast<std::int32_t>(i)));
        }
    }
    return rows;
}

Rows run_shifted(llama_context *ctx, const Tokens &tokens, llama_pos n_sink, llama_pos window) {
    llama_memory_t memory = llama_get_memory(ctx);
    Rows rows;
    llama_pos past = 0;
    for (const llama_token token : tokens) {
        if (past == n_sink + window) {
            llama_memory_seq_rm(memory, 0, n_sink, n_sink + 1);
            llama_memory_seq_add(memory, 0, n_sink + 1, past, -1);
            --past;
        }
        OwnBatch batch({token}, 0, past++);
        decode(ctx, batch);
        rows.push_back(logits(ctx, 0));
    }
    return rows;
}

Difference compare(const Rows &a, const Rows &b) {
    Difference d;
    d.rows = std::min(a.size(), b.size());
    const auto argmax = [](const Row &row) { return std::max_element(row.begin(), row.end()) - row.begin(); };
    for (std::size_t i = 0; i < d.rows; ++i) {
        for (std::size_t j = 0; j < a[i].size(); ++j) {
            const double difference = std::abs(double(a[i][j]) - double(b[i][j]));
            d.largest = std::isfinite(difference) ? std::max(d.largest, difference) : HUGE_VAL;
        }
        d.same_argmax += argmax(a[i]) == argmax(b[i]);
    }
    return d;
}
