#include "attention_plugin.hpp"

#include <string>

namespace inflight {
namespace {

/** The cache's parallel loop, by the engine's threads. */
void run_on_team(void *team, std::uint32_t n, skc_task_fn task, void *data) noexcept {
    static_cast<ThreadTeam *>(team)->run(n, [=](std::size_t i) { task(data, static_cast<std::uint32_t>(i)); });
}

sinkcache::Config cache_config(const PluginConfig &c) {
    sinkcache::Layer layer(c.n_sink, c.window);
    layer.room(c.max_pinned, c.max_segments);
    // In a GGUF of a Llama the rows of W_q and W_k are permuted for interleaved RoPE.
    layer.rope_style = c.rope_neox ? SKC_ROPE_NEOX : SKC_ROPE_INTERLEAVED;
    layer.rope_dim = c.rope_dim;
    layer.scale = c.scale;
    layer.softcap = c.softcap;
    layer.inv_freq = c.inv_freq.empty() ? nullptr : c.inv_freq.data();
    layer.n_inv_freq = static_cast<std::uint32_t>(c.inv_freq.size());
    sinkcache::Config config;
    config.heads(c.n_q_heads, c.n_kv_heads, c.head_dim).types(SKC_DTYPE_F32, SKC_DTYPE_F32).seqs(c.max_seqs);
    config.storage(c.k_dtype, c.v_dtype);
    std::vector<sinkcache::Layer> layers(c.n_layers, layer);
    for (std::uint32_t i = 0; i < c.n_layers; i++) {
        layers[i].rope_base = c.layers[i].rope_base;
        layers[i].rope_scale = c.layers[i].rope_scale;
        if (c.layers[i].window != 0) {
            // As the model was trained: all of the window, and nothing else.
            layers[i].n_sink = 0;
            layers[i].window = c.layers[i].window;
            layers[i].max_pinned = 0;
        }
    }
    for (std::uint32_t i = 1; c.local_window != 0 && i < c.n_layers; i += 2) {
        layers[i].window = c.local_window;
        layers[i].max_pinned = 0;
    }
    config.layers(layers).max_chunk(c.chunk).max_rewind(c.max_draft).threads(c.n_threads);
    if (c.team) {
        config.parallel_for(run_on_team, c.team);
    }
    config.raw().alloc = c.alloc;
    config.raw().free = c.free;
    config.raw().memory_user = c.memory_user;
    if (c.cuda) {
        config.cuda(c.cuda_device);
    }
    return config;
}

}  // namespace

AttentionPlugin::AttentionPlugin(const PluginConfig &config)
    : q_heads_(config.n_q_heads), kv_heads_(config.n_kv_heads), dim_(config.head_dim), max_seqs_(config.max_seqs),
      chunk_(config.chunk), max_draft_(config.max_draft), n_sink_(config.n_sink), window_(config.window),
      max_pinned_(config.max_pinned), reference_layer_(reference_layer(config.layers)), shard_(config.shard),
      cache_(cache_config(config)) {}

CacheBytes AttentionPlugin::bytes(const PluginConfig &config) {
    const auto [host, device] = cache_config(config).bytes();
    return {host, device};
}

AttentionPlugin::Packed AttentionPlugin::packed(const float *qkv, float *out) const {
    const std::int64_t row = std::int64_t{q_heads_ + 2 * kv_heads_} * dim_;
    const float *k = qkv + std::size_t{q_heads_} * dim_;
    return {{qkv, row}, {k, row}, {k + std::size_t{kv_heads_} * dim_, row}, {out}};
}

void AttentionPlugin::enqueue(const EnqueueArgs &args, const Ids &seq_ids, const Ids &n_tokens) {
    const Packed p = packed(args.qkv, args.out);
    cache_.stream(args.stream);
    cache_.step(args.layer, {seq_ids, n_tokens, true}, {p.k, p.v}, {p.q, p.out});
}

void AttentionPlugin::enqueue_decode(const EnqueueArgs &args, const std::int32_t *seq_ids, const std::int32_t *n_tokens,
                                     std::uint32_t n_entries) {
    const Packed p = packed(args.qkv, args.out);
    cache_.stream(args.stream);
    const sinkcache::DeviceBatch batch{seq_ids, n_tokens, n_entries, n_entries, 1};
    cache_.step(args.layer, batch, {p.k, p.v}, {p.q, p.out});
}

void AttentionPlugin::check_device() {
    const skc_device_error e = cache_.poll_error();
    if (e.n_skipped != 0) {
        throw sinkcache::Error(e.status, "the device skipped " + std::to_string(e.n_skipped) +
                                             " entries, the first of sequence " + std::to_string(e.seq_id) +
                                             " in layer " + std::to_string(e.layer));
    }
}

}  // namespace inflight
