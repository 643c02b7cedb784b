#include "host.hpp"

sinkcache::LlamaOptions options(std::uint32_t n_sink, std::uint32_t window, std::uint32_t kv_dtype) {
    sinkcache::LlamaOptions o;
    o.n_sink = n_sink;
    o.window = window;
    o.kv_dtype = kv_dtype;
    return o;
}

Rows run(sinkcache::LlamaContext &ctx, const Tokens &tokens, std::size_t chunk, llama_seq_id seq_id) {
    Rows rows;
    for (std::size_t from = 0; from < tokens.size(); from += chunk) {
        OwnBatch batch(slice(tokens, from, from + chunk), seq_id);
        ctx.decode(batch.get());
        for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
            rows.push_back(logits(ctx.get(), static_cast<std::int32_t>(i)));
        }
    }
    return rows;
}

std::string error_text(const std::function<void()> &call) {
    try {
        call();
    } catch (const sinkcache::Error &e) {
        return e.what();
    }
    return "no error";
}
