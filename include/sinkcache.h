/*
 * sinkcache: attention-sink KV cache. MIT OR Apache-2.0.
 *
 * A cache holds K and V of all layers and sequences of one model: the first n_sink tokens of each sequence for ever, and
 * a rolling window of the most recent ones. Attention over it equals recomputing the window at every token.
 *
 * Conventions
 * - Every call that does work is (cache, const skc_..._args *). Zero an argument struct, set struct_size, fill it. A
 *   program built against an older or a newer header than the library's works: structs only grow at their end.
 * - Calls return a skc_status. After an error the cache is as it was, outputs are untouched, and skc_last_error() says
 *   what was wrong; after SKC_STATUS_INTERNAL or _DEVICE_LOST only skc_destroy_cache works. A handle that was destroyed or
 *   never created is refused, not undefined behaviour.
 * - A cache takes one call at a time: a second one, also from a callback, is SKC_STATUS_BUSY. Only skc_step_part may be
 *   called by several threads at once. Different caches are independent.
 * - Lengths are per (layer, sequence). Edits (evict, rewind, fork) need all layers of a sequence at one length.
 * - Callbacks must not throw.
 * - CUDA: tensors are device pointers, calls put their work into args.stream and return; nothing waits, allocates or reads
 *   device memory but skc_create_cache, skc_destroy_cache and SKC_READ_BACK, so that calls can be captured into a graph and
 *   replayed for ever: lengths and positions live on the device. One cache follows one stream unless the caller orders
 *   several. The caller's current context is left as it was. What a graph does, or counts in device memory say, the host
 *   cannot know: such sequences are checked on the device, where an entry that cannot be done is skipped and noted for
 *   skc_poll_error.
 *
 * Made by cbindgen; do not edit.
 */

#ifndef SINKCACHE_H
#define SINKCACHE_H

#include <stddef.h>
#include <stdint.h>

/** Initialiser of a skc_cache_config with its defaults, the same as skc_cache_config_init. */
#define SKC_CACHE_CONFIG_INIT                                                                                          \
    {sizeof(skc_cache_config), 0, SKC_BACKEND_CPU, 1, 1, 0, 0, 0, 0, SKC_DTYPE_F32, 0, SKC_DTYPE_F16, 512, 16, 1, 0,   \
     NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL}

/** Initialiser of a skc_layer_config with its defaults, the same as skc_layer_config_init. */
#define SKC_LAYER_CONFIG_INIT                                                                                          \
    {sizeof(skc_layer_config), 0, 4, 2044, SKC_POSITION_ROPE, SKC_ROPE_NEOX, 0, 0, 10000.0, 1.0, 1.0, 0.0, 0.0, NULL,  \
     NULL, NULL, 0, 0}


/**
 * Version of this contract: raised when something a caller relies on changes. Additions do not raise it.
 */
#define SKC_ABI_VERSION 0

/**
 * Host memory and host threads.
 */
#define SKC_BACKEND_CPU 1

/**
 * An NVIDIA GPU.
 */
#define SKC_BACKEND_CUDA 2

/**
 * IEEE binary32.
 */
#define SKC_DTYPE_F32 1

/**
 * IEEE binary16.
 */
#define SKC_DTYPE_F16 2

/**
 * bfloat16.
 */
#define SKC_DTYPE_BF16 3

/**
 * The cache rotates k and q.
 */
#define SKC_POSITION_ROPE 1

/**
 * The host has rotated k and q at their stream positions, which advance by exactly one per token.
 */
#define SKC_POSITION_ROPE_APPLIED 2

/**
 * Nobody rotates; a bias of -slope x distance in cache positions is added.
 */
#define SKC_POSITION_ALIBI 3

/**
 * No positions.
 */
#define SKC_POSITION_NONE 4

/**
 * Dim i is rotated with dim i + rope_dim / 2.
 */
#define SKC_ROPE_NEOX 1

/**
 * Dim 2i is rotated with dim 2i + 1.
 */
#define SKC_ROPE_INTERLEAVED 2

/**
 * A cache was made or destroyed.
 */
#define SKC_LOG_INFO 1

/**
 * A call was refused.
 */
#define SKC_LOG_WARN 2

/**
 * A call failed inside.
 */
#define SKC_LOG_ERROR 3

/**
 * A sequence id that marks an entry as padding.
 */
#define SKC_PADDING -1

/**
 * Every layer, where a layer is asked for; the layer of an edit in skc_device_error.
 */
#define SKC_ALL_LAYERS 4294967295

/**
 * Flag of a call: its arrays (seq_ids, n_tokens, start_positions) lie in device memory. CUDA only. Nothing in them is
 * known to the host: entries that cannot be done are skipped on the device, see skc_poll_error.
 */
