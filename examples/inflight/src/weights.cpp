#include "weights.hpp"

#include <cmath>

namespace inflight {
namespace {

/** Reads a layer's share of a rank. */
class LayerReader {
public:
    LayerReader(Gguf &gguf, const LlamaWeights &w, std::size_t layer)
        : gguf_(gguf), config_(w.config), prefix_("blk." + std::to_string(layer) + "."), all_{0, w.config.width},
          q_{share(w.q_width(), w.rank)}, kv_{share(w.kv_width(), w.rank)}, inner_{share(w.feed_forward(), w.rank)},
          q_rows_(w.config.n_q_heads * w.config.head_dim), kv_rows_(w.config.n_kv_heads * w.config.head_dim) {}

    LayerWeights read() {
        const LlamaConfig &c = config_;
        LayerWeights w{
            vector("attn_norm", c.width),
            vector("ffn_norm", c.width),
            Weight({matrix("attn_q", q_rows_, c.width, q_, all_), matrix("attn_k", kv_rows_, c.width, kv_, all_),
                    matrix("attn_v", kv_rows_, c.width, kv_, all_)}),
            Weight({matrix("attn_output", c.width, q_rows_, all_, q_)}),
            Weight({matrix("ffn_gate", c.feed_forward, c.width, inner_, all_),
                    matrix("ffn_up", c.feed_forward, c.width, inner_, all_)}),
            Weight({matrix("ffn_down", c.width, c.feed_forward, all_, inner_)}),
            {}, {}, {}, {}, {},
        };
        // Qwen2's, and those of other families where a file has them.
        if (gguf_.tensor(prefix_ + "attn_q.bias")) {
            append_bias(w.qkv_bias, "attn_q", q_rows_, q_);
            append_bias(w.qkv_bias, "attn_k", kv_rows_, kv_);
            append_bias(w.qkv_bias, "attn_v", kv_rows_, kv_);
        }
        if (c.qk_norm) {
            w.q_norm = vector("attn_q_norm", c.head_dim);
            w.k_norm = vector("attn_k_norm", c.head_dim);
        }
        if (c.post_norms) {
            w.attention_post_norm = vector("post_attention_norm", c.width);
            w.feed_forward_post_norm = vector("post_ffw_norm", c.width);
        }
        return w;
    }

private:
    Gguf &gguf_;
    const LlamaConfig &config_;
    std::string prefix_;
    Range all_, q_, kv_, inner_;
    std::size_t q_rows_, kv_rows_;

    static Range share(std::size_t n, std::size_t rank) { return {rank * n, (rank + 1) * n}; }
    Matrix matrix(const char *name, std::size_t n, std::size_t k, Range rows, Range cols) {
        return gguf_.matrix(prefix_ + name + ".weight", n, k, rows, cols);
    }
    std::vector<float> vector(const char *name, std::size_t n) { return gguf_.vector(prefix_ + name + ".weight", n); }
    void append_bias(std::vector<float> &bias, const char *name, std::size_t n, Range range) {
        const auto all = gguf_.vector(prefix_ + name + ".bias", n);
        const auto first = all.begin() + static_cast<std::ptrdiff_t>(range.from);
        bias.insert(bias.end(), first, first + static_cast<std::ptrdiff_t>(range.size()));
    }
};

/** Llama 3's: each frequency of the RoPE base is divided by a factor. */
std::vector<float> read_frequencies(Gguf &gguf, const LlamaConfig &c) {
    std::vector<float> frequencies;
    const double base = c.layers[reference_layer(c.layers)].rope_base;
    for (const float factor : gguf.vector("rope_freqs.weight", c.rope_dim / 2)) {
        const double i = static_cast<double>(frequencies.size());
        const double plain = std::pow(base, -2 * i / static_cast<double>(c.rope_dim));
        frequencies.push_back(static_cast<float>(plain / static_cast<double>(factor)));
    }
    return frequencies;
}

}  // namespace

LlamaWeights LlamaWeights::load(const std::string &path, std::size_t rank, std::size_t ranks) {
    Gguf gguf(path);
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
        w.layers.push_back(LayerReader(gguf, w, i).read());
    }
    if (gguf.tensor("rope_freqs.weight")) {
        w.config.inv_freq = read_frequencies(gguf, c);
    }
    gguf.expect_all_read();
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
