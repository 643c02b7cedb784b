/*
 * sinkcache as the KV cache and attention of an unmodified llama.cpp: streams of any length at constant memory.
 * Needs llama.cpp's public headers only. MIT OR Apache-2.0.
 */
#ifndef SINKCACHE_LLAMA_HPP
#define SINKCACHE_LLAMA_HPP

#include "sinkcache.hpp"

#include <llama.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace sinkcache {

/** Settings of the cache. Those that follow from the model are read from its graph. */
struct LlamaOptions {
    /** First tokens of each sequence, which are never evicted. */
    std::uint32_t n_sink = 4;
    /** Most recent tokens a query attends to, its own included; at least 1. */
    std::uint32_t window = 2044;
    /** Type K and V are stored in, one of SKC_DTYPE_. */
    std::uint32_t kv_dtype = SKC_DTYPE_F16;
    /** Types of K and of V where they differ; 0 = kv_dtype. */
    std::uint32_t k_dtype = 0, v_dtype = 0;
    /** Number of sequences; their ids are 0 to n_seqs - 1. */
    std::uint32_t n_seqs = 1;
    /** How far below its highest length rewind() may cut a sequence, see there; raised to n_ubatch if that is more. */
    std::uint32_t max_rewind = 64;
    /** Room for pin() and evict_range(), see skc_layer_config: tokens, and pinned runs and dropped ranges together. */
    std::uint32_t max_pinned = 0, max_segments = 0;
    /**
     * Whether K and V of layers on a CUDA device are kept and attended there (llama.cpp built with CUDA). Otherwise,
     * and where sinkcache cannot use CUDA, q, k and v are copied to the CPU. Not yet run on a GPU.
     */
    bool gpu = true;
};

/**
 * A llama_context whose attention is computed by a sinkcache::Cache. Batches go through decode() instead of
 * llama_decode; logits, samplers and the rest of llama.cpp's API are used as usual, with get(). Whatever is not
 * supported or invalid throws sinkcache::Error; no error leads to wrong logits.
 *
 * Threads: one call at a time, as with a llama_context. Different LlamaContexts are independent, also of the same
 * model. Calls of a moved-from LlamaContext are undefined; it can be assigned to or destroyed.
 */
class LlamaContext {
public:
    /**
     * Creates the llama_context and its cache. `model`, the samplers of `params` and the user data of its callbacks
     * must outlive this object.
     *
     * Of `params` the following are replaced: n_ctx (room for one batch: llama.cpp's own cache is bookkeeping only),
     * n_seq_max, kv_unified, flash_attn_type, type_k and type_v; n_batch and n_outputs_max are raised to n_seqs + 1 if
     * they are less. llama.cpp's compute buffers grow with n_batch: 512 is enough.
     *
     * @throws Error SKC_STATUS_INVALID_CONFIG for a model or setting that is not supported, with the reason;
     * SKC_STATUS_OUT_OF_MEMORY if the cache cannot be allocated; SKC_STATUS_INTERNAL if llama.cpp cannot create the
     * context (the reason is in its log).
     */
    explicit LlamaContext(llama_model *model, llama_context_params params = llama_context_default_params(),
                          const LlamaOptions &options = LlamaOptions());
    ~LlamaContext();
    LlamaContext(LlamaContext &&) noexcept;
    LlamaContext &operator=(LlamaContext &&) noexcept;

    /**
     * For logits, samplers, threads and LoRA adapters. Owned by this object. Do not call llama_decode, llama_encode,
     * llama_memory_ edits or llama_state_ loads on it: they bypass the cache, and fail or make the next decode() fail.
     * The positions in its memory are not those of the stream.
     */
    llama_context *get() const noexcept;

    /**
     * llama_decode through the cache: 1 to n_batch tokens. Each token is in one sequence, and the tokens of a sequence
     * are consecutive. `pos`, if not NULL, must continue the stream positions of the sequence. The arrays of `batch`
     * are read during the call only.
     *
     * @throws Error SKC_STATUS_INVALID_ARGUMENT or SKC_STATUS_OUT_OF_RANGE for an invalid batch, which changes nothing.
     * After an error during the computation (an abort callback, for example) the micro-batches that were completed stay
     * in the cache, length() includes them, and the batch has no logits. In a model with recurrent layers the sequences
     * of the one that failed are unusable until they are cleared or loaded.
     */
    void decode(const llama_batch &batch);