#define SKC_ON_DEVICE 1

/**
 * Flag of skc_cache_config: compiled kernels are not kept on disk. See also SINKCACHE_CUDA_CACHE_DIR.
 */
#define SKC_NO_DISK_CACHE 1

/**
 * Flag of skc_cache_config: CUDA's programmatic dependent launches, from compute capability 9.0 on. Blocks of a kernel of
 * this cache take their places while the kernel before it in the stream still runs, if that one lets dependents in
 * (griddepcontrol.launch_dependents), and wait for its end. With this flag or without, they let a kernel after them in that
 * is launched that way: it must wait likewise. Captures need a driver of CUDA 12.3 or later.
 */
#define SKC_PROGRAMMATIC_LAUNCH 2

/**
 * Flag of skc_sequence_info: wait for the stream of the latest call and read the sequence's state from the device.
 */
#define SKC_READ_BACK 1

/**
 * skc_append_kv, and the first half of skc_step.
 */
#define SKC_CALL_APPEND 1

/**
 * skc_attend, and the second half of skc_step.
 */
#define SKC_CALL_ATTEND 2

/**
 * skc_evict.
 */
#define SKC_CALL_EVICT 3

/**
 * skc_rewind.
 */
#define SKC_CALL_REWIND 4

/**
 * skc_reset.
 */
#define SKC_CALL_RESET 5

/**
 * skc_fork.
 */
#define SKC_CALL_FORK 6

/**
 * skc_abort_step.
 */
#define SKC_CALL_ABORT 7

/**
 * skc_step, where a kernel is asked for: see skc_kernel_choice.
 */
#define SKC_CALL_STEP 8

/**
 * A cache. The pointer is a number, not an address: it must not be dereferenced or computed with.
 */
typedef struct skc_cache skc_cache;

/**
 * Status of a call: 0, or one of the negative SKC_STATUS_ numbers, which are never reused.
 */
typedef int32_t skc_status;

/**
 * Settings of one layer. Fill it with skc_layer_config_init or SKC_LAYER_CONFIG_INIT, then set what differs.
 */
typedef struct skc_layer_config {
    /**
     * sizeof(skc_layer_config).
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t flags;
    /**
     * Pinned first tokens of each sequence. Default 4.
     */
    uint32_t n_sink;
    /**
     * Most recent tokens a query sees, its own included; at least 1. Default 2044.
     */
    uint32_t window;
    /**
     * One of SKC_POSITION_. Default SKC_POSITION_ROPE.
     */
    uint32_t position_mode;
    /**
     * One of SKC_ROPE_. Default SKC_ROPE_NEOX.
     */
    uint32_t rope_style;
    /**
     * Rotated leading dims, even; 0 = head_dim. Default 0.
     */
    uint32_t rope_dim;
    /**
     * Values of inv_freq: rope_dim / 2, or 0 for the frequencies of rope_base.
     */
    uint32_t n_inv_freq;
    /**
     * RoPE base. Default 10000.
     */
    double rope_base;
    /**
     * Linear position scaling: angle = position x rope_scale x frequency. Default 1.
     */
    double rope_scale;
    /**
     * Factor on the rotated dims of q and of k (YaRN's attention factor). Default 1.
     */
    double rope_mscale;
    /**
     * Factor on scores; 0 = 1 / sqrt(head_dim). Default 0.
     */
    double scale;
    /**
     * Above 0: score = softcap x tanh(score / softcap). Default 0.
     */
    double softcap;
    /**
     * Angular frequencies in radians per token (YaRN, Llama-3 scaling), copied at create. Frequencies that change with
     * the length of the stream (dynamic NTK) cannot be expressed: a key is rotated once.
     */
    const float *inv_freq;
    /**
     * ALiBi slopes of the query heads, copied at create. Needed in SKC_POSITION_ALIBI, refused elsewhere.
     */
    const float *alibi_slopes;
    /**
     * Learned logits of the query heads (gpt-oss), raw, in the denominator only, copied at create.
     */
    const float *sink_logits;
    /**
     * Values of alibi_slopes: n_q_heads or 0.
     */
    uint32_t n_alibi_slopes;
    /**
     * Values of sink_logits: n_q_heads or 0.
     */
    uint32_t n_sink_logits;
} skc_layer_config;

/**
 * Returns `bytes` bytes aligned to `align` (a power of two), or NULL. Called at create only.
 */
typedef void *(*skc_alloc_fn)(void *user, size_t bytes, size_t align);

/**
 * Takes back what skc_alloc_fn returned for `bytes`. Called at destroy, and at a create that fails.
 */
typedef void (*skc_free_fn)(void *user, void *ptr, size_t bytes);

/**
 * One task of a parallel loop.
 */
