/*
 * An unmodified llama.cpp whose attention and KV cache are sinkcache's: streams of any length at constant memory.
 * Uses llama.cpp's public headers only. MIT OR Apache-2.0.
 */
#ifndef SINKCACHE_LLAMA_HPP
#define SINKCACHE_LLAMA_HPP

#include "sinkcache.hpp"

#include <llama.h>

#include <cstdint>
#include <memory>

namespace sinkcache {

/** What the cache holds; everything about the model is read from its graph. */
struct LlamaOptions {
    /** Pinned first tokens of each sequence. */
    std::uint32_t n_sink = 4;
    /** Most recent tokens a query sees, its own included. */
    std::uint32_t window = 2044;
    /** Type K and V are stored in, one of SKC_DTYPE_. */
    std::uint32_t kv_dtype = SKC_DTYPE_F16;
    /** Sequences, ids 0 to n_seqs - 1. */
    std::uint32_t n_seqs = 1;
    /** How far below its highest length rewind() may cut a sequence, at least: n_ubatch if that is more. */
    std::uint32_t max_rewind = 64;
};

/**
 * A llama_context that streams. Batches go through decode(), never to llama_decode; logits, samplers and everything else of
 * llama.cpp are used as always. What cannot be done is thrown as sinkcache::Error and never becomes a wrong logit.
 *
 * Like a llama_context, it takes one call at a time; different ones are independent.
 */
class LlamaContext {
public:
    /**
     * Makes the llama_context and its cache. `model` must outlive it.
     *
     * Of `params` these are set here: n_ctx (room for one batch: llama.cpp's own cache is book-keeping only), n_seq_max,
     * kv_unified, flash_attn_type, type_k and type_v; n_batch and n_outputs_max are raised to n_seqs + 1 where they are less.
     * Memory beside the cache grows with n_batch: 512 is plenty.
     *
     * @throws Error SKC_STATUS_INVALID_CONFIG for a model or setting that is not supported, with the reason;
     * SKC_STATUS_INTERNAL if llama.cpp made no context, whose log then says why.
     */
    explicit LlamaContext(llama_model *model, llama_context_params params = llama_context_default_params(),
                          const LlamaOptions &options = LlamaOptions());
    ~LlamaContext();
    LlamaContext(LlamaContext &&) noexcept;
    LlamaContext &operator=(LlamaContext &&) noexcept;

    /**
     * For logits, samplers, threads, adapters. Not for llama_decode, llama_encode, llama_memory_ edits and llama_state_
     * loads: they go past the cache, and are refused here or at the next decode(). Its positions are not the stream's.
     */
    llama_context *get() const noexcept;

    /**
     * llama_decode through the cache: 1 to n_batch tokens, those of a sequence side by side, each of one sequence.
     * Positions continue the sequence's (NULL = that they do).
     *
     * @throws Error and llama_get_logits holds nothing of this batch. Refused batches change nothing. If the work was
     * cut short (an abort callback, a failure), what whole micro-batches have stored stays in both caches, and length() tells.
     */
    void decode(const llama_batch &batch);

    /**
     * Cuts the newest `n` tokens of a sequence as if they had never been, in both caches.
     *
     * @throws Error SKC_STATUS_TOKENS_GONE for more than can come back.
     */
    void rewind(llama_seq_id seq_id, std::uint32_t n);

    /**
     * Empties a sequence in both caches; the next token's stream position is `start_position`.
     *
     * @throws Error SKC_STATUS_OUT_OF_RANGE if there is no such sequence.
     */
    void clear(llama_seq_id seq_id, std::uint64_t start_position = 0);

    /** Tokens decoded since the last clear, dropped ones included. @throws Error as clear() does. */
    std::uint64_t length(llama_seq_id seq_id) const;

    /** Bytes of K and V, scratch included. */
    std::uint64_t cache_bytes() const noexcept;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_HPP
