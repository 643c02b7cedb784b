#include "graph.hpp"

#include "errors.hpp"
#include "llama_api.hpp"
#include "op_params.hpp"

#include <unordered_map>

namespace sinkcache {
namespace llama_cpp {
namespace {

/** The tensor that holds the data of `t`. */
const ggml_tensor *data_owner(const ggml_tensor *t) { return t->view_src ? t->view_src : t; }

/** Operation and name of a node, for error texts. */
std::string describe(const ggml_tensor *t) {
    return std::string(api().ggml_op_desc(t)) + (t->name[0] ? std::string(" '") + t->name + "'" : std::string());
}

/** The ROPE node that a tensor comes from. */
struct RopeSource {
    ggml_tensor *node = nullptr;
    /** Product of the SCALE nodes between RoPE and the tensor. */
    double factor = 1;
};

// Allowed between RoPE and attention: nodes that do not change or reorder elements, and a scale, which becomes part of
// the scale of scores. The cache would have to repeat anything else (a norm, a concatenation, a factor by position).
RopeSource find_rope(ggml_tensor *t, const char *which) {
    RopeSource found;
    for (;;) {
        switch (t->op) {
        case GGML_OP_ROPE:
            found.node = t;
            return found;
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_CONT:
            if (t->src[0] && api().ggml_nelements(t) == api().ggml_nelements(t->src[0]) &&
                api().ggml_is_contiguous(t) && api().ggml_is_contiguous(t->src[0])) {
                t = t->src[0];
                continue;
            }
            break;
        case GGML_OP_SCALE:
            if (op_param_f32(t, 1) == 0) {
                found.factor *= op_param_f32(t, 0);
                t = t->src[0];
                continue;
            }
            break;
        default:
            break;
        }
        throw NotSupported(std::string(which) + " does not come from RoPE: between it and attention lies " +
                           describe(t));
    }
}

/** Whether the elements are f32 and those of a row contiguous. */
bool has_f32_rows(const ggml_tensor *t) { return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float); }

/** The SET_ROWS node that writes each tensor of llama.cpp's cache. */
using CacheWrites = std::unordered_map<const ggml_tensor *, ggml_tensor *>;

/** The tensor whose rows are written into the cache that attention reads. */
ggml_tensor *written_rows(const CacheWrites &writes, const ggml_tensor *cache, const char *which) {
    const auto it = writes.find(data_owner(cache));
    require(it != writes.end(), [&] {
        return std::string("no SET_ROWS node writes the ") + which + " it reads (" + describe(data_owner(cache)) +
               "): layers that share a cache, and models without one, are not supported";
    });
    return it->second->src[0];
}

LayerNodes read_layer(ggml_tensor *attention, const CacheWrites &writes) {
    ggml_tensor *const q = attention->src[0], *const k = attention->src[1], *const v = attention->src[2];
    require(data_owner(k) != data_owner(v),
            "K and V share a tensor: multi-head latent attention (MLA) is not supported");
    require(attention->src[4] == nullptr, "learned sink logits are not supported by this adapter");
    require(op_param_f32(attention, 1) == 0, "ALiBi is not supported by this adapter");
    require(attention->op_params[4] == 0, "sparse attention (top-k keys only) is not supported");
    require(q->ne[3] == 1, "attention over several streams is not supported");

    LayerNodes layer;
    layer.attention = attention;
    layer.shape.head_dim = q->ne[0];
    layer.shape.n_q_heads = q->ne[2];
    layer.shape.n_kv_heads = k->ne[2];
    layer.shape.head_dim_v = v->ne[0];
    const std::int64_t n_tokens = q->ne[1];

    require(q->op == GGML_OP_PERMUTE && q->src[0]->ne[1] == q->ne[2] && q->src[0]->ne[2] == q->ne[1],
            [&] { return "Q reaches attention through " + describe(q) + ", which is not supported"; });
    const RopeSource q_rope = find_rope(q->src[0], "Q");
    const RopeSource k_rope = find_rope(written_rows(writes, k, "K"), "K");
    layer.v = written_rows(writes, v, "V");

    layer.shape.rope = read_rope(q_rope.node);
    require(layer.shape.rope == read_rope(k_rope.node), "Q and K have RoPE of different kinds");
    layer.q = q_rope.node->src[0];
    layer.k = k_rope.node->src[0];
    layer.positions = q_rope.node->src[1];
    require(layer.positions == k_rope.node->src[1], "Q and K have different positions");
    layer.shape.scale = double(op_param_f32(attention, 0)) * q_rope.factor * k_rope.factor;
    layer.shape.softcap = op_param_f32(attention, 2);

    require(!q_rope.node->view_src && !k_rope.node->view_src,
            "in-place RoPE is not supported: it overwrites Q or K before RoPE, which the cache needs");
    for (const ggml_tensor *t : {layer.q, layer.k}) {
        const bool is_q = t == layer.q;
        require(has_f32_rows(t) && t->ne[0] == layer.shape.head_dim && t->ne[2] == n_tokens &&
                    t->ne[1] == (is_q ? layer.shape.n_q_heads : layer.shape.n_kv_heads),
                [&] {
                    return std::string(is_q ? "Q" : "K") + " before RoPE (" + describe(t) +
                           ") is not [head_dim, heads, tokens] of f32";
                });
    }
    require(has_f32_rows(layer.v) && layer.v->ne[0] == layer.shape.head_dim_v * layer.shape.n_kv_heads &&
                layer.v->ne[1] == n_tokens,
            [&] { return "V (" + describe(layer.v) + ") is not [heads x head_dim, tokens] of f32"; });
    require(layer.positions->type == GGML_TYPE_I32 && layer.positions->ne[0] == n_tokens,
            "positions are not one I32 per token");
    return layer;
}

}  // namespace

bool LayerShape::operator==(const LayerShape &o) const {
    return n_q_heads == o.n_q_heads && n_kv_heads == o.n_kv_heads && head_dim == o.head_dim &&
           head_dim_v == o.head_dim_v && scale == o.scale && softcap == o.softcap && rope == o.rope;
}

std::string metadata(const llama_model *model, const std::string &key) {
    char text[256];
    const std::int32_t n = api().llama_model_meta_val_str(model, key.c_str(), text, sizeof text);
    return n < 0 ? std::string() : std::string(text);
}

std::string unsupported_reason(const llama_model *model) {
    const std::string arch = metadata(model, "general.architecture");
    const auto because = [&](const std::string &reason) { return "architecture '" + arch + "': " + reason; };
    if (api().llama_model_is_recurrent(model)) {
        return because("a recurrent model has no KV cache");
    }
    if (api().llama_model_is_hybrid(model)) {
        return because("a model with recurrent layers is not supported");
    }
    if (api().llama_model_is_diffusion(model)) {
        return because("a diffusion model is not supported");
    }
    if (api().llama_model_has_encoder(model) || !api().llama_model_has_decoder(model)) {
        return because("a model with an encoder is not supported");
    }
    if (api().llama_model_n_swa(model) > 0) {
        return because("sliding-window layers (" + std::to_string(api().llama_model_n_swa(model)) +
                       " tokens) have a cache of their own in llama.cpp and are not supported");
    }
    const std::string kv_lora_rank = metadata(model, arch + ".attention.kv_lora_rank");
    if (!kv_lora_rank.empty() && kv_lora_rank != "0") {
        return because("multi-head latent attention (MLA, rank " + kv_lora_rank + ") is not supported");
    }
    switch (api().llama_model_rope_type(model)) {
    case LLAMA_ROPE_TYPE_NORM:
    case LLAMA_ROPE_TYPE_NEOX:
        return {};
    case LLAMA_ROPE_TYPE_NONE:
        return because("a model without RoPE is not supported by this adapter");
    default:
        return because("M-RoPE (several positions per token) is not supported");
    }
}

std::vector<LayerNodes> read_graph(ggml_cgraph *graph, std::int32_t n_layers) {
    CacheWrites writes;
    std::vector<ggml_tensor *> attentions;
    const int n_nodes = api().ggml_graph_n_nodes(graph);
    for (int i = 0; i < n_nodes; ++i) {
        ggml_tensor *node = api().ggml_graph_node(graph, i);
        if (node->op == GGML_OP_SET_ROWS) {
            require(writes.emplace(data_owner(node), node).second,
                    [&] { return describe(data_owner(node)) + " is written twice"; });
        } else if (node->op == GGML_OP_FLASH_ATTN_EXT) {
            attentions.push_back(node);
        }
    }
    require(attentions.size() == static_cast<std::size_t>(n_layers), [&] {
        return "the graph has " + std::to_string(attentions.size()) + " FLASH_ATTN_EXT nodes for " +
               std::to_string(n_layers) + " layers";
    });
    std::vector<LayerNodes> layers;
    for (ggml_tensor *attention : attentions) {
        try {
            require(attention->src[3] && attentions[0]->src[3] &&
                        data_owner(attention->src[3]) == data_owner(attentions[0]->src[3]),
                    "its mask is not that of layer 0: windows that differ by layer are not supported");
            layers.push_back(read_layer(attention, writes));
        } catch (const NotSupported &e) {
            throw NotSupported("layer " + std::to_string(layers.size()) + ": " + e.what());
        }
    }
    return layers;
}

}  // namespace llama_cpp
}  // namespace sinkcache