typedef void (*skc_task_fn)(void *data, uint32_t index);

/**
 * The host's parallel loop: calls task(data, i) for every i below n, on any threads, and returns when all have
 * returned. It must not start one after it has returned, nor throw.
 */
typedef void (*skc_parallel_for_fn)(void *user, uint32_t n, skc_task_fn task, void *data);

/**
 * Gets one of SKC_LOG_ and a line of text, valid during the call.
 */
typedef void (*skc_log_fn)(void *user, uint32_t level, const char *text);

/**
 * Settings of a cache. Fill it with skc_cache_config_init or SKC_CACHE_CONFIG_INIT, then set what differs; head counts,
 * head_dim and layers have no default.
 */
typedef struct skc_cache_config {
    /**
     * sizeof(skc_cache_config).
     */
    uint32_t struct_size;
    /**
     * 0, SKC_NO_DISK_CACHE, SKC_PROGRAMMATIC_LAUNCH or both.
     */
    uint32_t flags;
    /**
     * One of SKC_BACKEND_. Default SKC_BACKEND_CPU.
     */
    uint32_t backend;
    /**
     * Layers, 1 to 65536. Default 1.
     */
    uint32_t n_layers;
    /**
     * Sequences, 1 to 2^24. Default 1.
     */
    uint32_t n_seqs;
    /**
     * Query heads, a multiple of n_kv_heads. Of a tensor-parallel shard: its own heads only.
     */
    uint32_t n_q_heads;
    /**
     * Heads of K and V. Query head h reads KV head h / (n_q_heads / n_kv_heads).
     */
    uint32_t n_kv_heads;
    /**
     * Dims of a head of Q and K: a multiple of 8, at most 512.
     */
    uint32_t head_dim;
    /**
     * Dims of a head of V and of the output, likewise; 0 = head_dim. Default 0.
     */
    uint32_t head_dim_v;
    /**
     * Type of q, k and v as they come in, one of SKC_DTYPE_. Default SKC_DTYPE_F32.
     */
    uint32_t in_dtype;
    /**
     * Type of out; 0 = in_dtype. Default 0.
     */
    uint32_t out_dtype;
    /**
     * Type K and V are stored in. Default SKC_DTYPE_F16.
     */
    uint32_t kv_dtype;
    /**
     * Most tokens of one sequence in one skc_append_kv, 1 to 2^30. Default 512.
     */
    uint32_t max_chunk;
    /**
     * How far below its highest length skc_rewind may cut a sequence, 0 to 2^30. Default 16.
     */
    uint32_t max_rewind;
    /**
     * Threads, or tasks handed to parallel_for at a time, or the largest team of skc_step_part; 1 to 1024. Default 1.
     */
    uint32_t n_threads;
    /**
     * Elements of layers: 1, which then holds for all layers, or n_layers.
     */
    uint32_t n_layer_configs;
    /**
     * Settings of the layers, copied at create.
     */
    const struct skc_layer_config *layers;
    /**
     * Bytes from one element of layers to the next; 0 = the first one's struct_size.
     */
    uint64_t layer_stride;
    /**
     * Where memory comes from: both or neither. May be called from any thread.
     */
    skc_alloc_fn alloc;
    /**
     * Counterpart of alloc.
     */
    skc_free_fn free;
    /**
     * First argument of alloc and free.
     */
    void *memory_user;
    /**
     * The host's parallel loop; NULL = threads of our own if n_threads is above 1. They sleep 50 microseconds after a
     * call; a child of fork(2) gets its own at its first call. An append of few tokens stays on the calling thread.
     */
    skc_parallel_for_fn parallel_for;
    /**
     * First argument of parallel_for.
     */
    void *parallel_for_user;
    /**
     * Gets a line of text now and then; NULL = silence. May be called from any thread.
     */
    skc_log_fn log;
    /**
     * First argument of log.
     */
    void *log_user;
    /**
     * CUDA: device ordinal, whose primary context is used. Default 0.
     */
    uint32_t cuda_device;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * CUDA: the host's own context (CUcontext) instead; it must outlive the cache. NULL = the primary context.
     */
    void *cuda_context;
    /**
     * CUDA: where device memory comes from: both or neither, NULL = cuMemAlloc. The cache's context is current when they
     * are called.
     */
    skc_alloc_fn device_alloc;
    /**
     * Counterpart of device_alloc.
     */
    skc_free_fn device_free;
    /**
     * First argument of device_alloc and device_free.
     */
    void *device_memory_user;
} skc_cache_config;

/**
 * Arguments of skc_append_kv. Rows are packed in the order of the entries, as many for each as it has tokens. Strides
 * count elements; 0 means packed.
 */
