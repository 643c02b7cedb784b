// Running models: through the adapter, and as stock llama.cpp does.
#ifndef SINKCACHE_TESTS_HOST_HPP
#define SINKCACHE_TESTS_HOST_HPP

#include "random_model.hpp"

#include "sinkcache_llama.hpp"

#include <memory>
#include <string>
#include <vector>

struct FreeModel {
    void operator()(llama_model *m) const { llama_model_free(m); }
};
struct FreeLlama {
    void operator()(llama_context *c) const { llama_free(c); }
};
using Model = std::unique_ptr<llama_model, FreeModel>;
using Stock = std::unique_ptr<llama_context, FreeLlama>;
using Tokens = std::vector<llama_token>;
/** Logits of one token. */
using Row = std::vector<float>;
using Rows = std::vector<Row>;

/** Loads a GGUF; the test fails where llama.cpp does. */
Model load(const std::string &path);
/** Writes a random model and loads it. */
Model load(const RandomModel &model, const std::string &name);
/** The bundled model. */
Model load_bundled();
/** The first `n` tokens of the bundled text. */
Tokens bundled_text(const llama_model *model, std::size_t n);
/** Tokens of a random model's vocabulary. */
Tokens random_tokens(const llama_model *model, std::size_t n, std::uint32_t seed = 7);

llama_context_params params(std::uint32_t n_batch, int n_threads = 1);
sinkcache::LlamaOptions options(std::uint32_t n_sink, std::uint32_t window, std::uint32_t kv_dtype = SKC_DTYPE_F32);
/** f32 KV, no flash attention: the exact way. */
Stock stock(llama_model *model, std::uint32_t n_ctx, ggml_type kv = GGML_TYPE_F32, bool flash = false);

/** A batch that owns its arrays, all logits wanted. */
class OwnBatch {
public:
    OwnBatch() = default;
    explicit OwnBatch(const Tokens &tokens, llama_seq_id seq_id = 0, llama_pos from = -1) { add(tokens, seq_id, from); }
    /** `from` < 0: no positions. */
    OwnBatch &add(const Tokens &tokens, llama_seq_id seq_id, llama_pos from = -1);
    /** Valid while this object lives. */
    llama_batch get();

    Tokens tokens;
    std::vector<llama_pos> positions;
    std::vector<std::int32_t> counts;
    std::vector<llama_seq_id> ids;
    std::vector<llama_seq_id *> id_pointers;
    std::vector<std::int8_t> wanted;
};

Row logits(llama_context *ctx, std::int32_t i);
/** Decodes `tokens` in chunks through the adapter; logits of all. */
Rows run(sinkcache::LlamaContext &ctx, const Tokens &tokens, std::size_t chunk, llama_seq_id seq_id = 0);
/** Decodes `tokens` in one context without shifts. */
Rows run(llama_context *ctx, const Tokens &tokens, std::size_t chunk);
/** One by one, and past `n_sink + window` tokens the oldest that is no sink is dropped and the rest is shifted. */
Rows run_shifted(llama_context *ctx, const Tokens &tokens, llama_pos n_sink, llama_pos window);

struct Difference {
    double largest = 0;
    std::size_t same_argmax = 0;
    std::size_t rows = 0;
};
Difference compare(const Rows &a, const Rows &b);

#endif
