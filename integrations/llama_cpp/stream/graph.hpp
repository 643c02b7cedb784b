// Finds the attention of all layers in a llama.cpp graph: its nodes, its input tensors and its parameters.
#ifndef SINKCACHE_LLAMA_GRAPH_HPP
#define SINKCACHE_LLAMA_GRAPH_HPP

#include "accelerators.hpp"
#include "rope.hpp"

#include <ggml.h>
#include <llama.h>

#include <string>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** Parameters of a layer's attention. They stay the same in all graphs of a context. */
struct LayerShape {
    std::int64_t n_q_heads = 0;
    std::int64_t n_kv_heads = 0;
    std::int64_t head_dim = 0;
    std::int64_t head_dim_v = 0;
    /** Factor on scores, including factors on q and k that the graph applies after RoPE. */
    double scale = 0;
    double softcap = 0;
    /** Without RoPE `rope` is not used. */
    bool has_rope = true;
    RopeParams rope;
    /** Learned sink logits, [n_q_heads] of F32, or NULL. Owned by the model. */
    const ggml_tensor *sink_logits = nullptr;
    /** The earlier layer whose K and V it reads, which have its head counts, dims and RoPE; -1: its own. */
    std::int32_t kv_of = -1;
    /** The CUDA device in whose memory the weights of q, k and v lie, or ON_CPU. */
    std::int32_t device = ON_CPU;

    bool shares() const { return kv_of >= 0; }
    bool operator==(const LayerShape &other) const;
};

/** The nodes of a layer's attention in one graph, owned by the graph. */
struct LayerNodes {
    LayerShape shape;
    /** The FLASH_ATTN_EXT node; its result is [head_dim_v, n_q_heads, n_tokens]. */
    ggml_tensor *attention = nullptr;
    /** Before RoPE, if there is any: [head_dim, n_q_heads, n_tokens]. */
    ggml_tensor *q = nullptr;
    /** Before RoPE, if there is any: [head_dim, n_kv_heads, n_tokens]. NULL in a layer that reads another's K and V. */
    ggml_tensor *k = nullptr;
    /** [head_dim_v * n_kv_heads, n_tokens], or NULL like k. */
    ggml_tensor *v = nullptr;
    /** The weights that q, and in a layer with its own k and v, are products of; NULL where there is none. */
    std::vector<const ggml_tensor *> weights;
    /** Factor on k that the graph applies after RoPE: a part of the shape's scale. */
    double k_factor = 1;
    /**
     * Positions, [n_tokens] of I32, or [4 x n_tokens] with M-RoPE; of a layer without RoPE, those of another. NULL in a
     * hybrid none of whose layers has RoPE.
     */
    ggml_tensor *positions = nullptr;
    /** What attention may look at: [cells, rows] of F16 or F32, minus infinity where it may not. */
    ggml_tensor *mask = nullptr;
};

/** A value of the model's metadata as text; empty if it has none. */
std::string metadata(const llama_model *model, const std::string &key);

/** Why the adapter does not support a model; empty if its metadata shows no reason. read_graph() may still find one. */
std::string unsupported_reason(const llama_model *model);

/** What is known of all graphs of a model. */
struct GraphTraits {
    std::int32_t n_layers = 0;
    /** Some layers have a sliding window: masks may differ. */
    bool windows_differ = false;
    /** Layers without attention are recurrent. */
    bool is_hybrid = false;
};

/**
 * The attention of all layers that have it, in order. From each FLASH_ATTN_EXT node it follows q back to RoPE, or to
 * its projection in a layer without RoPE, and k and v to the nodes that write them into llama.cpp's cache. Unless
 * windows differ, all layers must have one mask.
 *
 * @throws NotSupported with the layer, counted among those with attention, and the reason
 */
std::vector<LayerNodes> read_graph(ggml_cgraph *graph, const GraphTraits &traits);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_GRAPH_HPP
