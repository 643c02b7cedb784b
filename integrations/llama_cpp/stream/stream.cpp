#include "stream.hpp"

#include "llama_api.hpp"
#include "recurrent_state.hpp"
#include "windows.hpp"

#include <algorithm>
#include <limits>
#include <unordered_map>

namespace sinkcache {
namespace llama_cpp {
namespace {

/** Whether a context computes one embedding for each sequence. */
bool is_pooled(const llama_model *model, const llama_context_params &p) {
    const std::string of_model = metadata(model, metadata(model, "general.architecture") + ".pooling_type");
    const bool by_default = !of_model.empty() && of_model != "0";
    return p.embeddings && (p.pooling_type == LLAMA_POOLING_TYPE_UNSPECIFIED
                                ? by_default
                                : p.pooling_type != LLAMA_POOLING_TYPE_NONE);
}

void check_params(const llama_model *model, const llama_context_params &p, const StreamSettings &settings) {
    if (p.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL) {
        invalid_config(
            "attention_type LLAMA_ATTENTION_TYPE_NON_CAUSAL is not supported: attention over a stream is causal");
    }
    if (p.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        invalid_config("ctx_type " + std::to_string(p.ctx_type) + " is not supported: it shares a cache");
    }
    if (p.n_batch == 0 || p.n_batch > (1U << 20)) {
        invalid_config("n_batch " + std::to_string(p.n_batch) + ": allowed are 1 to 1048576");
    }
    const auto max_seqs = static_cast<std::uint32_t>(api().llama_max_parallel_sequences()) - 1;
    if (settings.n_seqs == 0 || settings.n_seqs > max_seqs) {
        invalid_config("n_seqs " + std::to_string(settings.n_seqs) + ": allowed are 1 to " + std::to_string(max_seqs));
    }
    // llama.cpp reserves a graph of as many rows as all sequences have, and asserts that they have equally many.
    if (is_pooled(model, p) && settings.n_seqs > 1) {
        invalid_config("pooled embeddings of " + std::to_string(settings.n_seqs) +
                       " sequences are not supported: allowed is 1, or pooling_type LLAMA_POOLING_TYPE_NONE");
    }
    for (std::size_t i = 0; i < p.n_samplers; ++i) {
        if (p.samplers[i].seq_id < 0 || static_cast<std::uint32_t>(p.samplers[i].seq_id) >= settings.n_seqs) {
            invalid_config("a sampler for sequence " + std::to_string(p.samplers[i].seq_id) + ": n_seqs is " +
                           std::to_string(settings.n_seqs));
        }
    }
}

/** Tokens of a range as the cache takes them. */
std::int32_t range_length(const char *edit, std::uint64_t n) {
    if (n > 0x7fffffffU) {
        throw Error(SKC_STATUS_OUT_OF_RANGE,
                    std::string(edit) + " of " + std::to_string(n) + " tokens: at most 2147483647 are allowed");
    }
    return static_cast<std::int32_t>(n);
}

}  // namespace

void Stream::FreeContext::operator()(llama_context *ctx) const { api().llama_free(ctx); }
void Stream::FreeSampler::operator()(llama_sampler *sampler) const { api().llama_sampler_free(sampler); }

namespace {

/** A layer is on a device if the weights of its q, k and v are, and so are all layers that share its K and V. */
void find_devices(std::vector<LayerNodes> &layers) {
    for (LayerNodes &layer : layers) {
        layer.shape.device = cuda_device_of(layer.weights.front());
        for (const ggml_tensor *weight : layer.weights) {
            if (cuda_device_of(weight) != layer.shape.device) {
                layer.shape.device = ON_CPU;
            }
        }
    }
    const auto owner = [&](const LayerNodes &layer) -> LayerShape & {
        return layers[static_cast<std::size_t>(layer.shape.kv_of)].shape;
    };
    for (const LayerNodes &layer : layers) {
        if (layer.shape.shares() && owner(layer).device != layer.shape.device) {
            owner(layer).device = ON_CPU;
        }
    }
    for (LayerNodes &layer : layers) {
        if (layer.shape.shares()) {
            layer.shape.device = owner(layer).device;
        }
    }
}

/** The model, if llama.cpp's functions may be called. */
llama_model *checked(llama_model *model) {
    if (!api_problem().empty()) {
        invalid_config("this is not the llama.cpp that the library was built for: " + api_problem());
    }
    return model;
}

}  // namespace

Stream::Stream(llama_model *model, const StreamSettings &settings)
    : model_(checked(model)),
      settings_(settings),
      attention_(static_cast<std::size_t>(std::max(0, api().llama_model_n_layer(model)))) {
    n_swa_ = static_cast<std::uint32_t>(std::max(0, api().llama_model_n_swa(model)));
    const std::string reason = unsupported_reason(model);
    if (!reason.empty()) {
        invalid_config(reason);
    }
    is_hybrid_ = api().llama_model_is_hybrid(model);
}

Stream::~Stream() = default;

// llama.cpp passes each graph it builds, before it allocates its nodes, to samplers that can run in a backend. This
// sampler belongs to a sequence without tokens, so that the logits of all others are returned as usual.
llama_sampler_seq_config Stream::make_hook() {
    static llama_sampler_i iface = [] {
        llama_sampler_i i{};
        i.name = [](const llama_sampler *) { return "sinkcache"; };
        i.apply = [](llama_sampler *, llama_token_data_array *) {};
        i.clone = [](const llama_sampler *s) { return api().llama_sampler_init(s->iface, s->ctx); };
        i.backend_init = [](llama_sampler *, ggml_backend_buffer_type_t, std::uint32_t) { return true; };
        i.backend_apply = [](llama_sampler *s, ggml_context *graph_ctx, ggml_cgraph *graph, llama_sampler_data *data) {
            // Nothing is sampled. Otherwise llama.cpp would copy all logits for this sampler.
            data->logits = nullptr;
            static_cast<Stream *>(s->ctx)->on_graph(graph_ctx, graph);
        };
        return i;
    }();
    graph_hook_.reset(api().llama_sampler_chain_init(api().llama_sampler_chain_default_params()));
    api().llama_sampler_chain_add(graph_hook_.get(), api().llama_sampler_init(&iface, this));
    return {static_cast<llama_seq_id>(settings_.n_seqs), graph_hook_.get()};
}

void Stream::create_context(llama_context_params p) {
    check_params(model_, p, settings_);
    std::vector<llama_sampler_seq_config> samplers(p.samplers, p.samplers + p.n_samplers);
    samplers.push_back(make_hook());
    p.samplers = samplers.data();
    p.n_samplers = samplers.size();

    // llama.cpp aborts the process if n_batch or n_outputs_max is below the number of sequences, the hook's included.
    p.n_seq_max = settings_.n_seqs + 1;
    p.n_batch = std::max(p.n_batch, p.n_seq_max);
    p.n_outputs_max = p.n_outputs_max == 0 ? p.n_batch : std::max(p.n_outputs_max, p.n_seq_max);
    n_outputs_max_ = p.n_outputs_max;
    // Room for a batch and the last token of each sequence.
    p.n_ctx = p.n_batch + settings_.n_seqs;
    p.n_ubatch = p.n_ubatch == 0 ? p.n_batch : std::min(p.n_ubatch, p.n_batch);
    if (is_hybrid_) {
        split_ = p.embeddings ? Split::BY_SEQUENCE : Split::EQUAL;
        // A token of each sequence must fit into a micro-batch.
        p.n_ubatch = std::max(p.n_ubatch, p.n_seq_max);
        // llama.cpp's snapshots for rewinds are those of the last micro-batch alone, and it does not check that.
        p.n_rs_seq = 0;
    }
    p.kv_unified = true;
    // One size for the caches of all layers.
    p.swa_full = true;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    p.type_k = GGML_TYPE_F16;
    p.type_v = GGML_TYPE_F16;
    const AbortCallback user{p.abort_callback, p.abort_callback_data};
    p.abort_callback = [](void *self) { return static_cast<const Stream *>(self)->aborts(); };
    p.abort_callback_data = this;
    if (p.cb_eval) {
        user_eval_ = p.cb_eval;
        user_eval_data_ = p.cb_eval_user_data;
        p.cb_eval = [](ggml_tensor *t, bool ask, void *self) {
            const auto &s = *static_cast<const Stream *>(self);
            return s.probing_ ? !ask : s.user_eval_(t, ask, s.user_eval_data_);
        };
        p.cb_eval_user_data = this;
    }
    n_threads_ = static_cast<std::uint32_t>(std::max({1, p.n_threads, p.n_threads_batch}));

    // A host that keeps K and V off the GPU means this cache, too.
    settings_.use_gpu = settings_.use_gpu && p.offload_kqv;
    if (settings_.use_gpu) {
        gpu_problem_ = add_accelerators(&Attention::is_op_of);
    }
    ctx_.reset(api().llama_init_from_model(model_, p));
    if (!unsupported_.empty()) {
        invalid_config(unsupported_);
    }
    if (!ctx_) {
        throw Error(SKC_STATUS_INTERNAL, "llama_init_from_model failed: llama.cpp's log has the reason");
    }
    if (shapes_.empty()) {
        invalid_config("llama.cpp passed no graph to a backend sampler: this version of llama.cpp is not supported");
    }
    // roll_back() may have to remove a whole micro-batch.
    settings_.max_rewind = std::max(settings_.max_rewind, api().llama_n_ubatch(ctx_.get()));
    windows_.assign(shapes_.size(), 0);
    if (n_swa_ > 0) {
        try {
            windows_ = probe_windows(ctx_.get(), attention_, n_swa_, static_cast<llama_seq_id>(settings_.n_seqs));
        } catch (const NotSupported &e) {
            invalid_config(e.what());
        }
        api().llama_perf_context_reset(ctx_.get());
    }
    probing_ = false;
    sequences_ = is_hybrid_ ? std::make_unique<Sequences>(ctx_.get(), settings_.n_seqs, settings_.numbering,
                                                          std::numeric_limits<llama_pos>::max(), true)
                            : std::make_unique<Sequences>(ctx_.get(), settings_.n_seqs, settings_.numbering);
    // Not before: llama.cpp does not call it while it creates a context, and it must not end the probe.
    set_abort_callback(user.call, user.data);
}

std::size_t Stream::n_layers_on_gpu() const {
    return static_cast<std::size_t>(std::count_if(shapes_.begin(), shapes_.end(),
                                                  [](const LayerShape &shape) { return shape.device != ON_CPU; }));
}

CacheConfigs Stream::cache_configs() const {
    const ContextSizes sizes{api().llama_n_ubatch(ctx_.get()), api().llama_n_ctx(ctx_.get()), n_threads_};
    return {shapes_, windows_, settings_, sizes, attention_.loop()};
}

void Stream::create_cache() {
    const CacheConfigs configs = cache_configs();
    cache_ = std::make_unique<Caches>(configs.configs());
    std::vector<LayerCache> of_layers;
    for (const LayerPlace &place : configs.places()) {
        of_layers.push_back({cache_->handle(place.cache), place.layer});
    }
    attention_.set_caches(of_layers);
}

std::uint64_t Stream::cache_bytes() const { return has_model_data() ? cache_configs().bytes() : 0; }

/** Whether the tensors that the configuration is computed from can be read: llama.cpp may load a model without them. */
bool Stream::has_model_data() const {
    return std::all_of(shapes_.begin(), shapes_.end(), [](const LayerShape &shape) {
        const auto has_data = [](const ggml_tensor *t) { return !t || (t->buffer && t->data); };
        return has_data(shape.rope.freq_factors) && has_data(shape.sink_logits);
    });
}

bool Stream::aborts() const {
    if (attention_.error.is_set()) {
        return true;
    }
    AbortCallback user;
    {
        const std::lock_guard<std::mutex> lock(user_abort_mutex_);
        user = user_abort_;
    }
    return user.call && user.call(user.data);
}

void Stream::set_abort_callback(ggml_abort_callback callback, void *data) {
    const std::lock_guard<std::mutex> lock(user_abort_mutex_);
    user_abort_ = {callback, data};
}

// Called from llama.cpp, through which nothing may be thrown.
void Stream::on_graph(ggml_context *graph_ctx, ggml_cgraph *graph) try {
    // llama.cpp also counts the nodes that a sampler adds, with an empty graph. And it shows a graph once for each
    // output of the hook's sequence, which has some in the graphs that reserve memory for n_outputs_max_per_seq.
    if (api().ggml_graph_n_nodes(graph) == 0 || Attention::is_installed(graph)) {
        return;
    }
    auto layers = read_graph(graph, {api().llama_model_n_layer(model_), n_swa_ > 0, is_hybrid_});
    if (settings_.use_gpu) {
        find_devices(layers);
    }
    if (shapes_.empty()) {
        for (const auto &layer : layers) {
            shapes_.push_back(layer.shape);
        }
    }
    require(layers.size() == shapes_.size(), [&] {
        return "the graph has " + std::to_string(layers.size()) + " layers with attention, and earlier ones " +
               std::to_string(shapes_.size());
    });
    for (std::size_t i = 0; i < layers.size(); ++i) {
        if (!(layers[i].shape == shapes_[i])) {
            throw NotSupported("layer " + std::to_string(i) + ": its attention differs from that of earlier graphs");
        }
    }
    attention_.install(graph_ctx, layers, n_swa_ > 0);
} catch (const std::exception &e) {
    unsupported_ = e.what();
    attention_.error.set(SKC_STATUS_INVALID_CONFIG, unsupported_);
}

// A host gives each of them four positions, of which an image's differ. That of a row is only the first.
void Stream::check_embeddings(const std::vector<BatchRow> &rows) const {
    const auto embedding = std::find_if(rows.begin(), rows.end(), [](const BatchRow &r) { return r.is_embedding; });
    if (embedding != rows.end() && std::any_of(shapes_.begin(), shapes_.end(), [](const LayerShape &shape) {
            return shape.has_rope && shape.rope.is_mrope();
        })) {
        invalid_argument("token " + std::to_string(embedding - rows.begin()) +
                         " of the batch is an embedding: images and other embeddings are not supported with M-RoPE");
    }
}

std::int32_t Stream::decode(const std::vector<BatchRow> &rows,
                            const std::function<std::int32_t(const std::vector<llama_pos> &)> &compute) {
    attention_.error.rethrow();
    sequences_->check_unmodified();
    const auto n = std::max(api().llama_n_threads(ctx_.get()), api().llama_n_threads_batch(ctx_.get()));
    const auto threads = static_cast<std::uint32_t>(n);
    if (threads > n_threads_) {
        invalid_argument("llama_set_n_threads raised the threads to " + std::to_string(threads) +
                         ": the cache was created for " + std::to_string(n_threads_));
    }
    check_embeddings(rows);
    BatchPlan plan = plan_batch(rows, ctx_.get(), split_, *cache_, *sequences_);
    sequences_->assign_positions(plan);
    for (const BatchEntry &entry : plan.entries) {
        // The host's numbering lets an empty sequence start anywhere.
        if (entry.length_before == 0 && cache_->info(entry.seq_id).start_position != entry.position) {
            cache_->reset(entry.seq_id, entry.position);
        }
    }
    attention_.begin(plan);
    const std::int32_t result = compute(plan.positions);
    api().llama_synchronize(ctx_.get());
    const std::size_t computed = attention_.end();
    const bool all_computed = computed == plan.ubatches.size();
    if (result != 0 || !all_computed || attention_.error.is_set()) {
        if (is_hybrid_) {
            roll_back_hybrid(plan, computed, result != 0);
        } else {
            roll_back(plan);
        }
    }
    for (const BatchEntry &entry : plan.entries) {
        sequences_->commit(entry.seq_id, static_cast<std::int64_t>(length(entry.seq_id) - entry.length_before));
    }
    attention_.error.rethrow();
    if (result == 0 && !all_computed) {
        throw Error(SKC_STATUS_INTERNAL, "a layer computed attention without the cache: the sampler of sequence " +
                                             std::to_string(sequences_->count()) +
                                             " must not be removed or replaced");
    }
    return result;
}

// Rewinds the cache to the micro-batches that llama.cpp has completed. Of the one that failed, some layers have
// appended the tokens, or all of them if it failed after the last attention.
void Stream::roll_back(const BatchPlan &plan) {
    for (const BatchEntry &entry : plan.entries) {
        try {
            const auto completed = static_cast<std::uint64_t>(sequences_->uncommitted(entry.seq_id));
            cache_->cut_failed_step(entry.seq_id, entry.length_before + completed);
        } catch (const Error &) {
            sequences_->mark_broken(entry.seq_id);
        }
    }
}

// llama.cpp cannot take back what a micro-batch has done to a state. It has begun those whose tokens are in its memory.
void Stream::roll_back_hybrid(const BatchPlan &plan, std::size_t n_attended, bool failed) {
    // Of each sequence: tokens of the batch that llama.cpp has begun, and those in the first `n` micro-batches.
    std::unordered_map<llama_seq_id, std::uint64_t> begun, in_first;
    for (const BatchEntry &entry : plan.entries) {
        begun[entry.seq_id] = static_cast<std::uint64_t>(sequences_->uncommitted(entry.seq_id));
    }
    const auto add_rows = [&](const Ubatch &ubatch, bool add) {
        for (std::size_t e = 0; e < ubatch.seq_ids.size(); ++e) {
            const auto n = static_cast<std::uint64_t>(ubatch.n_tokens[e]);
            in_first[ubatch.seq_ids[e]] += add ? n : -n;
        }
    };
    const auto is_begun = [&](const Ubatch &ubatch) {
        return std::any_of(ubatch.seq_ids.begin(), ubatch.seq_ids.end(),
                           [&](llama_seq_id s) { return begun[s] > in_first[s]; });
    };
    for (std::size_t i = 0; i < n_attended; ++i) {
        add_rows(plan.ubatches[i], true);
    }
    const bool next_is_begun = n_attended < plan.ubatches.size() && is_begun(plan.ubatches[n_attended]);
    if (failed && n_attended > 0 && !next_is_begun) {
        // It failed after the last attention.
        add_rows(plan.ubatches[n_attended - 1], false);
    }
    for (const BatchEntry &entry : plan.entries) {
        const std::uint64_t completed = in_first[entry.seq_id], all = begun[entry.seq_id];
        try {
            cache_->cut_failed_step(entry.seq_id, entry.length_before + std::min(all, completed));
        } catch (const Error &) {
            sequences_->mark_broken(entry.seq_id);
        }
        if (all > completed) {
            // What is left there is worth nothing, and takes room.
            sequences_->drop(entry.seq_id);
            if (entry.length_before + completed > 0) {
                sequences_->mark_broken(entry.seq_id);
            }
        }
    }
}

/** An edit of a sequence, which becomes unusable if only some of the caches could do it. */
template <class Edit>
void Stream::edit(llama_seq_id seq_id, const Edit &edit) {
    try {
        edit();
    } catch (const UnevenError &) {
        sequences_->mark_broken(seq_id);
        throw;
    }
}

void Stream::rewind(llama_seq_id seq_id, std::uint64_t n) {
    sequences_->usable(seq_id);
    sequences_->check_unmodified();
    const std::uint64_t length = this->length(seq_id);
    if (n > length || n > 0x7fffffffU) {
        throw Error(SKC_STATUS_OUT_OF_RANGE, "rewind by " + std::to_string(n) + ": sequence " + std::to_string(seq_id) +
                                                 " has " + std::to_string(length) + " tokens");
    }
    if (is_hybrid_ && n < length) {
        if (n == 0) {
            return;
        }
        throw Error(SKC_STATUS_TOKENS_GONE, "rewind by " + std::to_string(n) + " of " + std::to_string(length) +
                                                " tokens: the states of recurrent layers cannot go back, but to "
                                                "nothing; clear() the sequence, or load() a saved one");
    }
    edit(seq_id, [&] { cache_->rewind(seq_id, static_cast<std::int32_t>(n)); });
    sequences_->drop(seq_id);
}

void Stream::pin(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n) {
    sequences_->usable(seq_id);
    edit(seq_id, [&] { cache_->pin(seq_id, first, range_length("pin", n)); });
}

void Stream::evict_range(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n) {
    sequences_->usable(seq_id);
    edit(seq_id, [&] { cache_->evict_range(seq_id, first, range_length("evict_range", n)); });
}

void Stream::clear(llama_seq_id seq_id, std::uint64_t start_position) {
    sequences_->existing(seq_id);
    edit(seq_id, [&] { cache_->reset(seq_id, start_position); });
    sequences_->clear(seq_id);
}

void Stream::fork(llama_seq_id src, llama_seq_id dst) {
    sequences_->usable(src);
    sequences_->existing(dst);
    if (is_hybrid_) {
        sequences_->check_unmodified();
    }
    edit(dst, [&] { cache_->fork(src, dst); });
    if (is_hybrid_) {
        sequences_->copy(src, dst);
        return;
    }
    // What llama.cpp's own cache holds belongs to the sequence of before. Any position may follow.
    sequences_->clear(dst);
}

std::size_t Stream::snapshot_bytes(llama_seq_id seq_id) {
    sequences_->usable(seq_id);
    const std::size_t n_caches = cache_->snapshot_bytes(seq_id);
    return is_hybrid_ ? HybridSnapshot::HEADER_BYTES + recurrent_state_bytes(ctx_.get(), seq_id) + n_caches : n_caches;
}

std::size_t Stream::save(llama_seq_id seq_id, const HostTag &tag, std::uint8_t *to, std::size_t n_bytes) {
    sequences_->usable(seq_id);
    if (!is_hybrid_) {
        return cache_->save_to(seq_id, to, n_bytes, tag);
    }
    sequences_->check_unmodified();
    const std::size_t needed = snapshot_bytes(seq_id), n_recurrent = recurrent_state_bytes(ctx_.get(), seq_id);
    if (n_bytes < needed) {
        throw Error(SKC_STATUS_OUT_OF_RANGE, "n_bytes is " + std::to_string(n_bytes) + ": the snapshot has " +
                                                 std::to_string(needed) + " bytes");
    }
    const std::size_t caches_at = HybridSnapshot::HEADER_BYTES + n_recurrent;
    save_recurrent_state(ctx_.get(), seq_id, to + HybridSnapshot::HEADER_BYTES, n_recurrent);
    const std::size_t n_caches = cache_->save_to(seq_id, to + caches_at, needed - caches_at, tag);
    HybridSnapshot::write_header(to, n_recurrent, n_caches);
    return caches_at + n_caches;
}

void Stream::load(llama_seq_id seq_id, Span<std::uint8_t> saved, const HostTag &tag) {
    sequences_->existing(seq_id);
    if (is_hybrid_) {
        load_hybrid(seq_id, saved, tag);
        return;
    }
    edit(seq_id, [&] { cache_->load(seq_id, saved, tag); });
    sequences_->clear(seq_id);
}

// llama.cpp's part first: what it had before is small, and can be put back if the caches refuse theirs.
void Stream::load_hybrid(llama_seq_id seq_id, Span<std::uint8_t> saved, const HostTag &tag) {
    const HybridSnapshot snapshot = HybridSnapshot::read(saved);
    const std::vector<std::uint8_t> before = save_recurrent_state(ctx_.get(), seq_id);
    const bool is_own = sequences_->is_unmodified(seq_id);
    const auto put_back = [&] {
        if (!is_own || !load_recurrent_state(ctx_.get(), seq_id, before)) {
            sequences_->mark_broken(seq_id);
        }
        sequences_->follow_state(seq_id);
    };
    sequences_->drop(seq_id);
    if (!load_recurrent_state(ctx_.get(), seq_id, snapshot.recurrent)) {
        put_back();
        throw Error(SKC_STATUS_INVALID_SNAPSHOT,
                    "llama.cpp refuses the state of the recurrent layers: its log has the reason");
    }
    try {
        edit(seq_id, [&] { cache_->load(seq_id, snapshot.caches, tag); });
    } catch (...) {
        put_back();
        throw;
    }
    sequences_->mark_usable(seq_id);
    sequences_->follow_state(seq_id);
}

skc_sequence_info Stream::info(llama_seq_id seq_id) const {
    sequences_->existing(seq_id);
    skc_sequence_info info = cache_->info(seq_id);
    if (is_hybrid_) {
        info.rewindable = 0;
    }
    return info;
}

}  // namespace llama_cpp
}  // namespace sinkcache
