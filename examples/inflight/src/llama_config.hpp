// The shape of a Llama, or of a family of models that differs from it in a few places.
#pragma once

#include "gguf_file.hpp"

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace inflight {

using Token = std::int32_t;

/** The function on the gate of a feed-forward. */
enum class Activation { silu, gelu };

/** What a layer has of its own. */
struct LayerShape {
    /** Its sliding window, which is part of the model and has no sinks; 0 = that of the engine. */
    std::uint32_t window = 0;
    double rope_base = 10000.0;
    /** Factor on positions. */
    double rope_scale = 1.0;
};

/** The first layer with the engine's window: the one whose sinks and pins are counted. */
std::uint32_t reference_layer(const std::vector<LayerShape> &layers);

/** The shape of the whole model, not of a shard. */
struct LlamaConfig {
    std::size_t n_layers, n_q_heads, n_kv_heads, head_dim, rope_dim, width, feed_forward, vocabulary;
    std::vector<LayerShape> layers;
    /** RoPE rotates dim i with i + rope_dim / 2, not with i + 1. */
    bool rope_neox;
    /** Angular frequencies if the file scales them (Llama 3), otherwise empty. */
    std::vector<float> inv_freq;
    float rms_eps;
    /** Norms of each head of Q and K. */
    bool qk_norm;
    /** Norms of what attention and feed-forward add to a row. */
    bool post_norms;
    Activation activation;
    /** Factors on embeddings, on what a layer adds, and on logits. */
    float embedding_scale, residual_scale, logit_scale;
    /** Factor on QK^T; 0 = 1 / sqrt(head_dim). */
    double attention_scale;
    /** Above 0: x = softcap * tanh(x / softcap), of scores and of logits. */
    double attention_softcap, logit_softcap;
    Token bos;
    /** A sequence begins with `bos`. */
    bool add_bos;
    /** Each of them ends an answer. */
    std::set<Token> end_tokens;
    /** Tokens that it was trained with; 0 = unknown. */
    std::uint64_t trained_context;
    /** The vocabulary is bytes: byte b is token b + byte_offset. */
    bool bytes;
    static constexpr Token byte_offset = 3;

    bool ends(Token token) const { return end_tokens.count(token) > 0; }
    /** Whether it is a Llama in everything, which all implementations of a forward pass can run. */
    bool is_plain() const;
};

/** Throws std::runtime_error, with the names of the file and of what it has, if that is none of the families. */
LlamaConfig read_config(const programs::GgufFile &gguf);

}  // namespace inflight