typedef struct skc_append_kv_args {
    /**
     * sizeof(skc_append_kv_args).
     */
    uint32_t struct_size;
    /**
     * 0 or SKC_ON_DEVICE.
     */
    uint32_t flags;
    /**
     * Layer.
     */
    uint32_t layer;
    /**
     * Entries of seq_ids and n_tokens.
     */
    uint32_t n_entries;
    /**
     * Sequences; SKC_PADDING skips an entry's rows. A sequence may appear once.
     */
    const int32_t *seq_ids;
    /**
     * Tokens of each entry, at most max_chunk; 0 is padding.
     */
    const int32_t *n_tokens;
    /**
     * Keys [rows, n_kv_heads, head_dim] of in_dtype.
     */
    const void *k;
    /**
     * Values [rows, n_kv_heads, head_dim_v] of in_dtype.
     */
    const void *v;
    /**
     * Elements between rows of k; 0 = n_kv_heads x head_dim.
     */
    int64_t k_token_stride;
    /**
     * Elements between heads of k; 0 = head_dim.
     */
    int64_t k_head_stride;
    /**
     * Elements between rows of v; 0 = n_kv_heads x head_dim_v.
     */
    int64_t v_token_stride;
    /**
     * Elements between heads of v; 0 = head_dim_v.
     */
    int64_t v_head_stride;
    /**
     * CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
     */
    void *stream;
    /**
     * With SKC_ON_DEVICE the rows the tensors have; else 0.
     */
    uint64_t n_rows;
    /**
     * With SKC_ON_DEVICE the most tokens an entry may have, at most max_chunk; else 0.
     */
    uint32_t max_tokens;
    /**
     * 0.
     */
    uint32_t reserved;
} skc_append_kv_args;

/**
 * Arguments of skc_attend. Rows are packed in the order of the entries, as many for each as it has tokens. Strides
 * count elements; 0 means packed.
 */
typedef struct skc_attend_args {
    /**
     * sizeof(skc_attend_args).
     */
    uint32_t struct_size;
    /**
     * 0 or SKC_ON_DEVICE.
     */
    uint32_t flags;
    /**
     * Layer.
     */
    uint32_t layer;
    /**
     * Entries of seq_ids and n_tokens.
     */
    uint32_t n_entries;
    /**
     * Sequences; SKC_PADDING leaves an entry's output rows untouched. A sequence may appear once.
     */
    const int32_t *seq_ids;
    /**
     * Queries of each entry, those of the last tokens; at most the latest append's tokens; 0 is padding.
     */
    const int32_t *n_tokens;
    /**
     * Queries [rows, n_q_heads, head_dim] of in_dtype.
     */
    const void *q;
    /**
     * Results [rows, n_q_heads, head_dim_v] of out_dtype. Rows and heads must not overlap.
     */
    void *out;
    /**
     * Natural log of the softmax denominators [rows, n_q_heads], learned sink logit included; NULL = not wanted.
     */
    float *lse;
    /**
     * Elements between rows of q; 0 = n_q_heads x head_dim.
     */
    int64_t q_token_stride;
    /**
     * Elements between heads of q; 0 = head_dim.
     */
    int64_t q_head_stride;
    /**
     * Elements between rows of out; 0 = n_q_heads x head_dim_v.
     */
    int64_t out_token_stride;
    /**
     * Elements between heads of out; 0 = head_dim_v.
     */
    int64_t out_head_stride;
    /**
     * Elements between rows of lse; 0 = n_q_heads.
     */
    int64_t lse_token_stride;
    /**
     * Elements between heads of lse; 0 = 1.
     */
    int64_t lse_head_stride;
    /**
     * CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
     */
    void *stream;
    /**
     * With SKC_ON_DEVICE the rows the tensors have; else 0.
     */
    uint64_t n_rows;
    /**
     * With SKC_ON_DEVICE the most tokens an entry may have, at most max_chunk; else 0.
     */
    uint32_t max_tokens;
    /**
     * 0.
     */
    uint32_t reserved;
} skc_attend_args;

/**
 * Arguments of skc_step and skc_step_part: those of skc_append_kv and skc_attend, for any number of tokens.
 */
