// A Llama's shape and weights, or one tensor-parallel shard of them.
#pragma once

#include "gguf.hpp"
#include "matrix.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace inflight {

using Token = std::int32_t;

/** Of the whole model, whatever the shard. */
struct LlamaConfig {
    std::size_t n_layers, n_q_heads, n_kv_heads, head_dim, rope_dim, width, feed_forward, vocabulary;
    double rope_base;
    /** Angular frequencies where the file scales them (Llama 3), else empty. */
    std::vector<float> inv_freq;
    float rms_eps;
    Token bos, eos;
    /** Byte b is token b + byte_offset; without, prompts come as tokens. */
    bool bytes;
    static constexpr Token byte_offset = 3;
};

struct LayerWeights {
    std::vector<float> attention_norm, feed_forward_norm;
    /** Of the shard's heads of q, of k and of v, one below the other: a product gives packed QKV rows. */
    Matrix qkv;
    /** Its columns are the shard's heads. */
    Matrix attention_out;
    /** Of gate and of up, one below the other. */
    Matrix gate_up;
    Matrix down;
};

/** Heads and feed-forward of rank `rank` of `ranks`; embeddings and norms are everybody's. */
struct LlamaWeights {
    LlamaConfig config;
    std::size_t rank, ranks;
    Matrix embeddings, out;
    std::vector<float> out_norm;
    std::vector<LayerWeights> layers;

    std::size_t q_heads() const { return config.n_q_heads / ranks; }
    std::size_t kv_heads() const { return config.n_kv_heads / ranks; }
    std::size_t feed_forward() const { return config.feed_forward / ranks; }
    std::size_t q_width() const { return q_heads() * config.head_dim; }
    std::size_t kv_width() const { return kv_heads() * config.head_dim; }
    std::size_t qkv_width() const { return q_width() + 2 * kv_width(); }

    /** Throws std::runtime_error for a file that is no Llama, or cannot be divided among `ranks`. */
    static LlamaWeights load(const std::string &path, std::size_t rank = 0, std::size_t ranks = 1);
};

}  // namespace inflight
