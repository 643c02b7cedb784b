// Attention as a plugin of an engine: the only part of this host that knows sinkcache.
#pragma once

#include <sinkcache.hpp>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace inflight {

/** What the plugin is configured with, once. Heads are those of this rank. */
struct PluginConfig {
    std::uint32_t n_layers, n_q_heads, n_kv_heads, head_dim, rope_dim;
    double rope_base = 10000.0;
    /** Angular frequencies, or empty for those of rope_base. */
    std::vector<float> inv_freq;
    std::uint32_t n_sink = 4, window = 252;
    std::uint32_t max_seqs = 8;
    /** Prompts are cut at multiples of this, see Executor. */
    std::uint32_t chunk = 64;
    /** Most draft tokens that are ever rejected at once. */
    std::uint32_t max_draft = 0;
    std::uint32_t kv_dtype = SKC_DTYPE_F32;
    std::uint32_t n_threads = 1;
    /** Where the cache's host memory comes from; NULL = the process. */
    skc_alloc_fn alloc = nullptr;
    skc_free_fn free = nullptr;
    void *memory_user = nullptr;
    bool cuda = false;
    std::uint32_t cuda_device = 0;
};

/**
 * The shape of a TensorRT attention plugin: configured once, enqueued per layer with packed QKV rows of a ragged batch.
 * Beside it, the edits of sequences that an executor needs. Calls throw sinkcache::Error.
 */
class AttentionPlugin {
public:
    using Ids = std::vector<std::int32_t>;

    explicit AttentionPlugin(const PluginConfig &config);

    /** Bytes a cache of this configuration takes for ever: host, device. */
    static std::pair<std::uint64_t, std::uint64_t> bytes(const PluginConfig &config);

    /** What an executor must keep to. */
    std::uint32_t max_seqs() const { return max_seqs_; }
    std::uint32_t chunk() const { return chunk_; }
    std::uint32_t max_draft() const { return max_draft_; }

    /** Working memory enqueue needs from the engine: none, the cache brought its own. */
    std::size_t workspace_bytes() const { return 0; }

    /**
     * Attention of layer `layer` over rows of `qkv` [rows, q heads + 2 x KV heads, head_dim] f32, before RoPE, into `out`
     * [rows, q heads, head_dim] f32. Entry i of the batch is n_tokens[i] rows of sequence seq_ids[i]; id -1 is padding.
     */
    void enqueue(std::uint32_t layer, const float *qkv, float *out, const Ids &seq_ids, const Ids &n_tokens, void *workspace,
                 void *stream);

    /**
     * The same with `n_entries` ids and counts (0 or 1) in device memory: captured into a graph it serves any sequences
     * at every replay. Tell the plugin afterwards by `replayed`.
     */
    void enqueue_decode(std::uint32_t layer, const float *qkv, float *out, const std::int32_t *seq_ids,
                        const std::int32_t *n_tokens, std::uint32_t n_entries, void *workspace, void *stream);
    void replayed(const Ids &seq_ids, const Ids &n_tokens) { cache_.note_replay(seq_ids, n_tokens); }
    /** Throws what the device has skipped since the last time. */
    void check_device();

    /** Empties a sequence. */
    void reset(std::int32_t seq) { cache_.reset(Ids{seq}); }
    /** Takes back rejected drafts. */
    void rewind(const Ids &seq_ids, const Ids &n_tokens) { cache_.rewind(seq_ids, n_tokens); }
    void fork(std::int32_t from, std::int32_t to) { cache_.fork(Ids{from}, Ids{to}); }
    /** After a failure between layers: these sequences are as before the step. */
    void abort_step(const Ids &seq_ids) { cache_.abort_step(seq_ids); }

    /** Tokens that have entered a sequence. */
    std::uint64_t length(std::int32_t seq) const { return cache_.info(seq).length_min; }
    /** Tokens that have left its window. */
    std::uint64_t evicted(std::int32_t seq) const { return cache_.info(seq).evicted_tokens; }

private:
    std::uint32_t q_heads_, kv_heads_, dim_, max_seqs_, chunk_, max_draft_;
    sinkcache::Cache cache_;

    struct Packed {
        sinkcache::In q, k, v;
        sinkcache::Out out;
    };
    Packed packed(const float *qkv, float *out) const;
};

}  // namespace inflight