typedef struct skc_step_args {
    /**
     * sizeof(skc_step_args).
     */
    uint32_t struct_size;
    /**
     * 0 or SKC_ON_DEVICE.
     */
    uint32_t flags;
    /**
     * Layer.
     */
    uint32_t layer;
    /**
     * Entries of seq_ids and n_tokens.
     */
    uint32_t n_entries;
    /**
     * Sequences; SKC_PADDING leaves an entry's output rows untouched. A sequence may appear once.
     */
    const int32_t *seq_ids;
    /**
     * Tokens of each entry, any number; 0 is padding.
     */
    const int32_t *n_tokens;
    /**
     * Keys [rows, n_kv_heads, head_dim] of in_dtype.
     */
    const void *k;
    /**
     * Values [rows, n_kv_heads, head_dim_v] of in_dtype.
     */
    const void *v;
    /**
     * Queries [rows, n_q_heads, head_dim] of in_dtype.
     */
    const void *q;
    /**
     * Results [rows, n_q_heads, head_dim_v] of out_dtype. Rows and heads must not overlap, nor k
     * or v.
     */
    void *out;
    /**
     * Natural log of the softmax denominators [rows, n_q_heads], learned sink logit included; NULL = not wanted.
     */
    float *lse;
    /**
     * Elements between rows of k; 0 = n_kv_heads x head_dim.
     */
    int64_t k_token_stride;
    /**
     * Elements between heads of k; 0 = head_dim.
     */
    int64_t k_head_stride;
    /**
     * Elements between rows of v; 0 = n_kv_heads x head_dim_v.
     */
    int64_t v_token_stride;
    /**
     * Elements between heads of v; 0 = head_dim_v.
     */
    int64_t v_head_stride;
    /**
     * Elements between rows of q; 0 = n_q_heads x head_dim.
     */
    int64_t q_token_stride;
    /**
     * Elements between heads of q; 0 = head_dim.
     */
    int64_t q_head_stride;
    /**
     * Elements between rows of out; 0 = n_q_heads x head_dim_v.
     */
    int64_t out_token_stride;
    /**
     * Elements between heads of out; 0 = head_dim_v.
     */
    int64_t out_head_stride;
    /**
     * Elements between rows of lse; 0 = n_q_heads.
     */
    int64_t lse_token_stride;
    /**
     * Elements between heads of lse; 0 = 1.
     */
    int64_t lse_head_stride;
    /**
     * CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
     */
    void *stream;
    /**
     * With SKC_ON_DEVICE the rows the tensors have; else 0.
     */
    uint64_t n_rows;
    /**
     * With SKC_ON_DEVICE the most tokens an entry may have; else 0.
     */
    uint32_t max_tokens;
    /**
     * 0.
     */
    uint32_t reserved;
} skc_step_args;

/**
 * Arguments of skc_evict.
 */
typedef struct skc_evict_args {
    /**
     * sizeof(skc_evict_args).
     */
    uint32_t struct_size;
    /**
     * 0 or SKC_ON_DEVICE.
     */
    uint32_t flags;
    /**
     * Entries of seq_ids and n_tokens.
     */
    uint32_t n_entries;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Sequences; SKC_PADDING skips an entry. A sequence may appear once.
     */
    const int32_t *seq_ids;
    /**
     * Window tokens to drop, the oldest first; 0 skips an entry.
     */
    const int32_t *n_tokens;
    /**
     * CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
     */
    void *stream;
} skc_evict_args;

/**
 * Arguments of skc_rewind.
 */
typedef struct skc_rewind_args {
    /**
     * sizeof(skc_rewind_args).
     */
    uint32_t struct_size;
    /**
     * 0 or SKC_ON_DEVICE.
     */
    uint32_t flags;
    /**
     * Entries of seq_ids and n_tokens.
     */
    uint32_t n_entries;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Sequences; SKC_PADDING skips an entry. A sequence may appear once.
     */
    const int32_t *seq_ids;
    /**
     * Tokens to cut, the newest first; 0 skips an entry.
     */
    const int32_t *n_tokens;
    /**
     * CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
     */
    void *stream;
} skc_rewind_args;

/**
 * Arguments of skc_reset.
 */
typedef struct skc_reset_args {
    /**
     * sizeof(skc_reset_args).
     */
    uint32_t struct_size;
    /**
     * 0 or SKC_ON_DEVICE.
     */
    uint32_t flags;
    /**
     * Entries of seq_ids and, where given, start_positions.
     */
    uint32_t n_entries;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Sequences; SKC_PADDING skips an entry. A sequence may appear once.
     */
    const int32_t *seq_ids;
    /**
     * Stream positions of the next tokens; NULL = 0.
     */
    const uint64_t *start_positions;
    /**
     * CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
     */
    void *stream;
} skc_reset_args;

/**
 * Arguments of skc_fork.
 */
typedef struct skc_fork_args {
    /**
     * sizeof(skc_fork_args).
     */
    uint32_t struct_size;
    /**
     * 0 or SKC_ON_DEVICE.
     */
    uint32_t flags;
    /**
     * Entries of src_seq_ids and dst_seq_ids.
     */
    uint32_t n_entries;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Sequences to copy; SKC_PADDING skips an entry. One may be copied to many.
     */
    const int32_t *src_seq_ids;
    /**
     * Sequences to overwrite; SKC_PADDING skips an entry. None may be a source, or appear twice.
     */
    const int32_t *dst_seq_ids;
    /**
     * CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
     */
    void *stream;
} skc_fork_args;