    /**
     * Removes the newest `n` tokens of a sequence as if they had never been decoded.
     *
     * @throws Error SKC_STATUS_TOKENS_GONE if tokens that would be visible again have been overwritten, see
     * LlamaOptions::max_rewind, and in a model with recurrent layers unless no token or all tokens are removed;
     * SKC_STATUS_OUT_OF_RANGE for a sequence that does not exist, or has fewer tokens.
     */
    void rewind(llama_seq_id seq_id, std::uint32_t n);

    /**
     * Holds the `n` tokens from index `first` on permanently, such as a system prompt: they no longer take places of
     * the window. Indices count from 0 since the last clear(), evicted tokens included. n = 0 does nothing.
     *
     * @throws Error SKC_STATUS_NO_ROOM beyond LlamaOptions::max_pinned or max_segments; SKC_STATUS_TOKENS_GONE if a
     * token is no longer held; SKC_STATUS_OUT_OF_RANGE for a sequence that does not exist, or a range that ends beyond
     * it.
     */
    void pin(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n);

    /**
     * Drops what is held of the `n` tokens from index `first` on permanently, such as a model's thoughts; newer tokens
     * close the gap. The logits of the last decode() stay, and so does what recurrent layers have read.
     *
     * @throws Error SKC_STATUS_NO_ROOM beyond LlamaOptions::max_segments; SKC_STATUS_OUT_OF_RANGE for a sink, and as
     * pin() does.
     */
    void evict_range(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n);

    /**
     * Empties a sequence; the next token's stream position is `start_position`. Also repairs a sequence that an earlier
     * error has made unusable.
     *
     * @throws Error SKC_STATUS_OUT_OF_RANGE for a sequence that does not exist.
     */
    void clear(llama_seq_id seq_id, std::uint64_t start_position = 0);

    /**
     * Makes sequence `dst` an independent copy of `src`, such as for a second answer to one prompt. There are no logits
     * of `dst` until its next decode().
     *
     * @throws Error as save() does; SKC_STATUS_INVALID_ARGUMENT if both are the same sequence.
     */
    void fork(llama_seq_id src, llama_seq_id dst);

    /**
     * A sequence as bytes: what its next decode() needs, in place of llama.cpp's states. `tag` tells saved sequences of
     * different models apart, such as by a hash of the model's file: equal shapes of another model are not noticed
     * otherwise. LoRA adapters and samplers are not saved.
     *
     * @throws Error as clear() does; SKC_STATUS_INVALID_ARGUMENT for a sequence that an earlier error has made
     * unusable.
     */
    std::vector<std::uint8_t> save(llama_seq_id seq_id, const HostTag &tag) const;
    /** Bytes that save() would return now. @throws Error as save() does. */
    std::size_t saved_bytes(llama_seq_id seq_id) const;
    /** save() into memory of the caller's; returns the bytes written. @throws Error as save() does, or for no room. */
    std::size_t save_to(llama_seq_id seq_id, const HostTag &tag, std::uint8_t *data, std::size_t n_bytes) const;

    /**
     * Replaces a sequence by a saved one; the next token follows it. n_sink, window, kv_dtype and the model must be
     * those of the context that saved it. There are no logits until the next decode().
     *
     * @throws Error SKC_STATUS_INVALID_SNAPSHOT with what differs, for bytes that are damaged or of another model, tag
     * or setting; the sequence is then as before. As clear() does.
     */
    void load(llama_seq_id seq_id, Span<std::uint8_t> saved, const HostTag &tag);

    /** Tokens decoded since the last clear(), evicted ones included. @throws Error as clear() does. */
    std::uint64_t length(llama_seq_id seq_id) const;

    /** Bytes that the cache has allocated. */
    std::uint64_t cache_bytes() const noexcept;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_HPP
