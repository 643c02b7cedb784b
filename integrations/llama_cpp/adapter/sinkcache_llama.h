/*
 * sinkcache as the KV cache and attention of an unmodified llama.cpp, in C: for bindings of other languages. The same
 * as sinkcache_llama.hpp, which says more about each call. MIT OR Apache-2.0.
 *
 * Conventions
 * - Calls return SKC_STATUS_OK or a status of sinkcache.h; then skc_llama_last_error() has a text with the value and
 *   what is allowed. A call that fails has changed nothing, except as skc_llama_decode says. Output parameters are
 *   written on success alone.
 * - Every call may return SKC_STATUS_NULL_POINTER, SKC_STATUS_OUT_OF_MEMORY and SKC_STATUS_INTERNAL.
 * - One call on a stream at a time, as with a llama_context. Different streams are independent.
 * - Both the static library sinkcache_llama and libsinkcache_llama.so have these functions. The latter uses the shared
 *   llama.cpp that it finds in the process, and need not be preloaded for them.
 */
#ifndef SINKCACHE_LLAMA_H
#define SINKCACHE_LLAMA_H

#include <llama.h>
#include <sinkcache.h>

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SKC_LLAMA_API __attribute__((visibility("default")))
#else
#define SKC_LLAMA_API
#endif

/** A llama_context with a cache of sinks and a rolling window. */
typedef struct skc_llama skc_llama;

/** Settings of the cache. Those that follow from the model are read from its graph. */
typedef struct skc_llama_options {
    /** Set to sizeof(skc_llama_options): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** First tokens of each sequence, which are never evicted. */
    uint32_t n_sink;
    /** Most recent tokens a query attends to, its own included; at least 1. */
    uint32_t window;
    /** Types K and V are stored in, of SKC_DTYPE_. */
    uint32_t k_dtype;
    uint32_t v_dtype;
    /** Number of sequences; their ids are 0 to n_seqs - 1. */
    uint32_t n_seqs;
    /** How far below its highest length a sequence may be cut; raised to n_ubatch if that is more. */
    uint32_t max_rewind;
    /** Room for pinned tokens, and for pinned runs and dropped ranges together. */
    uint32_t max_pinned;
    uint32_t max_segments;
    /**
     * Not 0: K and V of layers on a CUDA device are kept and attended there, if llama.cpp was built with CUDA and
     * sinkcache can use it. 0: on the CPU, with copies. Not yet run on a GPU.
     */
    uint32_t gpu;
} skc_llama_options;

/** 4 sinks, a window of 2,044 tokens, f16, one sequence, on the GPU if there is one. */
#define SKC_LLAMA_OPTIONS_INIT                                                                                         \
    { sizeof(skc_llama_options), 4, 2044, SKC_DTYPE_F16, SKC_DTYPE_F16, 1, 64, 0, 0, 1 }

/**
 * Creates a llama_context and its cache. `model`, and the samplers and user data that `params` points to, must outlive
 * them. Of `params` some are replaced, see LlamaContext. NULL `params` and `options` are the defaults.
 *
 * SKC_STATUS_INVALID_CONFIG for a model, setting or version of llama.cpp that is not supported, with the reason.
 */
SKC_LLAMA_API skc_status skc_llama_create(struct llama_model *model, const struct llama_context_params *params,
                                          const skc_llama_options *options, skc_llama **stream);
/** Destroys a stream with its llama_context. NULL is allowed. A stream that was destroyed must not be used. */
SKC_LLAMA_API void skc_llama_destroy(skc_llama *stream);

/**
 * For logits, samplers, threads and LoRA adapters; owned by the stream. llama_decode, llama_encode, llama_memory_ edits
 * and llama_state_ loads on it bypass the cache. NULL for NULL.
 */
SKC_LLAMA_API struct llama_context *skc_llama_context(const skc_llama *stream);

/**
 * llama_decode through the cache: 1 to n_batch tokens, each in one sequence, those of a sequence consecutive.
 *
 * SKC_STATUS_INVALID_ARGUMENT or SKC_STATUS_OUT_OF_RANGE for an invalid batch. After an error during the computation
 * the micro-batches that were completed stay: skc_llama_length includes them. In a model with recurrent layers the
 * sequences of the one that failed are unusable until they are cleared or loaded.
 */
SKC_LLAMA_API skc_status skc_llama_decode(skc_llama *stream, const struct llama_batch *batch);

/**
 * Removes the newest `n` tokens of a sequence; in a model with recurrent layers, none or all. SKC_STATUS_TOKENS_GONE,
 * SKC_STATUS_OUT_OF_RANGE.
 */
SKC_LLAMA_API skc_status skc_llama_rewind(skc_llama *stream, llama_seq_id seq_id, uint32_t n);
/** Empties a sequence, and makes it usable again after an error. SKC_STATUS_OUT_OF_RANGE. */
SKC_LLAMA_API skc_status skc_llama_clear(skc_llama *stream, llama_seq_id seq_id, uint64_t start_position);
/** Makes `dst` an independent copy of `src`. SKC_STATUS_OUT_OF_RANGE, SKC_STATUS_INVALID_ARGUMENT. */
SKC_LLAMA_API skc_status skc_llama_fork(skc_llama *stream, llama_seq_id src, llama_seq_id dst);
/**
 * Holds the `n` tokens from index `first` on permanently. SKC_STATUS_NO_ROOM, SKC_STATUS_TOKENS_GONE,
 * SKC_STATUS_OUT_OF_RANGE.
 */
SKC_LLAMA_API skc_status skc_llama_pin(skc_llama *stream, llama_seq_id seq_id, uint64_t first, uint32_t n);
/** Drops the `n` tokens from index `first` on permanently. SKC_STATUS_NO_ROOM, SKC_STATUS_OUT_OF_RANGE. */
SKC_LLAMA_API skc_status skc_llama_evict_range(skc_llama *stream, llama_seq_id seq_id, uint64_t first, uint32_t n);

/** Tokens decoded since the last clear, evicted ones included. SKC_STATUS_OUT_OF_RANGE. */
SKC_LLAMA_API skc_status skc_llama_length(const skc_llama *stream, llama_seq_id seq_id, uint64_t *length);
/** Bytes that the cache has allocated. */
SKC_LLAMA_API skc_status skc_llama_cache_bytes(const skc_llama *stream, uint64_t *n_bytes);

/** Bytes that skc_llama_save would write now. As skc_llama_save does. */
SKC_LLAMA_API skc_status skc_llama_saved_bytes(const skc_llama *stream, llama_seq_id seq_id, uint64_t *n_bytes);
/**
 * Saves a sequence. `host_tag` has SKC_HOST_TAG_BYTES bytes that tell models apart, such as a hash of the model's file;
 * NULL = zeros. `n_written` may be NULL.
 *
 * SKC_STATUS_OUT_OF_RANGE for a sequence that does not exist, or too little room.
 */
SKC_LLAMA_API skc_status skc_llama_save(const skc_llama *stream, llama_seq_id seq_id, const uint8_t *host_tag,
                                        void *data, uint64_t n_bytes, uint64_t *n_written);
/** Replaces a sequence by a saved one. SKC_STATUS_INVALID_SNAPSHOT with what differs, SKC_STATUS_OUT_OF_RANGE. */
SKC_LLAMA_API skc_status skc_llama_load(skc_llama *stream, llama_seq_id seq_id, const uint8_t *host_tag,
                                        const void *data, uint64_t n_bytes);

/** The text of the last error of a call above in this thread; never NULL. Valid until the thread's next call. */
SKC_LLAMA_API const char *skc_llama_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* SINKCACHE_LLAMA_H */