/**
 * Arguments of skc_abort_step.
 */
typedef struct skc_abort_step_args {
    /**
     * sizeof(skc_abort_step_args).
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t flags;
    /**
     * Entries of seq_ids; 0 with seq_ids NULL = all sequences.
     */
    uint32_t n_entries;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Sequences; SKC_PADDING skips an entry. A sequence may appear once.
     */
    const int32_t *seq_ids;
    /**
     * CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
     */
    void *stream;
} skc_abort_step_args;

/**
 * State of a sequence, filled by skc_seq_info. Set struct_size and zero the rest before the call.
 */
typedef struct skc_sequence_info {
    /**
     * sizeof(skc_sequence_info).
     */
    uint32_t struct_size;
    /**
     * 0 or SKC_READ_BACK.
     */
    uint32_t flags;
    /**
     * Tokens in the shortest layer.
     */
    uint64_t length_min;
    /**
     * Tokens in the longest layer; above length_min only in the middle of a step.
     */
    uint64_t length_max;
    /**
     * Stream position of the first token.
     */
    uint64_t start_position;
    /**
     * Tokens the layer holds: sinks and window.
     */
    uint64_t cached_tokens;
    /**
     * Tokens the layer has dropped between sinks and window.
     */
    uint64_t evicted_tokens;
    /**
     * Tokens that may come before the layer drops one.
     */
    uint64_t room;
    /**
     * The most tokens skc_rewind would cut in the layer.
     */
    uint64_t rewindable;
} skc_sequence_info;

/**
 * What this build can do, filled by skc_capabilities. Set struct_size and zero the rest before the call. Bit n of a
 * mask stands for the constant of value n.
 */
typedef struct skc_capability_info {
    /**
     * sizeof(skc_capability_info).
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t flags;
    /**
     * SKC_ABI_VERSION of the library.
     */
    uint32_t abi_version;
    /**
     * SKC_BACKEND_ that skc_create_cache can make now.
     */
    uint32_t backends;
    /**
     * SKC_DTYPE_ of in_dtype and out_dtype.
     */
    uint32_t io_dtypes;
    /**
     * SKC_DTYPE_ of kv_dtype.
     */
    uint32_t kv_dtypes;
    /**
     * SKC_POSITION_ modes.
     */
    uint32_t position_modes;
    /**
     * SKC_ROPE_ styles.
     */
    uint32_t rope_styles;
    /**
     * Largest head_dim and head_dim_v.
     */
    uint32_t max_head_dim;
    /**
     * head_dim and head_dim_v are multiples of this.
     */
    uint32_t head_dim_multiple;
    /**
     * Largest n_layers.
     */
    uint32_t max_layers;
    /**
     * Largest n_seqs.
     */
    uint32_t max_seqs;
    /**
     * Largest n_threads.
     */
    uint32_t max_threads;
    /**
     * Largest max_chunk and max_rewind.
     */
    uint32_t max_chunk;
} skc_capability_info;

/**
 * A kernel and how it is launched, filled by skc_kernel_choice. Set struct_size and zero the rest before the call. On the
 * CPU there is a name only. Of a step longer than max_chunk all but n_launches is of its first chunk.
 */
typedef struct skc_kernel_info {
    /**
     * sizeof(skc_kernel_info).
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t flags;
    /**
     * Name of the kernel; of a call that takes several, that of its attention. "skc_step_decode" is append and attention
     * in one launch. Ends with 0.
     */
    char kernel[40];
    /**
     * Launches that the call takes. Those that write a batch of more than 64 entries in host memory to the device are not
     * counted.
     */
    uint64_t n_launches;
    /**
     * Blocks in x: one for each entry.
     */
    uint32_t grid_x;
    /**
     * Blocks in y.
     */
    uint32_t grid_y;
    /**
     * Blocks in z.
     */
    uint32_t grid_z;
    /**
     * Threads of a block.
     */
    uint32_t block_threads;
    /**
     * Bytes of shared memory of a block.
     */
    uint32_t shared_bytes;
    /**
     * Blocks that share the keys of one KV head of one sequence.
     */
    uint32_t n_splits;
} skc_kernel_info;

/**
 * Arguments of skc_note_replay.
 */
typedef struct skc_note_replay_args {
    /**
     * sizeof(skc_note_replay_args).
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t flags;
    /**
     * Layer, or SKC_ALL_LAYERS.
     */
    uint32_t layer;
    /**
     * Entries of seq_ids and n_tokens.
     */
    uint32_t n_entries;
    /**
     * Sequences, in host memory; SKC_PADDING skips an entry. A sequence may appear once.
     */
    const int32_t *seq_ids;
    /**
     * Tokens that have been appended to each, or where negative cut off it.
     */
    const int32_t *n_tokens;
} skc_note_replay_args;

