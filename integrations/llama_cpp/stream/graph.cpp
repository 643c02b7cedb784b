#include "graph.hpp"

#include "errors.hpp"
#include "llama_api.hpp"
#include "op_params.hpp"

#include <algorithm>
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

/** Shape of q or k with its heads apart. */
struct HeadsShape {
    std::int64_t dim, n_heads, n_tokens;

    bool is_of(const ggml_tensor *t) const { return t->ne[0] == dim && t->ne[1] == n_heads && t->ne[2] == n_tokens; }
};

/** Where a tensor of attention comes from. */
struct Source {
    /** The ROPE node; NULL if there is none. */
    ggml_tensor *rope = nullptr;
    /** Without RoPE: the earliest tensor with the heads apart. */
    ggml_tensor *heads = nullptr;
    /** Product of the SCALE nodes between that and attention. */
    double factor = 1;
    /** The first node that is neither RoPE nor allowed between it and attention. */
    ggml_tensor *end = nullptr;
};

// Allowed between RoPE and attention: nodes that do not change or reorder elements, and a scale, which becomes part of
// the scale of scores. The cache would have to repeat anything else (a norm, a concatenation, a factor by position).
Source find_source(ggml_tensor *t, const HeadsShape &shape) {
    Source found;
    double factor = 1;
    for (;;) {
        if (shape.is_of(t)) {
            found.heads = t;
            found.factor = factor;
        }
        switch (t->op) {
        case GGML_OP_ROPE:
            found.rope = t;
            found.factor = factor;
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
                factor *= op_param_f32(t, 0);
                t = t->src[0];
                continue;
            }
            break;
        default:
            break;
        }
        found.end = t;
        return found;
    }
}

/** The product with a weight that a tensor comes from by nodes that do not depend on positions; NULL if it does not. */
const ggml_tensor *projection(const ggml_tensor *t) {
    for (;;) {
        switch (t->op) {
        case GGML_OP_MUL_MAT:
            return t;
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_CONT:
        case GGML_OP_SCALE:
        case GGML_OP_RMS_NORM:
        case GGML_OP_NORM:
        case GGML_OP_CLAMP:
        case GGML_OP_ADD:
        case GGML_OP_MUL:
            // The other operand of a sum or product is a weight: a bias, a norm's factor, or what LoRA adds.
            t = t->src[0];
            break;
        default:
            return nullptr;
        }
    }
}

/** The weight that a tensor is a product of; NULL if it is none. */
const ggml_tensor *weight_of(const ggml_tensor *t) {
    const ggml_tensor *product = projection(t);
    return product ? product->src[0] : nullptr;
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
               "): a model without a cache is not supported";
    });
    return it->second->src[0];
}

/** The tensor that RoPE rotates, or without RoPE the earliest one with the heads apart. */
ggml_tensor *unrotated(const Source &source, const char *which, bool has_rope) {
    require(source.rope || (!has_rope && source.heads && projection(source.end)), [&] {
        return std::string(which) + " does not come from RoPE: between it and attention lies " + describe(source.end);
    });
    require(!source.rope || !source.rope->view_src,
            "in-place RoPE is not supported: it overwrites Q or K before RoPE, which the cache needs");
    return source.rope ? source.rope->src[0] : source.heads;
}

void require_heads_apart(const ggml_tensor *t, const char *which, const HeadsShape &shape) {
    require(has_f32_rows(t) && shape.is_of(t), [&] {
        return std::string(which) + " before RoPE (" + describe(t) + ") is not [head_dim, heads, tokens] of f32";
    });
}

/** Reads k and v of a layer that has its own, whose q has been read. */
void read_kv(LayerNodes &layer, const Source &q_source, const CacheWrites &writes, const HeadsShape &k_shape) {
    LayerShape &shape = layer.shape;
    const Source k_source = find_source(written_rows(writes, layer.attention->src[1], "K"), k_shape);
    layer.v = written_rows(writes, layer.attention->src[2], "V");
    require(shape.has_rope || !k_source.rope, "K has RoPE and Q has none");
    layer.k = unrotated(k_source, "K", shape.has_rope);
    if (shape.has_rope) {
        require(shape.rope == read_rope(k_source.rope), "Q and K have RoPE of different kinds");
        require(q_source.rope->src[1] == k_source.rope->src[1], "Q and K have different positions");
    }
    layer.k_factor = k_source.factor;
    layer.weights.push_back(weight_of(layer.k));
    layer.weights.push_back(weight_of(layer.v));
    require_heads_apart(layer.k, "K", k_shape);
    require(has_f32_rows(layer.v) && layer.v->ne[0] == shape.head_dim_v * shape.n_kv_heads &&
                layer.v->ne[1] == k_shape.n_tokens,
            [&] { return "V (" + describe(layer.v) + ") is not [heads x head_dim, tokens] of f32"; });
}

