#include "sinkcache_llama.hpp"

#include "attention.hpp"
#include "batch.hpp"
#include "errors.hpp"
#include "graph.hpp"
#include "sequences.hpp"

#include <llama-cpp.h>

#include <algorithm>
#include <string>
#include <vector>

namespace sinkcache {
namespace {

using namespace llama_cpp;

/** Settings of a layer, which point into `inv_freq` where RoPE needs explicit frequencies. */
skc_layer_config layer_config(const LayerShape &shape, const LlamaOptions &options, std::vector<float> &inv_freq) {
    Layer layer(options.n_sink, options.window);
    layer.room(options.max_pinned, options.max_segments);
    const RopeParams &rope = shape.rope;
    layer.rope_style = rope.mode == GGML_ROPE_TYPE_NEOX ? SKC_ROPE_NEOX : SKC_ROPE_INTERLEAVED;
    layer.rope_dim = static_cast<std::uint32_t>(rope.n_dims);
    layer.rope_mscale = rope.mscale();
    layer.scale = shape.scale;
    layer.softcap = shape.softcap;
    if (rope.is_linear()) {
        layer.rope_base = rope.base;
        layer.rope_scale = rope.scale;
    } else {
        inv_freq = rope.inv_freq();
        layer.inv_freq = inv_freq.data();
        layer.n_inv_freq = static_cast<std::uint32_t>(inv_freq.size());
    }
    return layer;
}

void check_params(const llama_model *model, const llama_context_params &p, const LlamaOptions &o) {
    if (!model) {
        invalid_config("the model is NULL");
    }
    if (p.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL) {
        invalid_config(
            "attention_type LLAMA_ATTENTION_TYPE_NON_CAUSAL is not supported: attention over a stream is causal");
    }
    if (p.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT || p.ctx_other) {
        invalid_config("ctx_type " + std::to_string(p.ctx_type) +
                       " and ctx_other are not supported: they share a cache");
    }
    if (p.n_batch == 0 || p.n_batch > (1U << 20)) {
        invalid_config("n_batch " + std::to_string(p.n_batch) + ": allowed are 1 to 1048576");
    }
    const auto max_seqs = static_cast<std::uint32_t>(llama_max_parallel_sequences()) - 1;
    if (o.n_seqs == 0 || o.n_seqs > max_seqs) {
        invalid_config("n_seqs " + std::to_string(o.n_seqs) + ": allowed are 1 to " + std::to_string(max_seqs));
    }
    for (std::size_t i = 0; i < p.n_samplers; ++i) {
        if (p.samplers[i].seq_id < 0 || static_cast<std::uint32_t>(p.samplers[i].seq_id) >= o.n_seqs) {
            invalid_config("a sampler for sequence " + std::to_string(p.samplers[i].seq_id) + ": n_seqs is " +
                           std::to_string(o.n_seqs));
        }
    }
}

/** Tokens of a range as the cache takes them. */
std::int32_t range_length(const char *edit, std::uint32_t n) {
    if (n > 0x7fffffffU) {
        throw Error(SKC_STATUS_OUT_OF_RANGE,
                    std::string(edit) + " of " + std::to_string(n) + " tokens: at most 2147483647 are allowed");
    }
    return static_cast<std::int32_t>(n);
}

/** Tokens whose logits or embeddings llama.cpp computes: those marked in `logits`, which if NULL means the last one. */
std::uint32_t count_outputs(const llama_batch &batch, bool embeddings) {
    if (embeddings) {
        return static_cast<std::uint32_t>(batch.n_tokens);
    }
    if (!batch.logits) {
        return 1;
    }
    const auto n = std::count_if(batch.logits, batch.logits + batch.n_tokens, [](auto x) { return x != 0; });
    return static_cast<std::uint32_t>(n);
}

}  // namespace

struct LlamaContext::Impl {
    llama_model *model;
    std::vector<LayerShape> shapes;
    /** Why the model or a graph is not supported; empty if nothing was found. */
    std::string unsupported;
    Attention attention;
    ggml_abort_callback user_abort = nullptr;
    void *user_abort_data = nullptr;
    std::uint32_t n_threads = 1;
    std::uint32_t n_outputs_max = 1;
    bool embeddings = false;
    std::uint64_t bytes = 0;
    // Members are destroyed in reverse order: the context first, since it uses the cache and the sampler.
    std::unique_ptr<Cache> cache;
    llama_sampler_ptr graph_hook;
    llama_context_ptr ctx;
    std::unique_ptr<Sequences> sequences;

