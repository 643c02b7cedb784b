#include "sinkcache_llama.hpp"

#include "attention.hpp"
#include "batch.hpp"
#include "graph.hpp"
#include "sequences.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace sinkcache {
namespace {

using namespace llama_cpp;

[[noreturn]] void refuse(const std::string &reason) { throw Error(SKC_STATUS_INVALID_CONFIG, reason); }
[[noreturn]] void refuse_batch(const std::string &reason) { throw Error(SKC_STATUS_INVALID_ARGUMENT, reason); }

struct FreeContext {
    void operator()(llama_context *ctx) const { llama_free(ctx); }
};
struct FreeSampler {
    void operator()(llama_sampler *sampler) const { llama_sampler_free(sampler); }
};

skc_layer_config layer_config(const LayerShape &shape, const LlamaOptions &options, std::vector<float> &frequencies) {
    Layer layer(options.n_sink, options.window);
    const Rope &rope = shape.rope;
    layer.rope_style = rope.mode == GGML_ROPE_TYPE_NEOX ? SKC_ROPE_NEOX : SKC_ROPE_INTERLEAVED;
    layer.rope_dim = static_cast<std::uint32_t>(rope.n_dims);
    layer.rope_mscale = rope.mscale();
    layer.scale = shape.scale;
    layer.softcap = shape.softcap;
    if (rope.plain()) {
        layer.rope_base = rope.base;
        layer.rope_scale = rope.scale;
    } else {
        frequencies = rope.frequencies();
        layer.inv_freq = frequencies.data();
        layer.n_inv_freq = static_cast<std::uint32_t>(frequencies.size());
    }
    return layer;
}

void check_params(const llama_model *model, const llama_context_params &p, const LlamaOptions &o) {
    if (!model) {
        refuse("the model is NULL");
    }
    if (p.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL) {
        refuse("attention_type LLAMA_ATTENTION_TYPE_NON_CAUSAL: a stream is causal");
    }
    if (p.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT || p.ctx_other) {
        refuse("ctx_type " + std::to_string(p.ctx_type) + " and ctx_other are not supported: they share a cache");
    }
    if (p.n_batch == 0 || p.n_batch > (1U << 20)) {
        refuse("n_batch " + std::to_string(p.n_batch) + ": allowed are 1 to 1048576");
    }
    const auto most = static_cast<std::uint32_t>(llama_max_parallel_sequences()) - 1;
    if (o.n_seqs == 0 || o.n_seqs > most) {
        refuse("n_seqs " + std::to_string(o.n_seqs) + ": allowed are 1 to " + std::to_string(most));
    }
    for (std::size_t i = 0; i < p.n_samplers; ++i) {
        if (p.samplers[i].seq_id < 0 || static_cast<std::uint32_t>(p.samplers[i].seq_id) >= o.n_seqs) {
            refuse("a sampler for sequence " + std::to_string(p.samplers[i].seq_id) + ": n_seqs is " +
                   std::to_string(o.n_seqs));
        }
    }
}

}  // namespace

struct LlamaContext::Impl {
    llama_model *model;
    std::vector<LayerShape> shapes;
    std::string refusal;
    Attention attention;
    ggml_abort_callback user_abort = nullptr;
    void *user_abort_data = nullptr;
    std::uint32_t n_threads = 1;
    std::uint32_t n_outputs_max = 1;
    bool embeddings = false;
    std::uint64_t bytes = 0;
    // The context works with the cache and calls the sampler, so it goes first: members end in reverse order.
    std::unique_ptr<Cache> cache;
    std::unique_ptr<llama_sampler, FreeSampler> hook;
    std::unique_ptr<llama_context, FreeContext> ctx;
    std::unique_ptr<Sequences> sequences;

    Impl(llama_model *m, const llama_context_params &params, const LlamaOptions &options)
        : model(m), attention(static_cast<std::size_t>(std::max(0, llama_model_n_layer(m)))) {
        refusal = refuse_model(m);
        if (!refusal.empty()) {
            refuse(refusal);
        }
        make_context(params, options);
        make_cache(options);
        sequences = std::make_unique<Sequences>(ctx.get(), options.n_seqs);
    }

    void make_context(llama_context_params p, const LlamaOptions &options);
    void make_cache(const LlamaOptions &options);
    void see_graph(ggml_context *graph_ctx, ggml_cgraph *graph);
    void settle(const Job &job);
    std::uint64_t length(llama_seq_id seq_id) const { return cache->info(seq_id).length_min; }
};