/** The layer among `layers` that reads the same K and V and writes them; -1 if there is none. */
std::int32_t owner_of(const ggml_tensor *attention, const std::vector<LayerNodes> &layers) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
        // Its attention is unchanged until the whole graph has been read.
        const ggml_tensor *other = layers[i].attention;
        if (data_owner(other->src[1]) == data_owner(attention->src[1])) {
            require(data_owner(other->src[2]) == data_owner(attention->src[2]),
                    [&] { return "it reads the K of layer " + std::to_string(i) + " and another V"; });
            return static_cast<std::int32_t>(i);
        }
    }
    return -1;
}

/** The k factor of a layer that reads the K and V of `owner`, if the owner's cache can serve it. */
double shared_k_factor(const LayerShape &shape, const LayerNodes &owner, double scale_of_q) {
    const LayerShape &o = owner.shape;
    require(shape.n_q_heads == o.n_q_heads && shape.n_kv_heads == o.n_kv_heads && shape.head_dim == o.head_dim &&
                shape.head_dim_v == o.head_dim_v && shape.has_rope == o.has_rope &&
                (!shape.has_rope || shape.rope.turns_like(o.rope)) && scale_of_q * owner.k_factor == o.scale &&
                shape.softcap == o.softcap && shape.sink_logits == o.sink_logits,
            [&] {
                return "it reads the K and V of layer " + std::to_string(shape.kv_of) +
                       " with other heads, RoPE, scale, softcap or sink logits";
            });
    return owner.k_factor;
}

LayerNodes read_layer(ggml_tensor *attention, const CacheWrites &writes, const std::vector<LayerNodes> &layers) {
    ggml_tensor *const q = attention->src[0], *const k = attention->src[1], *const v = attention->src[2];
    require(data_owner(k) != data_owner(v),
            "K and V share a tensor: multi-head latent attention (MLA) is not supported");
    require(op_param_f32(attention, 1) == 0, "ALiBi is not supported by this adapter");
    require(attention->op_params[4] == 0, "sparse attention (top-k keys only) is not supported");
    require(q->ne[3] == 1, "attention over several streams is not supported");

    LayerNodes layer;
    LayerShape &shape = layer.shape;
    layer.attention = attention;
    layer.mask = attention->src[3];
    shape.head_dim = q->ne[0];
    shape.n_q_heads = q->ne[2];
    shape.n_kv_heads = k->ne[2];
    shape.head_dim_v = v->ne[0];
    shape.softcap = op_param_f32(attention, 2);
    const std::int64_t n_tokens = q->ne[1];
    shape.sink_logits = attention->src[4];
    require(!shape.sink_logits || (shape.sink_logits->type == GGML_TYPE_F32 &&
                                   api().ggml_nelements(shape.sink_logits) == shape.n_q_heads),
            "learned sink logits are not one F32 per query head");

    require(q->op == GGML_OP_PERMUTE && q->src[0]->ne[1] == q->ne[2] && q->src[0]->ne[2] == q->ne[1],
            [&] { return "Q reaches attention through " + describe(q) + ", which is not supported"; });
    const HeadsShape q_shape{shape.head_dim, shape.n_q_heads, n_tokens};
    const Source q_source = find_source(q->src[0], q_shape);
    shape.has_rope = q_source.rope != nullptr;
    layer.q = unrotated(q_source, "Q", shape.has_rope);
    require_heads_apart(layer.q, "Q", q_shape);
    layer.weights.push_back(weight_of(layer.q));
    if (shape.has_rope) {
        shape.rope = read_rope(q_source.rope);
        layer.positions = q_source.rope->src[1];
        const std::int64_t n_positions = shape.rope.n_positions();
        require(layer.positions->type == GGML_TYPE_I32 && layer.positions->ne[0] == n_positions * n_tokens,
                [&] { return "positions are not " + std::to_string(n_positions) + " I32 per token"; });
    }
    const double scale_of_q = double(op_param_f32(attention, 0)) * q_source.factor;
    shape.kv_of = owner_of(attention, layers);
    if (shape.shares()) {
        layer.k_factor = shared_k_factor(shape, layers[static_cast<std::size_t>(shape.kv_of)], scale_of_q);
    } else {
        read_kv(layer, q_source, writes, {shape.head_dim, shape.n_kv_heads, n_tokens});
    }
    shape.scale = scale_of_q * layer.k_factor;
    return layer;
}