    Impl(llama_model *m, const llama_context_params &params, const LlamaOptions &options)
        : model(m), attention(static_cast<std::size_t>(std::max(0, llama_model_n_layer(m)))) {
        unsupported = unsupported_reason(m);
        if (!unsupported.empty()) {
            invalid_config(unsupported);
        }
        make_context(params, options);
        make_cache(options);
        sequences = std::make_unique<Sequences>(ctx.get(), options.n_seqs);
    }

    void make_context(llama_context_params p, const LlamaOptions &options);
    void make_cache(const LlamaOptions &options);
    void on_graph(ggml_context *graph_ctx, ggml_cgraph *graph);
    void roll_back(const BatchPlan &plan);
    std::uint64_t length(llama_seq_id seq_id) const { return cache->info(seq_id).length_min; }
};

// llama.cpp passes each graph it builds, before it allocates its nodes, to samplers that can run in a backend. This
// sampler belongs to a sequence without tokens, so that the logits of all others are returned as usual.
void LlamaContext::Impl::make_context(llama_context_params p, const LlamaOptions &options) {
    static llama_sampler_i iface = [] {
        llama_sampler_i i{};
        i.name = [](const llama_sampler *) { return "sinkcache"; };
        i.apply = [](llama_sampler *, llama_token_data_array *) {};
        i.clone = [](const llama_sampler *s) { return llama_sampler_init(s->iface, s->ctx); };
        i.backend_init = [](llama_sampler *, ggml_backend_buffer_type_t, std::uint32_t) { return true; };
        i.backend_apply = [](llama_sampler *s, ggml_context *graph_ctx, ggml_cgraph *graph, llama_sampler_data *data) {
            // Nothing is sampled. Otherwise llama.cpp would copy all logits for this sampler.
            data->logits = nullptr;
            static_cast<Impl *>(s->ctx)->on_graph(graph_ctx, graph);
        };
        return i;
    }();
    graph_hook.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(graph_hook.get(), llama_sampler_init(&iface, this));
    std::vector<llama_sampler_seq_config> samplers(p.samplers, p.samplers + p.n_samplers);
    samplers.push_back({static_cast<llama_seq_id>(options.n_seqs), graph_hook.get()});
    p.samplers = samplers.data();
    p.n_samplers = samplers.size();

    // llama.cpp aborts the process if n_batch or n_outputs_max is below the number of sequences, the hook's included.
    p.n_seq_max = options.n_seqs + 1;
    p.n_batch = std::max(p.n_batch, p.n_seq_max);
    p.n_outputs_max = p.n_outputs_max == 0 ? p.n_batch : std::max(p.n_outputs_max, p.n_seq_max);
    n_outputs_max = p.n_outputs_max;
    embeddings = p.embeddings;
    // Room for a batch and the last token of each sequence.
    p.n_ctx = p.n_batch + options.n_seqs;
    p.n_ubatch = p.n_ubatch == 0 ? p.n_batch : std::min(p.n_ubatch, p.n_batch);
    p.kv_unified = true;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    p.type_k = GGML_TYPE_F16;
    p.type_v = GGML_TYPE_F16;
    user_abort = p.abort_callback;
    user_abort_data = p.abort_callback_data;
    p.abort_callback = [](void *self) {
        auto &impl = *static_cast<Impl *>(self);
        return impl.attention.error.is_set() || (impl.user_abort && impl.user_abort(impl.user_abort_data));
    };
    p.abort_callback_data = this;
    n_threads = static_cast<std::uint32_t>(std::max({1, p.n_threads, p.n_threads_batch}));

    ctx.reset(llama_init_from_model(model, p));
    if (!unsupported.empty()) {
        invalid_config(unsupported);
    }
    if (!ctx) {
        throw Error(SKC_STATUS_INTERNAL, "llama_init_from_model failed: llama.cpp's log has the reason");
    }
    if (shapes.empty()) {
        invalid_config("llama.cpp passed no graph to a backend sampler: this version of llama.cpp is not supported");
    }
}

void LlamaContext::Impl::make_cache(const LlamaOptions &options) {
    const LayerShape &first = shapes.front();
    std::vector<std::vector<float>> inv_freqs(shapes.size());
    std::vector<skc_layer_config> layers;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        const LayerShape &s = shapes[i];
        if (s.n_q_heads != first.n_q_heads || s.n_kv_heads != first.n_kv_heads || s.head_dim != first.head_dim ||
            s.head_dim_v != first.head_dim_v) {
            invalid_config("layer " + std::to_string(i) +
                           " differs from layer 0 in head counts or head dims: all layers must have the same");
        }
        try {
            layers.push_back(layer_config(s, options, inv_freqs[i]));
        } catch (const NotSupported &e) {
            invalid_config("layer " + std::to_string(i) + ": " + e.what());
        }
        // llama.cpp chooses the LongRoPE factors by n_ctx, which is the room for a batch here.
        const std::string factors = s.rope.freq_factors ? s.rope.freq_factors->name : "";
        const std::uint64_t held = std::uint64_t(options.n_sink) + options.max_pinned + options.window;
        const bool beyond = held > static_cast<std::uint64_t>(s.rope.n_ctx_orig);
        if (factors.find(beyond ? "rope_factors_short" : "rope_factors_long") != std::string::npos) {
            invalid_config("LongRoPE has other frequencies above " + std::to_string(s.rope.n_ctx_orig) +
                           " tokens: n_sink + max_pinned + window = " + std::to_string(held) +
                           " and n_batch + n_seqs = " + std::to_string(llama_n_ctx(ctx.get())) +
                           " (padded) must be both above it or both not");
        }
    }
    const auto n32 = [](std::int64_t n) { return static_cast<std::uint32_t>(n); };
    Config config;
    config.heads(n32(first.n_q_heads), n32(first.n_kv_heads), n32(first.head_dim), n32(first.head_dim_v))
        .types(SKC_DTYPE_F32, options.kv_dtype)
        .storage(options.k_dtype, options.v_dtype)
        .seqs(options.n_seqs)
        .layers(layers)
        // So that roll_back() can remove a whole micro-batch.
        .max_chunk(llama_n_ubatch(ctx.get()))
        .max_rewind(std::max(options.max_rewind, llama_n_ubatch(ctx.get())))
        .threads(n_threads);
    bytes = config.bytes().first;
    cache = std::make_unique<Cache>(config);
    attention.set_cache(cache->handle());
}