// llama.cpp shows each graph it builds, before memory is given to its nodes, to samplers that say they run in a backend.
// This one belongs to a sequence that no token has, so that logits of all others come back as always.
void LlamaContext::Impl::make_context(llama_context_params p, const LlamaOptions &options) {
    static llama_sampler_i iface = [] {
        llama_sampler_i i{};
        i.name = [](const llama_sampler *) { return "sinkcache"; };
        i.apply = [](llama_sampler *, llama_token_data_array *) {};
        i.clone = [](const llama_sampler *s) { return llama_sampler_init(s->iface, s->ctx); };
        i.backend_init = [](llama_sampler *, ggml_backend_buffer_type_t, std::uint32_t) { return true; };
        i.backend_apply = [](llama_sampler *s, ggml_context *graph_ctx, ggml_cgraph *graph, llama_sampler_data *data) {
            // Nothing is sampled: without this, all logits would be copied for it.
            data->logits = nullptr;
            static_cast<Impl *>(s->ctx)->see_graph(graph_ctx, graph);
        };
        return i;
    }();
    hook.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(hook.get(), llama_sampler_init(&iface, this));
    std::vector<llama_sampler_seq_config> samplers(p.samplers, p.samplers + p.n_samplers);
    samplers.push_back({static_cast<llama_seq_id>(options.n_seqs), hook.get()});
    p.samplers = samplers.data();
    p.n_samplers = samplers.size();

    // llama.cpp ends the process where there is no room for logits of each sequence, the hook's included.
    p.n_seq_max = options.n_seqs + 1;
    p.n_batch = std::max(p.n_batch, p.n_seq_max);
    n_outputs_max = p.n_outputs_max = p.n_outputs_max == 0 ? p.n_batch : std::max(p.n_outputs_max, p.n_seq_max);
    embeddings = p.embeddings;
    // A batch, and the last token of each sequence.
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
        return impl.attention.failure.is_set() || (impl.user_abort && impl.user_abort(impl.user_abort_data));
    };
    p.abort_callback_data = this;
    n_threads = static_cast<std::uint32_t>(std::max({1, p.n_threads, p.n_threads_batch}));

    ctx.reset(llama_init_from_model(model, p));
    if (!refusal.empty()) {
        refuse(refusal);
    }
    if (!ctx) {
        throw Error(SKC_STATUS_INTERNAL, "llama_init_from_model made no context: llama.cpp's log says why");
    }
    if (shapes.empty()) {
        refuse("llama.cpp built no graph that a sampler could see: this version of llama.cpp is not supported");
    }
}

void LlamaContext::Impl::make_cache(const LlamaOptions &options) {
    const LayerShape &first = shapes.front();
    std::vector<std::vector<float>> frequencies(shapes.size());
    std::vector<skc_layer_config> layers;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        const LayerShape &s = shapes[i];
        if (s.n_q_heads != first.n_q_heads || s.n_kv_heads != first.n_kv_heads || s.head_dim != first.head_dim ||
            s.head_dim_v != first.head_dim_v) {
            refuse("layer " + std::to_string(i) + " has other heads than layer 0: they must be alike");
        }
        try {
            layers.push_back(layer_config(s, options, frequencies[i]));
        } catch (const Refusal &r) {
            refuse("layer " + std::to_string(i) + ": " + r.what());
        }
        // llama.cpp chooses them by its n_ctx, which here is the room for a batch.
        const std::string factors = s.rope.factors ? s.rope.factors->name : "";
        const std::uint64_t held = std::uint64_t(options.n_sink) + options.window;
        const bool beyond = held > static_cast<std::uint64_t>(s.rope.n_ctx_orig);
        if (factors.find(beyond ? "rope_factors_short" : "rope_factors_long") != std::string::npos) {
            refuse("LongRoPE has other frequencies above " + std::to_string(s.rope.n_ctx_orig) + " tokens: n_sink + window = " +
                   std::to_string(held) + " and n_batch + n_seqs = " + std::to_string(llama_n_ctx(ctx.get())) +
                   " (as padded) must lie on the same side");
        }
    }
    const auto n32 = [](std::int64_t n) { return static_cast<std::uint32_t>(n); };
    Config config;
    config.heads(n32(first.n_q_heads), n32(first.n_kv_heads), n32(first.head_dim), n32(first.head_dim_v))
        .types(SKC_DTYPE_F32, options.kv_dtype)
        .seqs(options.n_seqs)
        .layers(layers)
        // A micro-batch that fails can be taken back whole.
        .max_chunk(llama_n_ubatch(ctx.get()))
        .max_rewind(std::max(options.max_rewind, llama_n_ubatch(ctx.get())))
        .threads(n_threads);
    bytes = config.bytes().first;
    cache = std::make_unique<Cache>(config);
    attention.use(cache->handle());
}

