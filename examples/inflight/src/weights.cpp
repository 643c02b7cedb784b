#include "weights.hpp"

#include "command_line.hpp"
#include "model_checks.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace inflight {
namespace {

/** `<unk>`, `<s>`, `</s>`, then the names of the 256 bytes; SentencePiece writes a space as U+2581. */
bool is_byte_vocabulary(const std::vector<std::string> &tokens) {
    if (tokens.size() != 256 + LlamaConfig::byte_offset) {
        return false;
    }
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", b);
        const std::string &token = tokens[b + LlamaConfig::byte_offset];
        if (token != name && !(b == ' ' && token == "\xE2\x96\x81")) {
            return false;
        }
    }
    return true;
}

LlamaConfig read_config(const Gguf &gguf) {
    const std::string architecture = gguf.text("general.architecture");
    if (architecture != "llama") {
        gguf.fail("is of architecture '" + programs::one_line(architecture) + "': only 'llama' is supported");
    }
    programs::check_model(gguf);
    LlamaConfig c{};
    c.width = gguf.count("llama.embedding_length");
    c.n_layers = gguf.count("llama.block_count");
    c.n_q_heads = gguf.count("llama.attention.head_count");
    c.n_kv_heads = gguf.count("llama.attention.head_count_kv", c.n_q_heads);
    c.head_dim = gguf.count("llama.attention.key_length", std::max<std::uint64_t>(c.width / c.n_q_heads, 1));
    c.rope_dim = gguf.count("llama.rope.dimension_count", c.head_dim);
    c.feed_forward = gguf.count("llama.feed_forward_length");
    c.rope_base = gguf.number("llama.rope.freq_base", 10000.0);
    c.trained_context = gguf.count("llama.context_length", 0);
    c.rms_eps = static_cast<float>(gguf.number("llama.attention.layer_norm_rms_epsilon"));
    const auto tokens = gguf.texts("tokenizer.ggml.tokens");
    c.vocabulary = gguf.count("llama.vocab_size", tokens.size());
    if (!tokens.empty() && tokens.size() != c.vocabulary) {
        gguf.fail("names " + std::to_string(tokens.size()) + " tokens of a vocabulary of " +
                  std::to_string(c.vocabulary));
    }
    c.bytes = is_byte_vocabulary(tokens);
    c.bos = static_cast<Token>(gguf.count("tokenizer.ggml.bos_token_id", 1));
    c.eos = static_cast<Token>(gguf.count("tokenizer.ggml.eos_token_id", 2));
    if (static_cast<std::size_t>(std::max(c.bos, c.eos)) >= c.vocabulary) {
        gguf.fail("begins or ends with a token outside its vocabulary of " + std::to_string(c.vocabulary));
    }
    const std::string scaling = gguf.text("llama.rope.scaling.type");
    if (!scaling.empty() && scaling != "none") {
        gguf.fail("scales RoPE by '" + programs::one_line(scaling) +
                  "': only plain RoPE and a tensor of factors are supported");
    }
    // Tensors that this code would silently ignore.
    for (const char *name : {"blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q_norm.weight"}) {
        if (gguf.tensor(name)) {
            gguf.fail("has tensor '" + std::string(name) + "', which a plain Llama lacks");
        }
    }
    if (gguf.tensor("rope_freqs.weight")) {
        for (float factor : gguf.vector("rope_freqs.weight", c.rope_dim / 2)) {
            const double i = static_cast<double>(c.inv_freq.size());
            const double plain = std::pow(c.rope_base, -2 * i / static_cast<double>(c.rope_dim));
            c.inv_freq.push_back(static_cast<float>(plain / static_cast<double>(factor)));
        }
    }
    return c;
}

LayerWeights read_layer(const Gguf &gguf, const LlamaWeights &w, std::size_t i) {
    const LlamaConfig &c = w.config;
    const auto name = [&](const char *part) { return "blk." + std::to_string(i) + "." + part + ".weight"; };
    const Range all{0, c.width};
    const Range q{w.rank * w.q_width(), (w.rank + 1) * w.q_width()};
    const Range kv{w.rank * w.kv_width(), (w.rank + 1) * w.kv_width()};
    const Range inner{w.rank * w.feed_forward(), (w.rank + 1) * w.feed_forward()};
    const std::size_t q_rows = c.n_q_heads * c.head_dim, kv_rows = c.n_kv_heads * c.head_dim;
    return {
        gguf.vector(name("attn_norm"), c.width),
        gguf.vector(name("ffn_norm"), c.width),
        Weight({gguf.matrix(name("attn_q"), q_rows, c.width, q, all),
                gguf.matrix(name("attn_k"), kv_rows, c.width, kv, all),
                gguf.matrix(name("attn_v"), kv_rows, c.width, kv, all)}),
        Weight({gguf.matrix(name("attn_output"), c.width, q_rows, all, q)}),
        Weight({gguf.matrix(name("ffn_gate"), c.feed_forward, c.width, inner, all),
                gguf.matrix(name("ffn_up"), c.feed_forward, c.width, inner, all)}),
        Weight({gguf.matrix(name("ffn_down"), c.width, c.feed_forward, all, inner)}),
    };
}

}  // namespace

LlamaWeights LlamaWeights::load(const std::string &path, std::size_t rank, std::size_t ranks) {
    const Gguf gguf(path);
    LlamaWeights w{};
    w.file = gguf.mapping();
    w.config = read_config(gguf);
    w.rank = rank;
    w.ranks = ranks;
    const LlamaConfig &c = w.config;
    if (c.n_kv_heads % ranks != 0 || c.n_q_heads % ranks != 0 || c.feed_forward % ranks != 0) {
        gguf.fail("has " + std::to_string(c.n_q_heads) + " query heads, " + std::to_string(c.n_kv_heads) +
                  " KV heads and a feed-forward of " + std::to_string(c.feed_forward) + ": not divisible by " +
                  std::to_string(ranks) + " ranks");
    }
    w.embeddings = gguf.matrix("token_embd.weight", c.vocabulary, c.width);
    w.out = Weight({gguf.tensor("output.weight") ? gguf.matrix("output.weight", c.vocabulary, c.width) : w.embeddings});
    w.out_norm = gguf.vector("output_norm.weight", c.width);
    for (std::size_t i = 0; i < c.n_layers; i++) {
        w.layers.push_back(read_layer(gguf, w, i));
    }
    return w;
}

std::set<ggml_type> LlamaWeights::types() const {
    std::set<ggml_type> all;
    const auto add = [&](const Weight &w) {
        for (const Matrix &part : w.parts) {
            all.insert(part.type);
        }
    };
    for (const LayerWeights &layer : layers) {
        for (const Weight *w : {&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down}) {
            add(*w);
        }
    }
    add(out);
    return all;
}

}  // namespace inflight