// The number of layers with attention is not known in advance. One that attends in another way would go on with
// llama.cpp's own cache, which holds too little.
void require_all_read(const CacheWrites &writes, const std::vector<ggml_tensor *> &attentions) {
    for (const auto &[cache, write] : writes) {
        const auto reads = [&cache = cache](const ggml_tensor *attention) {
            return data_owner(attention->src[1]) == cache || data_owner(attention->src[2]) == cache;
        };
        // Other writes go into what the graph has computed.
        require(cache->op != GGML_OP_NONE || std::any_of(attentions.begin(), attentions.end(), reads),
                [&cache = cache] { return "no FLASH_ATTN_EXT node reads " + describe(cache) + ", which is written"; });
    }
}

}  // namespace

bool LayerShape::operator==(const LayerShape &o) const {
    return n_q_heads == o.n_q_heads && n_kv_heads == o.n_kv_heads && head_dim == o.head_dim &&
           head_dim_v == o.head_dim_v && scale == o.scale && softcap == o.softcap && has_rope == o.has_rope &&
           (!has_rope || rope == o.rope) && sink_logits == o.sink_logits && kv_of == o.kv_of &&
           device == o.device;
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
    if (api().llama_model_is_diffusion(model)) {
        return because("a diffusion model is not supported");
    }
    if (api().llama_model_has_encoder(model) || !api().llama_model_has_decoder(model)) {
        return because("a model with an encoder is not supported");
    }
    const std::string kv_lora_rank = metadata(model, arch + ".attention.kv_lora_rank");
    if (!kv_lora_rank.empty() && kv_lora_rank != "0") {
        return because("multi-head latent attention (MLA, rank " + kv_lora_rank + ") is not supported");
    }
    const bool is_hybrid = api().llama_model_is_hybrid(model);
    if (is_hybrid && api().llama_model_n_swa(model) > 0) {
        // The probe of the windows copies sequences in a way that recurrent layers cannot follow.
        return because("sliding windows in a model with recurrent layers are not supported");
    }
    switch (api().llama_model_rope_type(model)) {
    case LLAMA_ROPE_TYPE_NORM:
    case LLAMA_ROPE_TYPE_NEOX:
    case LLAMA_ROPE_TYPE_MROPE:
    case LLAMA_ROPE_TYPE_IMROPE:
        return {};
    case LLAMA_ROPE_TYPE_NONE:
        return is_hybrid ? std::string() : because("a model without RoPE is not supported by this adapter");
    default:
        return because("RoPE type " + std::to_string(api().llama_model_rope_type(model)) + " is not supported");
    }
}

std::vector<LayerNodes> read_graph(ggml_cgraph *graph, const GraphTraits &traits) {
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
    const auto n_layers = static_cast<std::size_t>(traits.n_layers);
    require(traits.is_hybrid ? !attentions.empty() && attentions.size() <= n_layers : attentions.size() == n_layers,
            [&] {
                return "the graph has " + std::to_string(attentions.size()) + " FLASH_ATTN_EXT nodes for " +
                       std::to_string(n_layers) + " layers";
            });
    if (traits.is_hybrid) {
        require_all_read(writes, attentions);
    }
    std::vector<LayerNodes> layers;
    for (ggml_tensor *attention : attentions) {
        try {
            require(attention->src[3] && attentions[0]->src[3], "it has no mask");
            require(traits.windows_differ || data_owner(attention->src[3]) == data_owner(attentions[0]->src[3]),
                    "its mask is not that of layer 0, and the model's metadata do not name a window");
            layers.push_back(read_layer(attention, writes, layers));
        } catch (const NotSupported &e) {
            throw NotSupported("layer " + std::to_string(layers.size()) + ": " + e.what());
        }
    }
    const auto with_rope = std::find_if(layers.begin(), layers.end(), [](const auto &l) { return l.shape.has_rope; });
    require(with_rope != layers.end() || traits.is_hybrid,
            "no layer has RoPE, by whose positions the tokens of a graph are known");
    for (LayerNodes &layer : layers) {
        if (!layer.shape.has_rope && with_rope != layers.end()) {
            layer.positions = with_rope->positions;
        }
    }
    return layers;
}

}  // namespace llama_cpp
}  // namespace sinkcache