// Called from inside llama.cpp: nothing may be thrown through it.
void LlamaContext::Impl::see_graph(ggml_context *graph_ctx, ggml_cgraph *graph) try {
    if (ggml_graph_n_nodes(graph) == 0) {
        return;  // llama.cpp counts what a sampler adds to a graph of its own.
    }
    const auto layers = read_graph(graph, llama_model_n_layer(model));
    if (shapes.empty()) {
        for (const auto &layer : layers) {
            shapes.push_back(layer.shape);
        }
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
        if (!(layers[i].shape == shapes[i])) {
            throw Refusal("layer " + std::to_string(i) + ": its attention is not what it was when the context was made");
        }
    }
    attention.install(graph_ctx, layers);
} catch (const std::exception &e) {
    refusal = e.what();
    attention.failure.set(SKC_STATUS_INVALID_CONFIG, refusal);
}

// Both caches to the micro-batches that llama.cpp has finished. Of the one that failed the layers may hold tokens, be it in
// some of them or, where it failed behind the last attention, in all.
void LlamaContext::Impl::settle(const Job &job) {
    for (const Run &run : job.runs) {
        try {
            cache->abort_step({run.seq_id});
            const std::uint64_t stored = length(run.seq_id) - run.length;
            const auto finished = static_cast<std::uint64_t>(sequences->held(run.seq_id));
            if (stored > finished) {
                cache->rewind({run.seq_id}, {static_cast<std::int32_t>(stored - finished)});
            }
        } catch (const Error &) {
            sequences->mark_broken(run.seq_id);
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
    Impl &m = *impl_;
    llama_context *const ctx = m.ctx.get();
    m.attention.failure.take();
    m.sequences->check_untouched();
    const auto threads = static_cast<std::uint32_t>(std::max(llama_n_threads(ctx), llama_n_threads_batch(ctx)));
    if (threads > m.n_threads) {
        refuse_batch("llama_set_n_threads raised the threads to " + std::to_string(threads) + ": the cache was made for " +
                     std::to_string(m.n_threads));
    }
    Job job = check_batch(batch, ctx, *m.cache, *m.sequences);
    const auto wanted = m.embeddings ? batch.n_tokens
                        : batch.logits
                            ? static_cast<std::int32_t>(
                                  std::count_if(batch.logits, batch.logits + batch.n_tokens, [](auto x) { return x != 0; }))
                            : 1;
    if (static_cast<std::uint32_t>(wanted) > m.n_outputs_max) {
        refuse_batch("logits of " + std::to_string(wanted) + " tokens: allowed are n_outputs_max = " +
                     std::to_string(m.n_outputs_max));
    }

    m.sequences->place(job);
    llama_batch placed = batch;
    placed.pos = job.positions.data();
    m.attention.begin(job, llama_n_ubatch(ctx));
    const std::int32_t result = llama_decode(ctx, placed);
    llama_synchronize(ctx);
    const std::int64_t rows = m.attention.end();
    if (result != 0 || rows != batch.n_tokens || m.attention.failure.is_set()) {
        m.settle(job);
    }
    for (const Run &run : job.runs) {
        m.sequences->advance(run.seq_id, static_cast<std::int64_t>(m.length(run.seq_id) - run.length));
    }
    m.attention.failure.take();
    if (result != 0) {
        refuse_batch("llama_decode returned " + std::to_string(result) +
                     (result == 2 ? ": an abort callback ended it" : ": llama.cpp's log says why"));
    }
    if (rows != batch.n_tokens) {
        throw Error(SKC_STATUS_INTERNAL, "attention ran past the cache in some layer: the sampler of sequence " +
                                             std::to_string(m.sequences->count()) + " must stay as it is");
    }
}

void LlamaContext::rewind(llama_seq_id seq_id, std::uint32_t n) {
    Impl &m = *impl_;
    m.sequences->usable(seq_id);
    m.sequences->check_untouched();
    const std::uint64_t length = m.length(seq_id);
    if (n > length || n > 0x7fffffffU) {
        throw Error(SKC_STATUS_OUT_OF_RANGE, "rewind by " + std::to_string(n) + ": sequence " + std::to_string(seq_id) +
                                                 " has " + std::to_string(length) + " tokens");
    }
    m.cache->rewind({seq_id}, {static_cast<std::int32_t>(n)});
    m.sequences->forget(seq_id);
}

void LlamaContext::clear(llama_seq_id seq_id, std::uint64_t start_position) {
    impl_->sequences->known(seq_id);
    impl_->cache->reset({seq_id}, {start_position});
    impl_->sequences->clear(seq_id);
}

std::uint64_t LlamaContext::length(llama_seq_id seq_id) const {
    impl_->sequences->known(seq_id);
    return impl_->length(seq_id);
}

}  // namespace sinkcache