// Called from llama.cpp, through which nothing may be thrown.
void LlamaContext::Impl::on_graph(ggml_context *graph_ctx, ggml_cgraph *graph) try {
    if (ggml_graph_n_nodes(graph) == 0) {
        return;  // llama.cpp also counts the nodes that a sampler adds, with an empty graph.
    }
    const auto layers = read_graph(graph, llama_model_n_layer(model));
    if (shapes.empty()) {
        for (const auto &layer : layers) {
            shapes.push_back(layer.shape);
        }
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
        if (!(layers[i].shape == shapes[i])) {
            throw NotSupported("layer " + std::to_string(i) + ": its attention differs from that of earlier graphs");
        }
    }
    attention.install(graph_ctx, layers);
} catch (const std::exception &e) {
    unsupported = e.what();
    attention.error.set(SKC_STATUS_INVALID_CONFIG, unsupported);
}

// Rewinds the cache to the micro-batches that llama.cpp has completed. Of the one that failed, some layers have
// appended the tokens, or all of them if it failed after the last attention.
void LlamaContext::Impl::roll_back(const BatchPlan &plan) {
    for (const BatchEntry &entry : plan.entries) {
        try {
            cache->abort_step({entry.seq_id});
            const std::uint64_t appended = length(entry.seq_id) - entry.length_before;
            const auto completed = static_cast<std::uint64_t>(sequences->uncommitted(entry.seq_id));
            if (appended > completed) {
                cache->rewind({entry.seq_id}, {static_cast<std::int32_t>(appended - completed)});
            }
        } catch (const Error &) {
            sequences->mark_broken(entry.seq_id);
        }
    }
}

LlamaContext::LlamaContext(llama_model *model, llama_context_params params, const LlamaOptions &options) {
    check_params(model, params, options);
    impl_ = std::make_unique<Impl>(model, params, options);
}
LlamaContext::~LlamaContext() = default;
LlamaContext::LlamaContext(LlamaContext &&) noexcept = default;
LlamaContext &LlamaContext::operator=(LlamaContext &&) noexcept = default;

