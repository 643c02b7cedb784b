#include "served.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace {

/** llama.cpp's own function, which a program that is linked with the library first does not reach by its name. */
const bool stock_is_set = [] {
    void *library = dlopen(SHARED_LLAMA, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) {
        throw std::runtime_error(dlerror());
    }
    init_stock = reinterpret_cast<decltype(init_stock)>(dlsym(library, "llama_init_from_model"));
    return true;
}();

}  // namespace

Environment::Environment(std::initializer_list<Variable> variables) : variables_(variables) {
    for (const auto &[name, value] : variables_) {
        setenv(("SINKCACHE_LLAMA_" + name).c_str(), value.c_str(), 1);
    }
}

Environment::~Environment() {
    for (const auto &[name, value] : variables_) {
        unsetenv(("SINKCACHE_LLAMA_" + name).c_str());
    }
}

llama_context_params served_params(std::uint32_t n_batch, std::uint32_t n_ctx, std::uint32_t n_seqs) {
    llama_context_params p = params(n_batch);
    p.n_ctx = n_ctx;
    p.n_seq_max = n_seqs;
    p.type_k = GGML_TYPE_F32;
    p.type_v = GGML_TYPE_F32;
    return p;
}

llama_context_ptr serve(llama_model *model, const llama_context_params &params) {
    llama_context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        throw std::runtime_error("no context");
    }
    return ctx;
}

Rows decode(llama_context *ctx, const Tokens &tokens, std::size_t chunk, llama_seq_id seq_id, llama_pos from) {
    Rows rows;
    for (std::size_t at = 0; at < tokens.size(); at += chunk) {
        OwnBatch batch(slice(tokens, at, at + chunk), seq_id, from < 0 ? -1 : from + llama_pos(at));
        const std::int32_t result = llama_decode(ctx, batch.get());
        if (result != 0) {
            throw std::runtime_error("llama_decode returned " + std::to_string(result));
        }
        for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
            rows.push_back(logits(ctx, std::int32_t(i)));
        }
    }
    return rows;
}

Rows process(llama_context *ctx, const Tokens &tokens, std::size_t chunk, llama_seq_id seq_id, llama_pos from) {
    Rows rows;
    llama_batch_ext *batch = llama_batch_ext_init(ctx);
    for (std::size_t at = 0; at < tokens.size(); at += chunk) {
        llama_batch_ext_clear(batch);
        const std::size_t end = std::min(at + chunk, tokens.size());
        for (std::size_t i = at; i < end; ++i) {
            const std::int32_t row = llama_batch_ext_add_token(batch, seq_id, tokens[i]);
            const llama_pos pos = from + llama_pos(i);
            llama_batch_ext_set_pos(batch, row, &pos);
            llama_batch_ext_set_output_logits(batch, row, true);
        }
        const std::int32_t result = llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch);
        if (result != 0) {
            llama_batch_ext_free(batch);
            throw std::runtime_error("llama_process returned " + std::to_string(result));
        }
        for (std::size_t i = at; i < end; ++i) {
            rows.push_back(logits(ctx, std::int32_t(i - at)));
        }
    }
    llama_batch_ext_free(batch);
    return rows;
}

ServedTest::ServedTest() : model(load(decoder("llama"), "served")), tokens(random_tokens(model.get(), 300)) {
    setenv("SINKCACHE_LLAMA_LOG", "errors", 1);
    // As far as the micro-batches of 64 tokens need.
    setenv("SINKCACHE_LLAMA_MAX_REWIND", "0", 1);
    const llama_context_ptr ctx = serve(model.get(), served_params());
    want = decode(ctx.get(), tokens, 20);
}

llama_pos ServedTest::next(llama_context *ctx, llama_seq_id seq_id) {
    return llama_memory_seq_pos_max(llama_get_memory(ctx), seq_id) + 1;
}

void ServedTest::expect_continues(llama_context *ctx, std::size_t from, llama_seq_id seq_id) {
    EXPECT_EQ(next(ctx, seq_id), llama_pos(from));
    const Rows got = decode(ctx, slice(tokens, from, 300), 20, seq_id, llama_pos(from));
    EXPECT_LE(compare(got, Rows(want.begin() + std::ptrdiff_t(from), want.end())).largest, 1e-4);
}
