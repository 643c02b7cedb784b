// A Llama's shape and weights, or one tensor-parallel shard of them.
#pragma once

#include "gguf.hpp"
#include "matrix.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace inflight {

using Token = std::int32_t;

/** The shape of the whole model, not of a shard. */
struct LlamaConfig {
    std::size_t n_layers, n_q_heads, n_kv_heads, head_dim, rope_dim, width, feed_forward, vocabulary;
    double rope_base;
    /** Angular frequencies if the file scales them (Llama 3), otherwise empty. */
    std::vector<float> inv_freq;
    float rms_eps;
    Token bos, eos;
    /** Tokens that it was trained with; 0 = unknown. */
    std::uint64_t trained_context;
    /** The vocabulary is bytes: byte b is token b + byte_offset. Otherwise prompts are given as tokens. */
    bool bytes;
    static constexpr Token byte_offset = 3;
};

struct LayerWeights {
    std::vector<float> attention_norm, feed_forward_norm;
    /** W_q, W_k and W_v of the shard's heads, stacked: a product gives packed QKV rows. */
    Weight qkv;
    /** W_o; its columns are the shard's heads. */
    Weight attention_out;
    /** W_gate and W_up, stacked. */
    Weight gate_up;
    Weight down;
};

/**
 * The weights of rank `rank` of `ranks`: its share of the heads and of the feed-forward, all embeddings and norms.
 * Matrices lie in the mapped file; only norms are copied.
 */
struct LlamaWeights {
    LlamaConfig config;
    std::size_t rank, ranks;
    Matrix embeddings;
    Weight out;
    std::vector<float> out_norm;
    std::vector<LayerWeights> layers;
    std::shared_ptr<const MappedFile> file;

    /** Those of matrices. */
    std::set<ggml_type> types() const;
    std::size_t q_heads() const { return config.n_q_heads / ranks; }
    std::size_t kv_heads() const { return config.n_kv_heads / ranks; }
    std::size_t feed_forward() const { return config.feed_forward / ranks; }
    std::size_t q_width() const { return q_heads() * config.head_dim; }
    std::size_t kv_width() const { return kv_heads() * config.head_dim; }
    std::size_t qkv_width() const { return q_width() + 2 * kv_width(); }

    /** Throws std::runtime_error if the file is not a Llama or cannot be divided among `ranks`. */
    static LlamaWeights load(const std::string &path, std::size_t rank = 0, std::size_t ranks = 1);
};

}  // namespace inflight