llama_context *LlamaContext::get() const noexcept { return impl_->ctx.get(); }
std::uint64_t LlamaContext::cache_bytes() const noexcept { return impl_->bytes; }

void LlamaContext::decode(const llama_batch &batch) {
    Impl &impl = *impl_;
    llama_context *const ctx = impl.ctx.get();
    impl.attention.error.rethrow();
    impl.sequences->check_unmodified();
    const auto threads = static_cast<std::uint32_t>(std::max(llama_n_threads(ctx), llama_n_threads_batch(ctx)));
    if (threads > impl.n_threads) {
        invalid_argument("llama_set_n_threads raised the threads to " + std::to_string(threads) +
                         ": the cache was created for " + std::to_string(impl.n_threads));
    }
    BatchPlan plan = plan_batch(batch, ctx, *impl.cache, *impl.sequences);
    const std::uint32_t n_outputs = count_outputs(batch, impl.embeddings);
    if (n_outputs > impl.n_outputs_max) {
        invalid_argument("logits of " + std::to_string(n_outputs) +
                         " tokens: allowed are n_outputs_max = " + std::to_string(impl.n_outputs_max));
    }

    impl.sequences->assign_positions(plan);
    llama_batch positioned = batch;
    positioned.pos = plan.positions.data();
    impl.attention.begin(plan, llama_n_ubatch(ctx));
    const std::int32_t result = llama_decode(ctx, positioned);
    llama_synchronize(ctx);
    const std::int64_t rows = impl.attention.end();
    if (result != 0 || rows != batch.n_tokens || impl.attention.error.is_set()) {
        impl.roll_back(plan);
    }
    for (const BatchEntry &entry : plan.entries) {
        impl.sequences->commit(entry.seq_id,
                               static_cast<std::int64_t>(impl.length(entry.seq_id) - entry.length_before));
    }
    impl.attention.error.rethrow();
    if (result != 0) {
        invalid_argument("llama_decode returned " + std::to_string(result) +
                         (result == 2 ? ": aborted by an abort callback" : ": llama.cpp's log has the reason"));
    }
    if (rows != batch.n_tokens) {
        throw Error(SKC_STATUS_INTERNAL, "a layer computed attention without the cache: the sampler of sequence " +
                                             std::to_string(impl.sequences->count()) +
                                             " must not be removed or replaced");
    }
}

void LlamaContext::rewind(llama_seq_id seq_id, std::uint32_t n) {
    Impl &impl = *impl_;
    impl.sequences->usable(seq_id);
    impl.sequences->check_unmodified();
    const std::uint64_t length = impl.length(seq_id);
    if (n > length || n > 0x7fffffffU) {
        throw Error(SKC_STATUS_OUT_OF_RANGE, "rewind by " + std::to_string(n) + ": sequence " + std::to_string(seq_id) +
                                                 " has " + std::to_string(length) + " tokens");
    }
    impl.cache->rewind({seq_id}, {static_cast<std::int32_t>(n)});
    impl.sequences->drop(seq_id);
}

void LlamaContext::pin(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n) {
    impl_->sequences->usable(seq_id);
    impl_->cache->pin({seq_id}, {first}, {range_length("pin", n)});
}

void LlamaContext::evict_range(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n) {
    impl_->sequences->usable(seq_id);
    impl_->cache->evict_range({seq_id}, {first}, {range_length("evict_range", n)});
}

void LlamaContext::clear(llama_seq_id seq_id, std::uint64_t start_position) {
    impl_->sequences->existing(seq_id);
    impl_->cache->reset({seq_id}, {start_position});
    impl_->sequences->clear(seq_id);
}

std::vector<std::uint8_t> LlamaContext::save(llama_seq_id seq_id, const HostTag &tag) const {
    impl_->sequences->usable(seq_id);
    return impl_->cache->save(seq_id, tag);
}

void LlamaContext::load(llama_seq_id seq_id, const std::vector<std::uint8_t> &saved, const HostTag &tag) {
    impl_->sequences->existing(seq_id);
    impl_->cache->load(seq_id, saved, tag);
    // What llama.cpp's own cache holds belongs to the sequence of before. Any position may follow.
    impl_->sequences->clear(seq_id);
}

std::uint64_t LlamaContext::length(llama_seq_id seq_id) const {
    impl_->sequences->existing(seq_id);
    return impl_->length(seq_id);
}

}  // namespace sinkcache
