// Attention as a plugin of an engine: the only part of this host that knows sinkcache.
#pragma once

#include "llama_config.hpp"
#include "thread_team.hpp"

#include <sinkcache.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace inflight {

/** Configuration, given once. Heads are those of this rank. */
struct PluginConfig {
    std::uint32_t n_layers, n_q_heads, n_kv_heads, head_dim, rope_dim;
    /** What each layer has of its own. */
    std::vector<LayerShape> layers;
    /** RoPE rotates dim i with i + rope_dim / 2, not with i + 1. */
    bool rope_neox = false;
    /** Angular frequencies; empty = those of a layer's rope_base. */
    std::vector<float> inv_freq;
    /** Factor on QK^T, 0 = 1 / sqrt(head_dim); above 0, the softcap of scores. */
    double scale = 0, softcap = 0;
    std::uint32_t n_sink = 4, window = 252;
    /** Window of every second layer, the second, fourth, ...; those ignore pins. 0 = all layers have `window`. */
    std::uint32_t local_window = 0;
    /** Room for pinned tokens, and for runs of them and dropped ranges, of a sequence. */
    std::uint32_t max_pinned = 0, max_segments = 0;
    std::uint32_t max_seqs = 8;
    /** Prompts are split at multiples of this, see ExecutorConfig. */
    std::uint32_t chunk = 64;
    /** Most draft tokens of a step, all of which may be rejected. */
    std::uint32_t max_draft = 0;
    std::uint32_t k_dtype = SKC_DTYPE_F32, v_dtype = SKC_DTYPE_F32;
    std::uint32_t n_threads = 1;
    /** The engine's threads, n_threads of them, which then compute attention too; NULL = threads of the cache. */
    ThreadTeam *team = nullptr;
    /** Allocator of the cache's host memory; NULL = the process's. */
    skc_alloc_fn alloc = nullptr;
    skc_free_fn free = nullptr;
    void *memory_user = nullptr;
    /** A hash of the model and the rank: a sequence of another one is not loaded. */
    sinkcache::HostTag shard{};
    bool cuda = false;
    std::uint32_t cuda_device = 0;
};

/** Bytes of a cache. They are allocated at creation, and no others later. */
struct CacheBytes {
    std::uint64_t host, device;
};

/** What the first layer with the engine's window holds of a sequence. */
struct SequenceState {
    std::uint64_t length, cached, evicted, pinned;
    /** What takes room of max_segments: pinned runs, and dropped ranges that the window has not moved past. */
    std::uint64_t counted_segments;
};

/** Arguments of an enqueue. */
struct EnqueueArgs {
    std::uint32_t layer;
    /** [rows, q heads + 2 x KV heads, head_dim] f32, before RoPE. */
    const float *qkv;
    /** [rows, q heads, head_dim] f32. */
    float *out;
    /** Of workspace_bytes(). */
    void *workspace = nullptr;
    void *stream = nullptr;
};

/**
 * The interface of a TensorRT attention plugin: configured once, enqueued per layer with packed QKV rows of a ragged
 * batch. In addition, the edits of sequences that an executor needs. Calls throw sinkcache::Error.
 */
class AttentionPlugin {
public:
    using Ids = std::vector<std::int32_t>;

    explicit AttentionPlugin(const PluginConfig &config);

    /** Bytes of a cache of this configuration. */
    static CacheBytes bytes(const PluginConfig &config);

    /** Limits that an executor must respect. */
    std::uint32_t max_seqs() const { return max_seqs_; }
    std::uint32_t chunk() const { return chunk_; }
    std::uint32_t max_draft() const { return max_draft_; }
    /** First tokens of a sequence, which are never dropped. */
    std::uint32_t n_sink() const { return n_sink_; }
    /** Most pinned tokens of a sequence. */
    std::uint32_t max_pinned() const { return max_pinned_; }
    /** Positions that attention reaches with so many pinned tokens. */
    std::uint64_t positions(std::uint64_t pinned) const { return std::uint64_t{n_sink_} + pinned + window_; }

    /** Workspace that enqueue needs from the engine: none, the cache has allocated its own. */
    std::size_t workspace_bytes() const { return 0; }

    /** Attention of a layer. Entry i of the batch is n_tokens[i] rows of sequence seq_ids[i]; id -1 is padding. */
    void enqueue(const EnqueueArgs &args, const Ids &seq_ids, const Ids &n_tokens);

    /**
     * The same with `n_entries` ids and counts (0 or 1) in device memory. Captured into a graph, each launch serves the
     * sequences that are there at that time; `note_launch` must follow it.
     */
    void enqueue_decode(const EnqueueArgs &args, const std::int32_t *seq_ids, const std::int32_t *n_tokens,
                        std::uint32_t n_entries);
    void note_launch(const Ids &seq_ids, const Ids &n_tokens) { cache_.note_replay(seq_ids, n_tokens); }
    /** Throws if the device has skipped entries since the last call. */
    void check_device();

    /** Empties a sequence. */
    void reset(std::int32_t seq) { cache_.reset(Ids{seq}); }
    /** Removes rejected draft tokens. */
    void rewind(const Ids &seq_ids, const Ids &n_tokens) { cache_.rewind(seq_ids, n_tokens); }
    /** Holds `n` tokens from index `first` on permanently. SKC_STATUS_NO_ROOM changes nothing, as any other error. */
    void pin(std::int32_t seq, std::uint64_t first, std::uint32_t n) {
        cache_.pin(Ids{seq}, {first}, {static_cast<std::int32_t>(n)});
    }
    /** Drops what is held of them permanently; newer tokens close the gap. */
    void evict_range(std::int32_t seq, std::uint64_t first, std::uint32_t n) {
        cache_.evict_range(Ids{seq}, {first}, {static_cast<std::int32_t>(n)});
    }
    void fork(std::int32_t from, std::int32_t to) { cache_.fork(Ids{from}, Ids{to}); }
    /** After a failure between layers: restores these sequences as they were before the step. */
    void abort_step(const Ids &seq_ids) { cache_.abort_step(seq_ids); }

    /** A sequence as bytes. */
    std::vector<std::uint8_t> save(std::int32_t seq) { return cache_.save(seq, shard_); }
    /** Replaces a sequence by a saved one, of the same shard and with the same sinks, window and types. */
    void load(std::int32_t seq, const std::vector<std::uint8_t> &saved) { cache_.load(seq, saved, shard_); }

    SequenceState state(std::int32_t seq) const {
        const skc_sequence_info i = cache_.info(seq, reference_layer_);
        return {i.length_min, i.cached_tokens, i.evicted_tokens, i.pinned_tokens, i.counted_segments};
    }
    /** Length of a sequence. */
    std::uint64_t length(std::int32_t seq) const { return state(seq).length; }
    /** Tokens that were evicted from it. */
    std::uint64_t evicted(std::int32_t seq) const { return state(seq).evicted; }

private:
    std::uint32_t q_heads_, kv_heads_, dim_, max_seqs_, chunk_, max_draft_, n_sink_, window_, max_pinned_;
    std::uint32_t reference_layer_;
    sinkcache::HostTag shard_;
    sinkcache::Cache cache_;

    struct Packed {
        sinkcache::In q, k, v;
        sinkcache::Out out;
    };
    Packed packed(const float *qkv, float *out) const;
};

}  // namespace inflight
