// A llama_context whose attention is computed by a sinkcache::Cache: what the adapter and the preloaded library share.
#ifndef SINKCACHE_LLAMA_STREAM_HPP
#define SINKCACHE_LLAMA_STREAM_HPP

#include "attention.hpp"
#include "batch.hpp"
#include "cache_config.hpp"
#include "caches.hpp"
#include "errors.hpp"
#include "graph.hpp"
#include "sequences.hpp"

#include "sinkcache.hpp"

#include <llama.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** Settings of a stream. Those that follow from the model are read from its graph. */
struct StreamSettings : CacheSettings {
    Numbering numbering = Numbering::OF_THE_STREAM;
    /** Whether attention of layers whose weights are on a CUDA device is computed there. */
    bool use_gpu = true;
};

/** One call at a time. What throws, throws Error, with the reason. */
class Stream {
public:
    /** `model` must outlive this object. @throws Error SKC_STATUS_INVALID_CONFIG for a model that is not supported */
    Stream(llama_model *model, const StreamSettings &settings);
    ~Stream();
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;

    /**
     * Creates the llama_context: `params` with what a stream needs in place of n_ctx, n_seq_max, kv_unified,
     * flash_attn_type, type_k, type_v and the abort callback, and with n_batch and n_outputs_max raised if needed.
     */
    void create_context(llama_context_params params);

    /** Creates the cache, with memory for all that it will ever hold. After create_context(), once. */
    void create_cache();
    bool has_cache() const { return cache_ != nullptr; }
    /**
     * Bytes that the cache allocates. @throws Error as create_cache() does, except for want of memory; nothing is
     * thrown, and 0 returned, for a model that was loaded without its data
     */
    std::uint64_t cache_bytes() const;

    /** How many layers' attention is computed on CUDA devices, of all that have attention. After create_context(). */
    std::size_t n_layers_on_gpu() const;
    std::size_t n_layers() const { return shapes_.size(); }
    /** Why layers on a GPU are attended on the CPU; empty if they are not. */
    const std::string &gpu_problem() const { return gpu_problem_; }

    llama_context *context() const { return ctx_.get(); }
    const StreamSettings &settings() const { return settings_; }
    /**
     * How far below its highest length a sequence can be cut: the setting, or n_ubatch if that is more. 0 in a hybrid,
     * where it can only be cut to nothing: llama.cpp has the states of recurrent layers after the last token alone.
     */
    std::uint32_t max_rewind() const { return is_hybrid_ ? 0 : settings_.max_rewind; }
    /** Whether the model has recurrent layers beside those with attention. */
    bool is_hybrid() const { return is_hybrid_; }
    std::uint32_t n_outputs_max() const { return n_outputs_max_; }
    /** Threads that the cache was created for. */
    std::uint32_t n_threads() const { return n_threads_; }
    /** Before the cache is created: makes it for at least `n` threads. Later, without effect. */
    void raise_threads(std::uint32_t n) { n_threads_ = cache_ ? n_threads_ : std::max(n_threads_, n); }
    /** The host's callback, in place of the one that create_context() has found. Also from other threads. */
    void set_abort_callback(ggml_abort_callback callback, void *data);

    /**
     * Decodes a batch. `compute` passes it on to llama.cpp, with the given positions, and returns what llama.cpp
     * returns; so does this function.
     *
     * @throws Error for an invalid batch, which changes nothing, and for an error during the computation: the
     * micro-batches that were completed then stay in the cache, as they do if llama.cpp's result is not 0. In a hybrid
     * the sequences of those that were not become unusable.
     */
    std::int32_t decode(const std::vector<BatchRow> &rows,
                        const std::function<std::int32_t(const std::vector<llama_pos> &)> &compute);

    /** Edits as LlamaContext documents them. All but existing() need the cache. */
    void rewind(llama_seq_id seq_id, std::uint64_t n);
    void pin(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n);
    void evict_range(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n);
    void clear(llama_seq_id seq_id, std::uint64_t start_position);
    void fork(llama_seq_id src, llama_seq_id dst);
    std::size_t snapshot_bytes(llama_seq_id seq_id);
    std::size_t save(llama_seq_id seq_id, const HostTag &tag, std::uint8_t *to, std::size_t n_bytes);
    void load(llama_seq_id seq_id, Span<std::uint8_t> saved, const HostTag &tag);
    skc_sequence_info info(llama_seq_id seq_id) const;
    /** Whether an earlier error has made a sequence unusable until it is cleared, loaded or forked into. */
    bool is_broken(llama_seq_id seq_id) const { return sequences_->is_broken(seq_id); }
    void mark_broken(llama_seq_id seq_id) { sequences_->mark_broken(seq_id); }

private:
    struct FreeContext {
        void operator()(llama_context *ctx) const;
    };
    struct FreeSampler {
        void operator()(llama_sampler *sampler) const;
    };

    llama_sampler_seq_config make_hook();
    void on_graph(ggml_context *graph_ctx, ggml_cgraph *graph);
    CacheConfigs cache_configs() const;
    bool aborts() const;
    void check_embeddings(const std::vector<BatchRow> &rows) const;
    bool has_model_data() const;
    void roll_back(const BatchPlan &plan);
    void roll_back_hybrid(const BatchPlan &plan, std::size_t n_attended, bool failed);
    void load_hybrid(llama_seq_id seq_id, Span<std::uint8_t> saved, const HostTag &tag);
    template <class Edit>
    void edit(llama_seq_id seq_id, const Edit &edit);
    std::uint64_t length(llama_seq_id seq_id) const { return cache_->info(seq_id).length_min; }

    llama_model *model_;
    StreamSettings settings_;
    bool is_hybrid_ = false;
    Split split_ = Split::IN_ORDER;
    std::vector<LayerShape> shapes_;
    /** Windows of the model's own, in tokens; 0 or more for the model, and of each layer that has one. */
    std::uint32_t n_swa_ = 0;
    std::vector<std::uint32_t> windows_;
    /** Why a graph is not supported; empty if nothing was found. */
    std::string unsupported_;
    std::string gpu_problem_;
    Attention attention_;
    struct AbortCallback {
        ggml_abort_callback call = nullptr;
        void *data = nullptr;
    };
    AbortCallback user_abort_;
    /** The host's, which does not see the tokens of the probe. */
    ggml_backend_sched_eval_callback user_eval_ = nullptr;
    void *user_eval_data_ = nullptr;
    bool probing_ = true;
    mutable std::mutex user_abort_mutex_;
    std::uint32_t n_threads_ = 1;
    std::uint32_t n_outputs_max_ = 1;
    // Members are destroyed in reverse order: the context first, since it uses the cache and the sampler.
    std::unique_ptr<Caches> cache_;
    std::unique_ptr<llama_sampler, FreeSampler> graph_hook_;
    std::unique_ptr<llama_context, FreeContext> ctx_;
    std::unique_ptr<Sequences> sequences_;
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_STREAM_HPP