/**
 * What the device has refused, filled by skc_poll_error. Set struct_size and zero the rest before the call.
 */
typedef struct skc_device_error {
    /**
     * sizeof(skc_device_error).
     */
    uint32_t struct_size;
    /**
     * 0.
     */
    uint32_t flags;
    /**
     * Entries that were skipped since the last time; 0 = none, and the rest is 0. What follows is the first one.
     */
    uint32_t n_skipped;
    /**
     * The status the call would have given, had the host known the counts.
     */
    skc_status status;
    /**
     * One of SKC_CALL_.
     */
    uint32_t call;
    /**
     * Layer; SKC_ALL_LAYERS for edits.
     */
    uint32_t layer;
    /**
     * Index of the entry in its batch.
     */
    uint32_t entry;
    /**
     * Sequence id as given.
     */
    int32_t seq_id;
    /**
     * The count that was refused; of an id that is none, 0.
     */
    uint64_t value;
} skc_device_error;

/**
 * Success.
 */
#define SKC_STATUS_OK 0

/**
 * The handle is NULL, destroyed, or was never a cache.
 */
#define SKC_STATUS_INVALID_HANDLE -1

/**
 * A required pointer is NULL.
 */
#define SKC_STATUS_NULL_POINTER -2

/**
 * A value of a call is not allowed.
 */
#define SKC_STATUS_INVALID_ARGUMENT -3

/**
 * A value of a configuration is not allowed.
 */
#define SKC_STATUS_INVALID_CONFIG -4

/**
 * A layer, sequence, token count or position is outside what there is.
 */
#define SKC_STATUS_OUT_OF_RANGE -5

/**
 * struct_size or flags is not one this library understands.
 */
#define SKC_STATUS_VERSION_MISMATCH -6

/**
 * The backend asked for is not in this build or has no device.
 */
#define SKC_STATUS_BACKEND_UNAVAILABLE -7

/**
 * Memory could not be had.
 */
#define SKC_STATUS_OUT_OF_MEMORY -8

/**
 * Another call is using the cache.
 */
#define SKC_STATUS_BUSY -9

/**
 * An edit needs all layers of a sequence at one length.
 */
#define SKC_STATUS_LAYERS_OUT_OF_STEP -10

/**
 * More tokens of one sequence than max_chunk.
 */
#define SKC_STATUS_CHUNK_TOO_LONG -11

/**
 * The tokens needed have been overwritten or evicted for good.
 */
#define SKC_STATUS_TOKENS_GONE -12

/**
 * The device failed; only skc_destroy_cache works now.
 */
#define SKC_STATUS_DEVICE_LOST -13

/**
 * A defect of this library; only skc_destroy_cache works now.
 */
#define SKC_STATUS_INTERNAL -14

/**
 * Graphs or counts in device memory have changed a sequence: the device alone knows its length. skc_note_replay,
 * skc_reset and skc_seq_info with SKC_READ_BACK end that.
 */
#define SKC_STATUS_LENGTH_UNKNOWN -15

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Fills a configuration with defaults. `struct_size` is the caller's sizeof(skc_cache_config): nothing is written
 * beyond it.
 */
skc_status skc_cache_config_init(struct skc_cache_config *config, uint32_t struct_size);

/**
 * Fills a layer's configuration with defaults. `struct_size` is the caller's sizeof(skc_layer_config): nothing is
 * written beyond it.
 */
skc_status skc_layer_config_init(struct skc_layer_config *config, uint32_t struct_size);

/**
 * Makes a cache. All memory it will ever need is allocated here. On success `*cache` is its handle; on failure `*cache`
 * is untouched.
 */
skc_status skc_create_cache(const struct skc_cache_config *config, struct skc_cache **cache);

/**
 * Ends a cache and gives its memory back. SKC_STATUS_BUSY while a call on it is under way in another thread, and from a
 * callback. After success no callback of the cache is called any more. Unloading the library while caches live is not supported.
 */
skc_status skc_destroy_cache(struct skc_cache *cache);

/**
 * Bytes that skc_create_cache would take for this configuration: on the host, and on the device. None of
 * it is taken.
 */
skc_status skc_cache_bytes(const struct skc_cache_config *config, uint64_t *host_bytes, uint64_t *device_bytes);

/**
 * Rotates and stores the next tokens of each sequence of a ragged batch in one layer, and drops what leaves the window.
 */
skc_status skc_append_kv(struct skc_cache *cache, const struct skc_append_kv_args *args);

