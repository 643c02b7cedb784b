#include "graph.hpp"

#include <cstring>
#include <unordered_map>

namespace sinkcache {
namespace llama_cpp {
namespace {

float real_param(const ggml_tensor *node, int i) {
    float x;
    std::memcpy(&x, &node->op_params[i], sizeof x);
    return x;
}

const ggml_tensor *root(const ggml_tensor *t) { return t->view_src ? t->view_src : t; }

std::string described(const ggml_tensor *t) {
    return std::string(ggml_op_desc(t)) + (t->name[0] ? std::string(" '") + t->name + "'" : std::string());
}

/** A tensor behind RoPE, followed back to the node that rotated it. */
struct Rotated {
    ggml_tensor *node = nullptr;
    double factor = 1;
};

// Between RoPE and attention may lie what leaves the numbers in place, and a scaling, which scores can take over.
// Anything else (a norm, a concatenation, a temperature by position) is something the cache would have to repeat.
Rotated find_rope(ggml_tensor *t, const char *which) {
    Rotated found;
    for (;;) {
        switch (t->op) {
        case GGML_OP_ROPE:
            found.node = t;
            return found;
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_CONT:
            if (t->src[0] && ggml_nelements(t) == ggml_nelements(t->src[0]) && ggml_is_contiguous(t) &&
                ggml_is_contiguous(t->src[0])) {
                t = t->src[0];
                continue;
            }
            break;
        case GGML_OP_SCALE:
            if (real_param(t, 1) == 0) {
                found.factor *= real_param(t, 0);
                t = t->src[0];
                continue;
            }
            break;
        default:
            break;
        }
        throw Refusal(std::string(which) + " does not come from RoPE: between it and attention lies " + described(t));
    }
}

void want(bool condition, const std::string &reason) {
    if (!condition) {
        throw Refusal(reason);
    }
}

bool f32_rows(const ggml_tensor *t) { return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float); }

using Stores = std::unordered_map<const ggml_tensor *, ggml_tensor *>;

ggml_tensor *stored(const Stores &stores, const ggml_tensor *cache, const char *which) {
    const auto it = stores.find(root(cache));
    want(it != stores.end(), std::string("no SET_ROWS node writes the ") + which + " it reads (" + described(root(cache)) +
                                 "): layers that share a cache, and models without one, are not supported");
    return it->second->src[0];
}

LayerNodes read_layer(ggml_tensor *attention, const Stores &stores) {
    ggml_tensor *const q = attention->src[0], *const k = attention->src[1], *const v = attention->src[2];
    want(root(k) != root(v), "K and V share a tensor: multi-head latent attention (MLA) is not supported");
    want(attention->src[4] == nullptr, "learned sink logits are not supported by this adapter");
    want(real_param(attention, 1) == 0, "ALiBi is not supported by this adapter");
    want(attention->op_params[4] == 0, "sparse attention (the best keys only) is not supported");
    want(q->ne[3] == 1, "its attention is split into streams");

    LayerNodes layer;
    layer.attention = attention;
    layer.shape.head_dim = q->ne[0];
    layer.shape.n_q_heads = q->ne[2];
    layer.shape.n_kv_heads = k->ne[2];
    layer.shape.head_dim_v = v->ne[0];
    const std::int64_t n_tokens = q->ne[1];

    want(q->op == GGML_OP_PERMUTE && q->src[0]->ne[1] == q->ne[2] && q->src[0]->ne[2] == q->ne[1],
         "Q comes to attention by " + described(q));
    const Rotated q_rope = find_rope(q->src[0], "Q");
    const Rotated k_rope = find_rope(stored(stores, k, "K"), "K");
    layer.v = stored(stores, v, "V");

    layer.shape.rope = read_rope(q_rope.node);
    want(layer.shape.rope == read_rope(k_rope.node), "Q and K have RoPE of different kinds");
    layer.q = q_rope.node->src[0];
    layer.k = k_rope.node->src[0];
    layer.positions = q_rope.node->src[1];
    want(layer.positions == k_rope.node->src[1], "Q and K have different positions");
    layer.shape.scale = double(real_param(attention, 0)) * q_rope.factor * k_rope.factor;
    layer.shape.softcap = real_param(attention, 2);

    want(!q_rope.node->view_src && !k_rope.node->view_src, "RoPE in place overwrites what the cache needs");
    for (const ggml_tensor *t : {layer.q, layer.k}) {
        const bool is_q = t == layer.q;
        want(f32_rows(t) && t->ne[0] == layer.shape.head_dim && t->ne[2] == n_tokens &&
                 t->ne[1] == (is_q ? layer.shape.n_q_heads : layer.shape.n_kv_heads),
             std::string(is_q ? "Q" : "K") + " before RoPE (" + described(t) + ") is not [head_dim, heads, tokens] of f32");
    }
    want(f32_rows(layer.v) && layer.v->ne[0] == layer.shape.head_dim_v * layer.shape.n_kv_heads &&
             layer.v->ne[1] == n_tokens,
         "V (" + described(layer.v) + ") is not [heads x head_dim, tokens] of f32");
    want(layer.positions->type == GGML_TYPE_I32 && layer.positions->ne[0] == n_tokens,
         "positions are not one number per token");
    return layer;
}

std::string meta(const llama_model *model, const std::string &key) {
    char text[256];
    return llama_model_meta_val_str(model, key.c_str(), text, sizeof text) < 0 ? std::string() : std::string(text);
}

}  // namespace

bool LayerShape::operator==(const LayerShape &o) const {
    return n_q_heads == o.n_q_heads && n_kv_heads == o.n_kv_heads && head_dim == o.head_dim && head_dim_v == o.head_dim_v &&
           scale == o.scale && softcap == o.softcap && rope == o.rope;
}

std::string refuse_model(const llama_model *model) {
    const std::string arch = meta(model, "general.architecture");
    const auto because = [&](const std::string &reason) { return "architecture '" + arch + "': " + reason; };
    if (llama_model_is_recurrent(model)) {
        return because("a recurrent model has no KV cache");
    }
    if (llama_model_is_hybrid(model)) {
        return because("a model with recurrent layers is not supported");
    }
    if (llama_model_is_diffusion(model)) {
        return because("a diffusion model is not supported");
    }
    if (llama_model_has_encoder(model) || !llama_model_has_decoder(model)) {
        return because("a model with an encoder is not supported");
    }
    if (llama_model_n_swa(model) > 0) {
        return because("sliding-window layers (" + std::to_string(llama_model_n_swa(model)) +
                       " tokens) have a cache of their own in llama.cpp and are not supported");
    }
    const std::string latent = meta(model, arch + ".attention.kv_lora_rank");
    if (!latent.empty() && latent != "0") {
        return because("multi-head latent attention (MLA, rank " + latent + ") is not supported");
    }
    switch (llama_model_rope_type(model)) {
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
    Stores stores;
    std::vector<ggml_tensor *> attentions;
    const int n_nodes = ggml_graph_n_nodes(graph);
    for (int i = 0; i < n_nodes; ++i) {
        ggml_tensor *node = ggml_graph_node(graph, i);
        if (node->op == GGML_OP_SET_ROWS) {
            want(stores.emplace(root(node), node).second, described(root(node)) + " is written twice");
        } else if (node->op == GGML_OP_FLASH_ATTN_EXT) {
            attentions.push_back(node);
        }
    }
    want(attentions.size() == static_cast<std::size_t>(n_layers),
         "the graph has " + std::to_string(attentions.size()) + " FLASH_ATTN_EXT nodes for " + std::to_string(n_layers) +
             " layers");
    std::vector<LayerNodes> layers;
    for (ggml_tensor *attention : attentions) {
        try {
            want(attention->src[3] && attentions[0]->src[3] && root(attention->src[3]) == root(attentions[0]->src[3]),
                 "its mask is not that of layer 0: windows that differ by layer are not supported");
            layers.push_back(read_layer(attention, stores));
        } catch (const Refusal &refusal) {
            throw Refusal("layer " + std::to_string(layers.size()) + ": " + refusal.what());
        }
    }
    return layers;
}

}  // namespace llama_cpp
}  // namespace sinkcache
