// Models, batches and logits with stock llama.cpp.
#ifndef SINKCACHE_TESTS_STOCK_HPP
#define SINKCACHE_TESTS_STOCK_HPP

#include "random_model.hpp"

#include <llama-cpp.h>

#include <cstdint>
#include <string>
#include <vector>

using Tokens = std::vector<llama_token>;
/** Logits of one token. */
using Row = std::vector<float>;
using Rows = std::vector<Row>;

/** Loads a GGUF. Throws std::runtime_error. */
llama_model_ptr load(const std::string &path, int n_gpu_layers = 0, const char *on_cpu = nullptr);
/**
 * Writes a random model and loads it, with its last `n_gpu_layers` layers on a GPU; -1 = all, and the output. Tensors
 * whose names match `on_cpu` stay on the CPU.
 */
llama_model_ptr load(const RandomModel &model, const std::string &name, int n_gpu_layers = 0,
                     const char *on_cpu = nullptr);
/**
 * The bundled model, its f16 weights converted to f32. With f16 weights llama.cpp rounds activations to f16 before it
 * multiplies: a difference of 1e-6 then flips some roundings, and what these become depends on the processor's kernels.
 */
llama_model_ptr load_bundled();
/** The first `n` tokens of the bundled text. */
Tokens bundled_text(const llama_model *model, std::size_t n);
/** Uniformly distributed tokens of the model's vocabulary. */
Tokens random_tokens(const llama_model *model, std::size_t n, std::uint32_t seed = 7);

/** Tokens `from` to `to` - 1, or to the last one. */
Tokens slice(const Tokens &tokens, std::size_t from, std::size_t to);

llama_context_params params(std::uint32_t n_batch, int n_threads = 1);
/** The function that creates stock contexts. Tests of a library that stands in front of it set another one. */
extern decltype(&llama_init_from_model) init_stock;

/** A context of stock llama.cpp; by default with K and V in f32 and without flash attention, the most exact way. */
llama_context_ptr stock(llama_model *model, std::uint32_t n_ctx, ggml_type kv = GGML_TYPE_F32, bool flash = false);

/** A batch that owns its arrays, with the logits of all tokens. Tests may change the arrays. */
class OwnBatch {
public:
    OwnBatch() = default;
    explicit OwnBatch(const Tokens &tokens, llama_seq_id seq_id = 0, llama_pos from = -1) { add(tokens, seq_id, from); }
    /** Appends tokens with positions from `from` on; `from` < 0: without positions. */
    OwnBatch &add(const Tokens &tokens, llama_seq_id seq_id, llama_pos from = -1);
    /** Valid until this object changes or is destroyed. */
    llama_batch get();

    Tokens tokens;
    std::vector<llama_pos> positions;
    std::vector<std::int32_t> counts;
    std::vector<llama_seq_id> ids;
    std::vector<llama_seq_id *> id_pointers;
    std::vector<std::int8_t> outputs;
};

/** Logits of the i-th token of the latest batch. Throws std::runtime_error. */
Row logits(llama_context *ctx, std::int32_t i);
/** Decodes `tokens` in chunks with stock llama.cpp, without context shift; returns the logits of all. */
Rows run(llama_context *ctx, const Tokens &tokens, std::size_t chunk);
/** Stock llama.cpp, one token at a time: above `n_sink` + `window` tokens, each shifts the context by one token. */
Rows run_shifted(llama_context *ctx, const Tokens &tokens, llama_pos n_sink, llama_pos window);

struct Difference {
    /** Largest absolute difference of two logits. */
    double largest = 0;
    /** Rows whose largest logit has the same index. */
    std::size_t same_argmax = 0;
    std::size_t rows = 0;
};
Difference compare(const Rows &a, const Rows &b);

#endif
