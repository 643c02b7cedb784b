// The weights of a model, or one tensor-parallel shard of them.
#pragma once

#include "gguf.hpp"
#include "llama_config.hpp"
#include "matrix.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace inflight {

struct LayerWeights {
    std::vector<float> attention_norm, feed_forward_norm;
    /** W_q, W_k and W_v of the shard's heads: a product gives packed QKV rows. */
    Weight qkv;
    /** W_o; its columns are the shard's heads. */
    Weight attention_out;
    /** W_gate and W_up. */
    Weight gate_up;
    Weight down;
    /** Of the shard's heads; empty if the model has none. */
    std::vector<float> qkv_bias;
    /** [head_dim], for all heads; empty if the model has none. */
    std::vector<float> q_norm, k_norm;
    /** [width]; empty if the model has none. */
    std::vector<float> attention_post_norm, feed_forward_post_norm;
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

    /** Throws std::runtime_error if the file has what this engine lacks, or cannot be divided among `ranks`. */
    static LlamaWeights load(const std::string &path, std::size_t rank = 0, std::size_t ranks = 1);
};

}  // namespace inflight
