#include "cache_config.hpp"

#include "errors.hpp"
#include "llama_api.hpp"
#include "op_loop.hpp"

#include <algorithm>
#include <string>

namespace sinkcache {
namespace llama_cpp {
namespace {

bool fits_one_cache(const LayerShape &a, const LayerShape &b) {
    return a.device == b.device && a.n_q_heads == b.n_q_heads && a.n_kv_heads == b.n_kv_heads &&
           a.head_dim == b.head_dim && a.head_dim_v == b.head_dim_v;
}

// llama.cpp chooses the LongRoPE factors by n_ctx, which is the room for a batch here.
void check_long_rope(const RopeParams &rope, const CacheSettings &settings, std::uint32_t n_ctx) {
    const std::string factors = rope.freq_factors ? rope.freq_factors->name : "";
    const std::uint64_t held = std::uint64_t(settings.n_sink) + settings.max_pinned + settings.window;
    const bool beyond = held > static_cast<std::uint64_t>(rope.n_ctx_orig);
    if (factors.find(beyond ? "rope_factors_short" : "rope_factors_long") != std::string::npos) {
        invalid_config("LongRoPE has other frequencies above " + std::to_string(rope.n_ctx_orig) +
                       " tokens: n_sink + max_pinned + window = " + std::to_string(held) +
                       " and n_batch + n_seqs = " + std::to_string(n_ctx) +
                       " (padded) must be both above it or both not");
    }
}

}  // namespace

/** Settings of a layer. `sliding_window` is the model's own, 0 for a layer without one. */
skc_layer_config CacheConfigs::layer_config(const LayerShape &shape, std::uint32_t sliding_window,
                                            const CacheSettings &settings, LayerArrays &arrays) {
    // A layer with a window of its own sees no sinks: the model was trained without.
    Layer layer(sliding_window ? 0 : settings.n_sink, sliding_window ? sliding_window : settings.window);
    layer.room(sliding_window ? 0 : settings.max_pinned, settings.max_segments);
    layer.scale = shape.scale;
    layer.softcap = shape.softcap;
    if (shape.sink_logits) {
        require(shape.sink_logits->buffer && shape.sink_logits->data, "its learned sink logits have no data");
        arrays.sink_logits.resize(static_cast<std::size_t>(shape.n_q_heads));
        api().ggml_backend_tensor_get(shape.sink_logits, arrays.sink_logits.data(), 0,
                                      arrays.sink_logits.size() * sizeof(float));
        layer.sink_logits = arrays.sink_logits.data();
        layer.n_sink_logits = static_cast<std::uint32_t>(arrays.sink_logits.size());
    }
    if (!shape.has_rope) {
        layer.position_mode = SKC_POSITION_NONE;
        return layer;
    }
    const RopeParams &rope = shape.rope;
    layer.rope_style = rope.is_neox() ? SKC_ROPE_NEOX : SKC_ROPE_INTERLEAVED;
    layer.rope_dim = static_cast<std::uint32_t>(rope.n_dims);
    layer.rope_mscale = rope.mscale();
    if (rope.is_linear()) {
        layer.rope_base = rope.base;
        layer.rope_scale = rope.scale;
    } else {
        arrays.inv_freq = rope.inv_freq();
        layer.inv_freq = arrays.inv_freq.data();
        layer.n_inv_freq = static_cast<std::uint32_t>(arrays.inv_freq.size());
    }
    return layer;
}

CacheConfigs::CacheConfigs(const std::vector<LayerShape> &shapes, const std::vector<std::uint32_t> &windows,
                           const CacheSettings &settings, const ContextSizes &sizes, OpLoop &loop)
    : arrays_(shapes.size()), places_(shapes.size()) {
    // Of each cache one of the model's layers that it has. Those with full attention come first: of edits that not all
    // layers can make, they refuse most, and then nothing has changed.
    std::vector<std::size_t> examples;
    const auto cache_of = [&](std::size_t layer) {
        return static_cast<std::size_t>(
            std::find_if(examples.begin(), examples.end(),
                         [&](std::size_t example) { return fits_one_cache(shapes[example], shapes[layer]); }) -
            examples.begin());
    };
    for (const bool slides : {false, true}) {
        for (std::size_t i = 0; i < shapes.size(); ++i) {
            if (!shapes[i].shares() && (windows[i] > 0) == slides && cache_of(i) == examples.size()) {
                examples.push_back(i);
            }
        }
    }
    std::vector<std::vector<skc_layer_config>> layers(examples.size());
    bool any_shares = false;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        const LayerShape &shape = shapes[i];
        if (shape.shares()) {
            const auto owner = static_cast<std::size_t>(shape.kv_of);
            if (windows[i] != windows[owner]) {
                invalid_config("layer " + std::to_string(i) + " reads the K and V of layer " + std::to_string(owner) +
                               " with another sliding window, which is not supported");
            }
            places_[i] = places_[owner];
            any_shares = true;
            continue;
        }
        const std::size_t cache = cache_of(i);
        places_[i] = {cache, static_cast<std::uint32_t>(layers[cache].size())};
        try {
            layers[cache].push_back(layer_config(shape, windows[i], settings, arrays_[i]));
        } catch (const NotSupported &e) {
            invalid_config("layer " + std::to_string(i) + ": " + e.what());
        }
        if (shape.has_rope) {
            check_long_rope(shape.rope, settings, sizes.n_ctx);
        }
    }
    for (std::size_t c = 0; c < layers.size(); ++c) {
        const LayerShape &shape = shapes[examples[c]];
        const auto n32 = [](std::int64_t n) { return static_cast<std::uint32_t>(n); };
        Config config;
        config.heads(n32(shape.n_q_heads), n32(shape.n_kv_heads), n32(shape.head_dim), n32(shape.head_dim_v))
            .types(SKC_DTYPE_F32, settings.k_dtype)
            .storage(settings.k_dtype, settings.v_dtype)
            .seqs(settings.n_seqs)
            .layers(layers[c])
            .max_chunk(sizes.n_ubatch)
            .max_rewind(settings.max_rewind)
            .threads(sizes.n_threads);
        if (shape.device != ON_CPU) {
            config.cuda(static_cast<std::uint32_t>(shape.device)).threads(1);
        } else if (any_shares) {
            config.parallel_for(&OpLoop::parallel_for, &loop);
        }
        configs_.push_back(config);
    }
}

std::uint64_t CacheConfigs::bytes() const {
    std::uint64_t all = 0;
    for (const Config &config : configs_) {
        const auto [on_host, on_device] = config.bytes();
        all += on_host + on_device;
    }
    return all;
}

}  // namespace llama_cpp
}  // namespace sinkcache
