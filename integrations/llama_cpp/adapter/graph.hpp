// Reads attention out of a llama.cpp graph: which nodes, which tensors, which numbers.
#ifndef SINKCACHE_LLAMA_GRAPH_HPP
#define SINKCACHE_LLAMA_GRAPH_HPP

#include "rope.hpp"

#include <ggml.h>
#include <llama.h>

#include <string>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** The numbers of a layer's attention. */
struct LayerShape {
    std::int64_t n_q_heads = 0;
    std::int64_t n_kv_heads = 0;
    std::int64_t head_dim = 0;
    std::int64_t head_dim_v = 0;
    /** Factor on scores, scalings of q and k behind RoPE included. */
    double scale = 0;
    double softcap = 0;
    Rope rope;

    bool operator==(const LayerShape &other) const;
};

/** A layer's attention in one graph. */
struct LayerNodes {
    LayerShape shape;
    /** The FLASH_ATTN_EXT node; its result is [head_dim_v, n_q_heads, n_tokens]. */
    ggml_tensor *attention = nullptr;
    /** Before RoPE: [head_dim, n_q_heads, n_tokens]. */
    ggml_tensor *q = nullptr;
    /** Before RoPE: [head_dim, n_kv_heads, n_tokens]. */
    ggml_tensor *k = nullptr;
    /** [head_dim_v * n_kv_heads, n_tokens]. */
    ggml_tensor *v = nullptr;
    /** llama.cpp's positions, [n_tokens] of I32. */
    ggml_tensor *positions = nullptr;
};

/** Why a model cannot be served, as far as the model alone tells; empty if nothing speaks against it. */
std::string refuse_model(const llama_model *model);

/**
 * The attention of all layers, in order.
 * @throws Refusal with the layer and the reason.
 */
std::vector<LayerNodes> read_graph(ggml_cgraph *graph, std::int32_t n_layers);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_GRAPH_HPP