/**
 * Attention of the queries of the last tokens appended to each sequence of a ragged batch, in one layer.
 */
skc_status skc_attend(struct skc_cache *cache, const struct skc_attend_args *args);

/**
 * skc_append_kv and skc_attend in one call, for any number of tokens: more than max_chunk are split.
 */
skc_status skc_step(struct skc_cache *cache, const struct skc_step_args *args);

/**
 * skc_step from inside a host's own thread team: `nth` threads call it with the same arguments and each with its own
 * `ith` below `nth`, at most n_threads. The work is divided among them by KV heads; nobody waits for anybody. Results
 * count when all have returned: put the team's own barrier between one step and the next call on this cache.
 *
 * A member that is refused leaves the step open for the others; skc_abort_step ends one whose members never come. A
 * member that comes after all begins a new step.
 */
skc_status skc_step_part(struct skc_cache *cache, const struct skc_step_args *args, uint32_t ith, uint32_t nth);

/**
 * Drops the oldest window tokens of sequences for good, in all layers. Every layer's window must hold as many.
 */
skc_status skc_evict(struct skc_cache *cache, const struct skc_evict_args *args);

/**
 * Cuts the newest tokens of sequences (a rejected draft) as if they had never been, in all layers: what they had pushed
 * out of the window is back. SKC_STATUS_TOKENS_GONE where that is impossible.
 */
skc_status skc_rewind(struct skc_cache *cache, const struct skc_rewind_args *args);

/**
 * Empties sequences, in all layers.
 */
skc_status skc_reset(struct skc_cache *cache, const struct skc_reset_args *args);

/**
 * Makes sequences independent copies of others, in all layers.
 */
skc_status skc_fork(struct skc_cache *cache, const struct skc_fork_args *args);

/**
 * After a failure between layers: cuts every layer of the sequences back to the shortest, so that the step can be done
 * again. Ends an skc_step_part some of whose members never came in any case. SKC_STATUS_TOKENS_GONE where a longer layer
 * has overwritten tokens that would be visible again; then only skc_reset helps.
 */
skc_status skc_abort_step(struct skc_cache *cache,
                          const struct skc_abort_step_args *args);

/**
 * State of one sequence: lengths over all layers, the rest as layer `layer` sees it. SKC_STATUS_LENGTH_UNKNOWN where the
 * device alone knows and SKC_READ_BACK is not set.
 */
skc_status skc_seq_info(struct skc_cache *cache,
                        uint32_t layer,
                        int32_t seq_id,
                        struct skc_sequence_info *info);

/**
 * What this build can do.
 */
skc_status skc_capabilities(struct skc_capability_info *info);

/**
 * Version of the library, such as "0.1.0".
 */
const char *skc_version(void);

/**
 * SKC_ABI_VERSION of the library. Check it against the header's after loading.
 */
uint32_t skc_abi_version(void);

/**
 * Name of a status, such as "SKC_STATUS_BUSY"; "unknown status" for other numbers. Never NULL, valid for ever.
 */
const char *skc_status_name(skc_status status);

/**
 * Value of a constant of the header by its name, for callers that cannot read C: name "SKC_DTYPE_F16" gives 2.
 */
skc_status skc_constant(const char *name, int64_t *value);

/**
 * Which kernel a call runs in a layer, if the rows of its tensors begin at multiples of 16 bytes: `call` is
 * SKC_CALL_APPEND, SKC_CALL_ATTEND or SKC_CALL_STEP, on up to `n_tokens` tokens of each of `n_entries` sequences. The
 * choice follows from these numbers, the cache's settings and the device alone, never from what sequences hold.
 */
skc_status skc_kernel_choice(struct skc_cache *cache,
                             uint32_t layer,
                             uint32_t call,
                             uint32_t n_entries,
                             uint32_t n_tokens,
                             struct skc_kernel_info *info);

/**
 * Tells the host's counters what they could not see: what a replayed graph, or a call with SKC_ON_DEVICE, has appended
 * to sequences or cut off them. Lengths, ring heads and positions on the device are right without it; with it the host
 * can again answer skc_seq_info and refuse edits that cannot be done. Report everything, in order; work that is still in
 * the stream may be reported too.
 */
skc_status skc_note_replay(struct skc_cache *cache,
                           const struct skc_note_replay_args *args);

/**
 * Takes the record of entries that the device has skipped because they could not be done, in work that has finished. It
 * waits for nothing and may be called while a graph runs or a stream is being captured. On the CPU there is never one.
 */
skc_status skc_poll_error(struct skc_cache *cache, struct skc_device_error *error);

/**
 * Text of the latest error on this thread, empty before the first. Valid until the next failing call on this thread;
 * success leaves it as it is.
 */
const char *skc_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SINKCACHE_H */
