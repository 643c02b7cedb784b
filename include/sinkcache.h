/*
 * sinkcache: an attention-sink KV cache. MIT OR Apache-2.0.
 *
 * A cache holds the keys and values of all layers and sequences of one model: permanently the first n_sink tokens of
 * each sequence, and a rolling window of the most recent ones. Attention over it equals recomputing the window at every
 * token. The project's docs/glossary.md explains the terms.
 *
 * Structs
 * - Calls that do work take (cache, const skc_..._args *). Zero an argument struct, set struct_size, then fill it.
 *   Structs only grow at their end, and zero means the previous behaviour: a program works with a library that is older
 *   or newer than its header. What the library does not know must be zero.
 * - Tensors are [rows, heads, dims]. Dims of a head are contiguous. Strides of rows and heads count elements; 0 means
 *   packed.
 * - Entry i of a batch is n_tokens[i] rows of sequence seq_ids[i]. Lengths are per (layer, sequence).
 *
 * Errors
 * - Calls return a skc_status. After an error the cache is unchanged and outputs are untouched (skc_abort_step states
 *   one exception); skc_last_error() names the rejected value and what is allowed. After SKC_STATUS_INTERNAL or
 *   SKC_STATUS_DEVICE_LOST a cache can only be destroyed.
 * - An invalid handle (destroyed, or never created) is an error, not undefined behaviour.
 * - Every function says which statuses it returns. The common statuses are
 *     SKC_STATUS_INVALID_HANDLE    the cache is NULL, was destroyed, or was never created
 *     SKC_STATUS_NULL_POINTER      a required pointer is NULL
 *     SKC_STATUS_INVALID_ARGUMENT  a pointer or tensor is misaligned; a tensor reaches outside the address space, or an
 *                                  output overlaps itself; a token count is negative; a sequence appears twice; fields
 *                                  contradict the flags; a CPU cache got a stream or SKC_ON_DEVICE; a CUDA stream or
 *                                  context is invalid, or a stream's capture was invalidated
 *     SKC_STATUS_VERSION_MISMATCH  struct_size, flags, a reserved field, or a field after those that the library knows
 *     SKC_STATUS_BUSY              another call is using the cache
 *     SKC_STATUS_DEVICE_LOST       the CUDA device failed, in this call or an earlier one
 *     SKC_STATUS_INTERNAL          a bug in this library, in this call or an earlier one
 *   and those of a function without a cache are NULL_POINTER, INVALID_ARGUMENT, VERSION_MISMATCH and INTERNAL.
 *
 * Threads
 * - Every function may be called from any thread. A cache takes one call at a time; a second one gets SKC_STATUS_BUSY.
 *   Only skc_step_part is called by several threads together. Different caches are independent.
 * - Callbacks must not throw exceptions.
 * - A call of a CPU cache needs at most 16 KiB of stack, beside what callbacks use. CUDA needs more.
 *
 * CUDA
 * - Tensors are device pointers. A call puts its work into args.stream and returns. Only skc_create_cache,
 *   skc_destroy_cache, the calls on snapshots, skc_copy_sequence and SKC_READ_BACK wait for the device or allocate. So
 *   all other calls can be captured into a graph, which can be replayed any number of times: lengths and positions are
 *   kept in device memory.
 * - Work of one cache must run in the order of the calls: use one stream, or order several.
 * - The caller's current context is unchanged after every call.
 * - The host does not see length changes made by graph replays or by counts in device memory; until skc_note_replay,
 *   skc_reset or SKC_READ_BACK its counters for those sequences are stale. Calls on stale sequences are checked by the
 *   device when the work runs: it skips invalid entries and records them for skc_poll_error.
 *
 * Generated from src/ffi; do not edit.
 */

#ifndef SINKCACHE_H
#define SINKCACHE_H

#include <stddef.h>
#include <stdint.h>

/** Marks the functions of the library. A program that links the static library on Windows defines SKC_API empty. */
#ifndef SKC_API
#if defined(_WIN32)
#define SKC_API __declspec(dllimport)
#elif defined(__GNUC__)
#define SKC_API __attribute__((visibility("default")))
#else
#define SKC_API
#endif
#endif

/* ---- Version ---- */

/**
 * Version of this contract. It is raised when something that a caller relies on changes; additions do not
 * raise it.
 */
#define SKC_ABI_VERSION 0

/* ---- Statuses ---- */

/** Success. */
#define SKC_STATUS_OK 0

/** The handle is NULL, was destroyed, or was never returned by skc_create_cache. */
#define SKC_STATUS_INVALID_HANDLE (-1)

/** A required pointer is NULL. */
#define SKC_STATUS_NULL_POINTER (-2)

/** An argument of a call is not allowed, by itself or for this cache. */
#define SKC_STATUS_INVALID_ARGUMENT (-3)

/** A value of a configuration is not allowed. */
#define SKC_STATUS_INVALID_CONFIG (-4)

/** A layer, sequence, token count or position does not exist or exceeds what the cache holds. */
#define SKC_STATUS_OUT_OF_RANGE (-5)

/**
 * This library does not know the struct_size, a flag, or a nonzero byte at the end of a struct: the
 * program was built against a newer header, or did not initialise the struct.
 */
#define SKC_STATUS_VERSION_MISMATCH (-6)

/** The backend cannot be used: no driver, no device, or neither a compiler nor built-in kernels for it. */
#define SKC_STATUS_BACKEND_UNAVAILABLE (-7)

/** An allocation failed, or would exceed the address space. */
#define SKC_STATUS_OUT_OF_MEMORY (-8)

/** Another call is using the cache. */
#define SKC_STATUS_BUSY (-9)

/** An edit needs a sequence to have the same length in all layers: finish or abort the step first. */
#define SKC_STATUS_LAYERS_OUT_OF_STEP (-10)

/** More tokens of one sequence in one append than max_chunk. */
#define SKC_STATUS_CHUNK_TOO_LONG (-11)

/** Tokens that would become visible have been overwritten or evicted. */
#define SKC_STATUS_TOKENS_GONE (-12)

/** The CUDA device failed. Every further call on the cache fails, except skc_destroy_cache. */
#define SKC_STATUS_DEVICE_LOST (-13)

/**
 * A bug in this library. If a call on a cache returns it, every further call on the cache fails, except
 * skc_destroy_cache.
 */
#define SKC_STATUS_INTERNAL (-14)

/**
 * The host does not know the sequence's length, because graph replays or counts in device memory have
 * changed it. skc_note_replay, skc_reset, or skc_seq_info with SKC_READ_BACK make it known again; after
 * skc_pin and skc_evict_range only the last two.
 */
#define SKC_STATUS_LENGTH_UNKNOWN (-15)

/**
 * The bytes are not a snapshot that this cache can load: damaged, cut off, of a later version, or of a
 * cache whose settings or host tag differ. The text of the error names what differs.
 */
#define SKC_STATUS_INVALID_SNAPSHOT (-16)

/** A sequence would have more pinned tokens than max_pinned, or more segments than max_segments. */
#define SKC_STATUS_NO_ROOM (-17)

/* ---- Backends: skc_cache_config.backend ---- */

/** K and V in host memory, kernels on CPU threads. */
#define SKC_BACKEND_CPU 1

/** K and V in the memory of an NVIDIA GPU, kernels in the host's CUDA stream. */
#define SKC_BACKEND_CUDA 2

/* ---- Element types: skc_cache_config.in_dtype and out_dtype; storage types: kv_dtype, k_dtype and v_dtype ---- */

/** IEEE binary32. */
#define SKC_DTYPE_F32 1

/** IEEE binary16. */
#define SKC_DTYPE_F16 2

/** bfloat16. */
#define SKC_DTYPE_BF16 3

/** A storage type: 8-bit integers, with one bf16 scale for each row (a token and head of K or V). */
#define SKC_DTYPE_Q8 4

/** A storage type: 4-bit integers, with one bf16 scale for each 32 dims of a row. */
#define SKC_DTYPE_Q4 5

/* ---- Position modes: skc_layer_config.position_mode ---- */

/** The cache applies RoPE to k and q. */
#define SKC_POSITION_ROPE 1

/** The host has applied RoPE to k and q at their stream positions, which advance by exactly one per token. */
#define SKC_POSITION_ROPE_APPLIED 2

/** No RoPE. Scores get a bias of -slope x distance, in cache positions. */
#define SKC_POSITION_ALIBI 3

/** No RoPE and no bias. */
#define SKC_POSITION_NONE 4

/* ---- RoPE styles: skc_layer_config.rope_style ---- */

/** Dim i is rotated with dim i + rope_dim / 2. */
#define SKC_ROPE_NEOX 1

/** Dim 2i is rotated with dim 2i + 1. */
#define SKC_ROPE_INTERLEAVED 2

/* ---- Log levels: the argument of skc_log_fn ---- */

/** A cache was created or destroyed. */
#define SKC_LOG_INFO 1

/** A call was rejected, or a cache was created with a warning. */
#define SKC_LOG_WARN 2

/** A call returned SKC_STATUS_INTERNAL. */
#define SKC_LOG_ERROR 3

/* ---- Special sequence ids and layers ---- */

/** As a sequence id: the entry is padding and is skipped. */
#define SKC_PADDING (-1)

/** As a layer: all layers. In skc_device_error: an edit, which concerns all layers. */
#define SKC_ALL_LAYERS UINT32_MAX

/* ---- Snapshots: skc_save_sequence and skc_load_sequence ---- */

/** Bytes of host_tag. */
#define SKC_HOST_TAG_BYTES 32

/** Version of the snapshots that this library writes. It reads this version and all earlier ones. */
#define SKC_SNAPSHOT_VERSION 1

/* ---- Flags, each of the struct that its text names ---- */

/**
 * Flag of the argument structs of calls and edits, for CUDA caches: seq_ids, n_tokens, first and
 * start_positions are in device memory. The host does not read them; the device checks them when the work
 * runs, skips invalid entries and records them for skc_poll_error.
 */
#define SKC_ON_DEVICE 1

/**
 * Flag of the arguments of an append and of a step: refused with SKC_STATUS_LAYERS_OUT_OF_STEP where a
 * sequence's layers are not as a forward pass in order leaves them. The layers before this one must have the
 * entry's tokens already, this one and those after it must be of equal length. So a pass that was interrupted
 * between layers is noticed when the next one begins, and not taken for a part of it. Not checked where the
 * host does not know the lengths: after graph replays and while a stream is captured. Not to be combined with
 * SKC_ON_DEVICE.
 */
#define SKC_IN_STEP 2

/**
 * Flag of skc_cache_config: do not keep compiled kernels on disk. The environment variable
 * SINKCACHE_CUDA_CACHE_DIR names the folder, and disables the disk cache if it is empty.
 */
#define SKC_NO_DISK_CACHE 1

/**
 * Flag of skc_cache_config: programmatic dependent launch, from compute capability 9.0 on. Thread blocks of
 * this cache's kernels are scheduled while the preceding kernel of the stream drains (if it calls
 * griddepcontrol.launch_dependents), and execute griddepcontrol.wait before their first access to memory.
 *
 * With or without this flag, kernels of this cache trigger launch_dependents: a programmatic launch that
 * follows one must itself execute griddepcontrol.wait before it reads the results. Capturing such launches
 * into a graph needs a driver of CUDA 12.3 or later.
 */
#define SKC_PROGRAMMATIC_LAUNCH 2

/**
 * Flag of skc_sequence_info: wait for the stream of the latest call, and read the sequence's state from the
 * device. Flag of the arguments of a save or a copy: the same with their stream, and the state of the source.
 */
#define SKC_READ_BACK 1

/* ---- Calls: skc_device_error.call and the argument of skc_kernel_choice ---- */

/** skc_append_kv, or the append of skc_step. */
#define SKC_CALL_APPEND 1

/** skc_attend, or the attention of skc_step. */
#define SKC_CALL_ATTEND 2

/** skc_evict. */
#define SKC_CALL_EVICT 3

/** skc_rewind. */
#define SKC_CALL_REWIND 4

/** skc_reset. */
#define SKC_CALL_RESET 5

/** skc_fork. */
#define SKC_CALL_FORK 6

/** skc_abort_step. */
#define SKC_CALL_ABORT 7

/** skc_step, as an argument of skc_kernel_choice only. */
#define SKC_CALL_STEP 8

/** skc_pin. */
#define SKC_CALL_PIN 9

/** skc_evict_range. */
#define SKC_CALL_EVICT_RANGE 10

/* ---- Initialisers ---- */

/** Initialiser of a skc_cache_config with its defaults, the same as skc_cache_config_init. */
#define SKC_CACHE_CONFIG_INIT                                                                                          \
    {sizeof(skc_cache_config), 0, SKC_BACKEND_CPU, 1, 1, 0, 0, 0, 0, SKC_DTYPE_F32, 0, SKC_DTYPE_F16, 512, 16, 1, 0,   \
     NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, 0, 0}

/** Initialiser of a skc_layer_config with its defaults, the same as skc_layer_config_init. */
#define SKC_LAYER_CONFIG_INIT                                                                                          \
    {sizeof(skc_layer_config), 0, 4, 2044, SKC_POSITION_ROPE, SKC_ROPE_NEOX, 0, 0, 10000.0, 1.0, 1.0, 0.0, 0.0, NULL,  \
     NULL, NULL, 0, 0, 0, 0}

/* ---- Types ---- */


/** A cache. The pointer is a number, not an address: it must not be dereferenced or computed with. */
typedef struct skc_cache skc_cache;

/**
 * What a call returns: SKC_STATUS_OK (0), or one of the negative SKC_STATUS_ numbers. Numbers are never reused, and
 * later versions may add some.
 */
typedef int32_t skc_status;

/**
 * Settings of one layer. Initialise it with skc_layer_config_init or SKC_LAYER_CONFIG_INIT, then set what differs from
 * the defaults.
 */
typedef struct skc_layer_config {
    /** Set to sizeof(skc_layer_config): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: none is defined, set to 0. */
    uint32_t flags;
    /** First tokens of each sequence, which are never dropped. Default 4. */
    uint32_t n_sink;
    /** Most recent tokens that a query attends to, its own included; at least 1. Default 2044. */
    uint32_t window;
    /** How keys and queries get their positions, one of SKC_POSITION_. Default SKC_POSITION_ROPE. */
    uint32_t position_mode;
    /** Which dims RoPE rotates together, one of SKC_ROPE_. Default SKC_ROPE_NEOX. */
    uint32_t rope_style;
    /** Leading dims of a head that RoPE rotates, an even number; 0 = head_dim. Default 0. */
    uint32_t rope_dim;
    /** Number of elements of inv_freq: rope_dim / 2, or 0 for the frequencies of rope_base. Default 0. */
    uint32_t n_inv_freq;
    /** Base of the RoPE frequencies (theta). Default 10000. */
    double rope_base;
    /** Linear position scaling: angle = position x rope_scale x frequency. Default 1. */
    double rope_scale;
    /**
     * Factor on the rotated dims of q and of k (YaRN's attention factor). With SKC_POSITION_ROPE_APPLIED the host
     * applies it. Default 1.
     */
    double rope_mscale;
    /** Factor on QK^T, at least 1e-30; 0 = 1 / sqrt(head_dim). Default 0. */
    double scale;
    /** Above 0: score = softcap x tanh(score / softcap). Default 0. */
    double softcap;
    /**
     * Angular frequencies in radians per token (YaRN, Llama-3 scaling). NULL if n_inv_freq is 0. Frequencies that
     * change with the length of the stream (dynamic NTK) are not possible, because a stored key is never rotated
     * again.
     */
    const float *inv_freq;
    /** ALiBi slopes of the query heads. Required with SKC_POSITION_ALIBI, not allowed otherwise. */
    const float *alibi_slopes;
    /** Learned sink logits of the query heads (gpt-oss): they are added to the softmax denominator, unscaled. */
    const float *sink_logits;
    /** Number of elements of alibi_slopes: n_q_heads, or 0. */
    uint32_t n_alibi_slopes;
    /** Number of elements of sink_logits: n_q_heads, or 0 for none. */
    uint32_t n_sink_logits;
    /**
     * The most tokens of a sequence that skc_pin may hold at a time, 0 to 2^24. A layer with 0 ignores pins. Default
     * 0.
     */
    uint32_t max_pinned;
    /**
     * The most segments of a sequence at a time, 0 to 1024: runs of pinned tokens, and ranges dropped by
     * skc_evict_range that the window has not moved past. Default 0.
     */
    uint32_t max_segments;
} skc_layer_config;

/**
 * Allocates memory for a cache: returns `bytes` bytes aligned to `align` (a power of two), or NULL if it cannot.
 * `user` is memory_user or device_memory_user.
 *
 * Lifetime: it is called by skc_create_cache only. The memory must stay valid until skc_free_fn gets it.
 *
 * Threads: the thread that called the library. It may call this library.
 */
typedef void *(*skc_alloc_fn)(void *user, size_t bytes, size_t align);

/**
 * Frees memory of a cache: `ptr` is what skc_alloc_fn returned for `bytes` bytes.
 *
 * Lifetime: it is called by skc_destroy_cache, and by skc_create_cache if it fails.
 *
 * Threads: the thread that called the library. It may call this library; this cache's handle is no longer valid.
 */
typedef void (*skc_free_fn)(void *user, void *ptr, size_t bytes);

/**
 * One iteration of a parallel loop: the library passes it to skc_parallel_for_fn, the host calls it.
 *
 * Lifetime: valid until the skc_parallel_for_fn that got it returns.
 *
 * Threads: any thread, several at a time.
 */
typedef void (*skc_task_fn)(void *data, uint32_t index);

/**
 * The host's parallel loop: calls task(data, i) for every i below n, on any threads, and returns when all of these
 * calls have returned. It must not start a task after it has returned. `user` is parallel_for_user.
 *
 * Lifetime: it is called during calls on the cache, until skc_destroy_cache has returned.
 *
 * Threads: the thread that called the library. Calls on the same cache from inside it return SKC_STATUS_BUSY.
 */
typedef void (*skc_parallel_for_fn)(void *user, uint32_t n, skc_task_fn task, void *data);

/**
 * Receives a line of text: level is one of SKC_LOG_, `user` is log_user. It is called when a cache is created (also
 * for warnings) or destroyed, and when a call on it is rejected or fails.
 *
 * Lifetime: text is valid during the call. It is called until skc_destroy_cache has returned.
 *
 * Threads: the thread that called the library, several at a time if several threads call it. It may call this library,
 * also on the same cache (skc_destroy_cache returns SKC_STATUS_BUSY); failures of these calls are not logged.
 */
typedef void (*skc_log_fn)(void *user, uint32_t level, const char *text);

/**
 * Settings of a cache. Initialise it with skc_cache_config_init or SKC_CACHE_CONFIG_INIT, then set what differs from
 * the defaults; n_q_heads, n_kv_heads, head_dim and layers have none.
 */
typedef struct skc_cache_config {
    /** Set to sizeof(skc_cache_config): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: SKC_NO_DISK_CACHE and SKC_PROGRAMMATIC_LAUNCH, or 0. */
    uint32_t flags;
    /** Where K and V are stored and kernels run, one of SKC_BACKEND_. Default SKC_BACKEND_CPU. */
    uint32_t backend;
    /** Attention layers, 1 to 65536. Default 1. */
    uint32_t n_layers;
    /** Sequences that the cache holds, 1 to 2^24. Default 1. */
    uint32_t n_seqs;
    /** Query heads, a multiple of n_kv_heads, at most 65536. A tensor-parallel shard has its own heads only. */
    uint32_t n_q_heads;
    /** Heads of K and V. Query head h uses KV head h / (n_q_heads / n_kv_heads). */
    uint32_t n_kv_heads;
    /** Dims of a head of Q and K: a multiple of 8, at most 512. */
    uint32_t head_dim;
    /** Dims of a head of V and of the output: a multiple of 8, at most 512; 0 = head_dim. Default 0. */
    uint32_t head_dim_v;
    /** Element type of the caller's q, k and v, one of SKC_DTYPE_. Default SKC_DTYPE_F32. */
    uint32_t in_dtype;
    /** Element type of the output, one of SKC_DTYPE_; 0 = in_dtype. Default 0. */
    uint32_t out_dtype;
    /**
     * Type that K and V are stored in, one of SKC_DTYPE_. Default SKC_DTYPE_F16, which ends at 65,504: larger numbers
     * are stored as infinity, without a warning. SKC_DTYPE_BF16 has the range of SKC_DTYPE_F32. k_dtype and v_dtype
     * override it.
     */
    uint32_t kv_dtype;
    /** The most tokens of one sequence in one skc_append_kv, 1 to 2^30. Default 512. */
    uint32_t max_chunk;
    /** How far below its highest length skc_rewind may cut a sequence, 0 to 2^30. Default 16. */
    uint32_t max_rewind;
    /**
     * CPU: the most threads of a call: those of the cache's pool, the tasks of one parallel_for, or the largest team
     * of skc_step_part. 1 to 1024. Default 1.
     */
    uint32_t n_threads;
    /** Number of elements of layers: 1, which then holds for all layers, or n_layers. */
    uint32_t n_layer_configs;
    /** Settings of the layers. */
    const struct skc_layer_config *layers;
    /** Bytes from one element of layers to the next; 0 = struct_size of the first. */
    uint64_t layer_stride;
    /** Allocator of host memory. Set both alloc and free, or neither: NULL = the process's allocator. */
    skc_alloc_fn alloc;
    /** Frees what alloc has returned. */
    skc_free_fn free;
    /** First argument of alloc and free. */
    void *memory_user;
    /**
     * CPU: the host's parallel loop; NULL = with n_threads above 1, a pool of the cache's own. Threads of the pool
     * spin for 50 microseconds after a call and then sleep. After fork(2) the child gets a new pool at its first call.
     * An append of few tokens runs on the calling thread alone.
     */
    skc_parallel_for_fn parallel_for;
    /** First argument of parallel_for. */
    void *parallel_for_user;
    /** Receives log lines; NULL = no log. */
    skc_log_fn log;
    /** First argument of log. */
    void *log_user;
    /** CUDA: ordinal of the device, whose primary context is used. Default 0. */
    uint32_t cuda_device;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** CUDA: a context of the host (CUcontext) to use instead; NULL = the primary context of cuda_device. */
    void *cuda_context;
    /**
     * CUDA: allocator of device memory. Set both device_alloc and device_free, or neither: NULL = cuMemAlloc. The
     * cache's context is current when they are called.
     */
    skc_alloc_fn device_alloc;
    /** CUDA: frees what device_alloc has returned. */
    skc_free_fn device_free;
    /** CUDA: first argument of device_alloc and device_free. */
    void *device_memory_user;
    /**
     * Type that K is stored in, one of SKC_DTYPE_; 0 = kv_dtype. Default 0. SKC_DTYPE_Q8 and SKC_DTYPE_Q4 take a half
     * and about a quarter of the memory of SKC_DTYPE_F16.
     */
    uint32_t k_dtype;
    /** Type that V is stored in, one of SKC_DTYPE_; 0 = kv_dtype. Default 0. */
    uint32_t v_dtype;
} skc_cache_config;

/**
 * Arguments of skc_append_kv. A batch is packed: the rows of entry 0 come first, then those of entry 1, and so on.
 * Strides count elements.
 */
typedef struct skc_append_kv_args {
    /** Set to sizeof(skc_append_kv_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, SKC_ON_DEVICE or SKC_IN_STEP. */
    uint32_t flags;
    /** Index of the layer, from 0. */
    uint32_t layer;
    /** Number of entries of the batch: elements of seq_ids and of n_tokens. */
    uint32_t n_entries;
    /** Sequence of each entry; SKC_PADDING skips the entry's rows. A sequence may appear once. */
    const int32_t *seq_ids;
    /** Tokens of each entry, at most max_chunk; 0 = padding. */
    const int32_t *n_tokens;
    /** Keys, in_dtype [rows, n_kv_heads, head_dim]. */
    const void *k;
    /** Values, in_dtype [rows, n_kv_heads, head_dim_v]. */
    const void *v;
    /** Elements between rows of k; 0 = packed, n_kv_heads x head_dim. */
    int64_t k_token_stride;
    /** Elements between heads of k; 0 = packed, head_dim. */
    int64_t k_head_stride;
    /** Elements between rows of v; 0 = packed, n_kv_heads x head_dim_v. */
    int64_t v_token_stride;
    /** Elements between heads of v; 0 = packed, head_dim_v. */
    int64_t v_head_stride;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
    /**
     * With SKC_ON_DEVICE: number of rows of the tensors; the device skips an entry that reaches beyond. Otherwise 0.
     */
    uint64_t n_rows;
    /**
     * With SKC_ON_DEVICE: the most tokens that an entry may have, at most max_chunk; the device skips an entry with
     * more. Otherwise 0.
     */
    uint32_t max_tokens;
    /** Unused: set to 0. */
    uint32_t reserved;
} skc_append_kv_args;

/**
 * Arguments of skc_attend. A batch is packed: the rows of entry 0 come first, then those of entry 1, and so on.
 * Strides count elements.
 */
typedef struct skc_attend_args {
    /** Set to sizeof(skc_attend_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_ON_DEVICE. */
    uint32_t flags;
    /** Index of the layer, from 0. */
    uint32_t layer;
    /** Number of entries of the batch: elements of seq_ids and of n_tokens. */
    uint32_t n_entries;
    /** Sequence of each entry; SKC_PADDING leaves the entry's output rows untouched. A sequence may appear once. */
    const int32_t *seq_ids;
    /**
     * Queries of each entry: those of the sequence's last tokens, at most as many as its latest append had. 0 =
     * padding.
     */
    const int32_t *n_tokens;
    /** Queries, in_dtype [rows, n_q_heads, head_dim]. */
    const void *q;
    /** Output, out_dtype [rows, n_q_heads, head_dim_v]. Its rows and heads must not overlap. */
    void *out;
    /**
     * Output: natural log of the softmax denominator, learned sink logit included, f32 [rows, n_q_heads]. NULL = not
     * wanted.
     */
    float *lse;
    /** Elements between rows of q; 0 = packed, n_q_heads x head_dim. */
    int64_t q_token_stride;
    /** Elements between heads of q; 0 = packed, head_dim. */
    int64_t q_head_stride;
    /** Elements between rows of out; 0 = packed, n_q_heads x head_dim_v. */
    int64_t out_token_stride;
    /** Elements between heads of out; 0 = packed, head_dim_v. */
    int64_t out_head_stride;
    /** Elements between rows of lse; 0 = packed, n_q_heads. */
    int64_t lse_token_stride;
    /** Elements between heads of lse; 0 = packed, 1. */
    int64_t lse_head_stride;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
    /**
     * With SKC_ON_DEVICE: number of rows of the tensors; the device skips an entry that reaches beyond. Otherwise 0.
     */
    uint64_t n_rows;
    /**
     * With SKC_ON_DEVICE: the most tokens that an entry may have, at most max_chunk; the device skips an entry with
     * more. Otherwise 0.
     */
    uint32_t max_tokens;
    /** Unused: set to 0. */
    uint32_t reserved;
} skc_attend_args;

/**
 * Arguments of skc_step and skc_step_part. A batch is packed: the rows of entry 0 come first, then those of entry 1,
 * and so on. Strides count elements.
 */
typedef struct skc_step_args {
    /** Set to sizeof(skc_step_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, SKC_ON_DEVICE or SKC_IN_STEP. */
    uint32_t flags;
    /** Index of the layer, from 0. */
    uint32_t layer;
    /** Number of entries of the batch: elements of seq_ids and of n_tokens. */
    uint32_t n_entries;
    /** Sequence of each entry; SKC_PADDING leaves the entry's output rows untouched. A sequence may appear once. */
    const int32_t *seq_ids;
    /** Tokens of each entry, any number; 0 = padding. */
    const int32_t *n_tokens;
    /** Keys, in_dtype [rows, n_kv_heads, head_dim]. */
    const void *k;
    /** Values, in_dtype [rows, n_kv_heads, head_dim_v]. */
    const void *v;
    /** Queries, in_dtype [rows, n_q_heads, head_dim]. */
    const void *q;
    /** Output, out_dtype [rows, n_q_heads, head_dim_v]. Its rows and heads must not overlap each other, nor k or v. */
    void *out;
    /**
     * Output: natural log of the softmax denominator, learned sink logit included, f32 [rows, n_q_heads]. NULL = not
     * wanted.
     */
    float *lse;
    /** Elements between rows of k; 0 = packed, n_kv_heads x head_dim. */
    int64_t k_token_stride;
    /** Elements between heads of k; 0 = packed, head_dim. */
    int64_t k_head_stride;
    /** Elements between rows of v; 0 = packed, n_kv_heads x head_dim_v. */
    int64_t v_token_stride;
    /** Elements between heads of v; 0 = packed, head_dim_v. */
    int64_t v_head_stride;
    /** Elements between rows of q; 0 = packed, n_q_heads x head_dim. */
    int64_t q_token_stride;
    /** Elements between heads of q; 0 = packed, head_dim. */
    int64_t q_head_stride;
    /** Elements between rows of out; 0 = packed, n_q_heads x head_dim_v. */
    int64_t out_token_stride;
    /** Elements between heads of out; 0 = packed, head_dim_v. */
    int64_t out_head_stride;
    /** Elements between rows of lse; 0 = packed, n_q_heads. */
    int64_t lse_token_stride;
    /** Elements between heads of lse; 0 = packed, 1. */
    int64_t lse_head_stride;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
    /**
     * With SKC_ON_DEVICE: number of rows of the tensors; the device skips an entry that reaches beyond. Otherwise 0.
     */
    uint64_t n_rows;
    /** With SKC_ON_DEVICE: the most tokens that an entry may have; the device skips an entry with more. Otherwise 0. */
    uint32_t max_tokens;
    /** Unused: set to 0. */
    uint32_t reserved;
} skc_step_args;

/** Arguments of skc_evict. */
typedef struct skc_evict_args {
    /** Set to sizeof(skc_evict_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_ON_DEVICE. */
    uint32_t flags;
    /** Number of entries: elements of seq_ids and of n_tokens. */
    uint32_t n_entries;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once. */
    const int32_t *seq_ids;
    /** Window tokens to drop from each sequence, the oldest first; 0 skips an entry. */
    const int32_t *n_tokens;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_evict_args;

/** Arguments of skc_rewind. */
typedef struct skc_rewind_args {
    /** Set to sizeof(skc_rewind_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_ON_DEVICE. */
    uint32_t flags;
    /** Number of entries: elements of seq_ids and of n_tokens. */
    uint32_t n_entries;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once. */
    const int32_t *seq_ids;
    /** Tokens to remove from the end of each sequence; 0 skips an entry. */
    const int32_t *n_tokens;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_rewind_args;

/** Arguments of skc_reset. */
typedef struct skc_reset_args {
    /** Set to sizeof(skc_reset_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_ON_DEVICE. */
    uint32_t flags;
    /** Number of entries: elements of seq_ids and, if it is not NULL, of start_positions. */
    uint32_t n_entries;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once. */
    const int32_t *seq_ids;
    /** Stream position that each sequence's next token gets; NULL = 0 for all. */
    const uint64_t *start_positions;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_reset_args;

/** Arguments of skc_fork. */
typedef struct skc_fork_args {
    /** Set to sizeof(skc_fork_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_ON_DEVICE. */
    uint32_t flags;
    /** Number of entries: elements of src_seq_ids and of dst_seq_ids. */
    uint32_t n_entries;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** Sequence that each entry copies; SKC_PADDING skips an entry. It may be copied several times. */
    const int32_t *src_seq_ids;
    /**
     * Sequence that each entry overwrites; SKC_PADDING skips an entry. It may appear once, and must not be a source.
     */
    const int32_t *dst_seq_ids;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_fork_args;

/** Arguments of skc_pin. */
typedef struct skc_pin_args {
    /** Set to sizeof(skc_pin_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_ON_DEVICE. */
    uint32_t flags;
    /** Number of entries: elements of seq_ids, of first and of n_tokens. */
    uint32_t n_entries;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once. */
    const int32_t *seq_ids;
    /** Index of each range's first token, counted from 0 since the last reset. A start position is not part of it. */
    const uint64_t *first;
    /** Tokens to pin from there on; 0 skips an entry. */
    const int32_t *n_tokens;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_pin_args;

/** Arguments of skc_evict_range. */
typedef struct skc_evict_range_args {
    /** Set to sizeof(skc_evict_range_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_ON_DEVICE. */
    uint32_t flags;
    /** Number of entries: elements of seq_ids, of first and of n_tokens. */
    uint32_t n_entries;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once. */
    const int32_t *seq_ids;
    /** Index of each range's first token, counted from 0 since the last reset. A start position is not part of it. */
    const uint64_t *first;
    /** Tokens to drop from there on; 0 skips an entry. */
    const int32_t *n_tokens;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_evict_range_args;

/** Arguments of skc_abort_step. */
typedef struct skc_abort_step_args {
    /** Set to sizeof(skc_abort_step_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: none is defined, set to 0. */
    uint32_t flags;
    /** Number of entries: elements of seq_ids. 0 with seq_ids NULL = all sequences. */
    uint32_t n_entries;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** Sequence of each entry, in host memory; SKC_PADDING skips an entry. A sequence may appear once. */
    const int32_t *seq_ids;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_abort_step_args;

/**
 * State of a sequence, filled by skc_seq_info. Set struct_size, and flags if wanted, and zero the rest before the
 * call.
 */
typedef struct skc_sequence_info {
    /** Set to sizeof(skc_sequence_info): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_READ_BACK. */
    uint32_t flags;
    /** Length of the sequence in the layer where it is shortest. */
    uint64_t length_min;
    /** Length in the layer where it is longest; above length_min only between the calls of a step. */
    uint64_t length_max;
    /** Stream position of the sequence's first token. */
    uint64_t start_position;
    /** Tokens that the layer holds: sinks, pinned tokens and window tokens. */
    uint64_t cached_tokens;
    /** Tokens of the sequence that the layer has dropped. */
    uint64_t evicted_tokens;
    /** Tokens that can be appended before the layer drops one. */
    uint64_t room;
    /** The largest count that skc_rewind accepts in this layer. */
    uint64_t rewindable;
    /** Tokens that skc_pin holds in this layer; sinks are not counted. */
    uint64_t pinned_tokens;
    /** Runs of consecutive tokens that the layer holds. */
    uint64_t segments;
    /**
     * What max_segments counts: runs of pinned tokens, and ranges dropped by skc_evict_range that the window has not
     * moved past.
     */
    uint64_t counted_segments;
} skc_sequence_info;

/**
 * What this build can do, filled by skc_capabilities. Set struct_size and zero the rest before the call. In a mask,
 * bit n stands for the constant of value n.
 */
typedef struct skc_capability_info {
    /** Set to sizeof(skc_capability_info): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: none is defined, set to 0. */
    uint32_t flags;
    /** SKC_ABI_VERSION of the library. */
    uint32_t abi_version;
    /** Mask of SKC_BACKEND_ that can be used on this machine now. */
    uint32_t backends;
    /** Mask of SKC_DTYPE_ for in_dtype and out_dtype. */
    uint32_t io_dtypes;
    /** Mask of SKC_DTYPE_ for kv_dtype, k_dtype and v_dtype. */
    uint32_t kv_dtypes;
    /** Mask of SKC_POSITION_ modes. */
    uint32_t position_modes;
    /** Mask of SKC_ROPE_ styles. */
    uint32_t rope_styles;
    /** Largest head_dim and head_dim_v. */
    uint32_t max_head_dim;
    /** head_dim and head_dim_v must be multiples of this number. */
    uint32_t head_dim_multiple;
    /** Largest n_layers of a cache. */
    uint32_t max_layers;
    /** Largest n_seqs of a cache. */
    uint32_t max_seqs;
    /** Largest n_threads of a cache. */
    uint32_t max_threads;
    /** Largest max_chunk and max_rewind of a cache. */
    uint32_t max_chunk;
    /** SKC_SNAPSHOT_VERSION of the library. */
    uint32_t snapshot_version;
    /** Largest max_segments of a layer. */
    uint32_t max_segments;
} skc_capability_info;

/**
 * A kernel and its launch, filled by skc_kernel_choice. Set struct_size and zero the rest before the call. For a CPU
 * cache only the name is set. For a step longer than max_chunk all fields but n_launches describe its first chunk.
 */
typedef struct skc_kernel_info {
    /** Set to sizeof(skc_kernel_info): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: none is defined, set to 0. */
    uint32_t flags;
    /**
     * Name of the kernel, NUL-terminated; if a call runs several, that of its attention. "skc_step_decode" is append
     * and attention fused into one launch.
     */
    char kernel[40];
    /**
     * Kernel launches of the whole call, except those that copy a batch of more than 64 entries from host to device
     * memory.
     */
    uint64_t n_launches;
    /** Thread blocks in x: one per entry. */
    uint32_t grid_x;
    /** Thread blocks in y. */
    uint32_t grid_y;
    /** Thread blocks in z. */
    uint32_t grid_z;
    /** Threads per block. */
    uint32_t block_threads;
    /** Bytes of shared memory per block. */
    uint32_t shared_bytes;
    /** KV splits: thread blocks that divide the keys of a KV head (in a chunk: of a query tile) of a sequence. */
    uint32_t n_splits;
} skc_kernel_info;

/** Arguments of skc_note_replay. */
typedef struct skc_note_replay_args {
    /** Set to sizeof(skc_note_replay_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: none is defined, set to 0. */
    uint32_t flags;
    /** Index of the layer whose lengths changed, or SKC_ALL_LAYERS. */
    uint32_t layer;
    /** Number of entries: elements of seq_ids and of n_tokens. */
    uint32_t n_entries;
    /** Sequence of each entry, in host memory; SKC_PADDING skips an entry. A sequence may appear once. */
    const int32_t *seq_ids;
    /** Tokens appended to each sequence, in host memory; negative = removed. */
    const int32_t *n_tokens;
} skc_note_replay_args;

/**
 * The batch entries that the device has skipped because they were invalid, filled by skc_poll_error. Set struct_size
 * and zero the rest before the call.
 */
typedef struct skc_device_error {
    /** Set to sizeof(skc_device_error): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: none is defined, set to 0. */
    uint32_t flags;
    /**
     * Number of entries skipped since the last skc_poll_error. If 0, all fields that follow are 0; otherwise they
     * describe the first of these entries.
     */
    uint32_t n_skipped;
    /** The status that the call would have returned for a batch in host memory. */
    skc_status status;
    /** The call that the entry belongs to, one of SKC_CALL_. */
    uint32_t call;
    /** Layer of the call; SKC_ALL_LAYERS for edits. */
    uint32_t layer;
    /** Index of the entry in its batch. */
    uint32_t entry;
    /** Sequence id of the entry, as the caller gave it. */
    int32_t seq_id;
    /**
     * Token count of the entry as the caller gave it (for a fork, the source sequence id), sign-extended to 64 bits; 0
     * for reset and abort.
     */
    uint64_t value;
} skc_device_error;

/** Arguments of skc_snapshot_bytes and skc_save_sequence. */
typedef struct skc_save_sequence_args {
    /** Set to sizeof(skc_save_sequence_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_READ_BACK to read the sequence's state from the device first. */
    uint32_t flags;
    /** The sequence that is saved. */
    int32_t seq_id;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** Output: the snapshot, in host memory. Not used by skc_snapshot_bytes. */
    void *data;
    /** Bytes that data has room for, at least what skc_snapshot_bytes says. Not used by skc_snapshot_bytes. */
    uint64_t n_bytes;
    /**
     * SKC_HOST_TAG_BYTES bytes that are kept in the snapshot and compared by skc_load_sequence, such as a hash of the
     * model and of the shard: nothing else tells models of equal shapes apart. NULL = zeros. Not used by
     * skc_snapshot_bytes.
     */
    const uint8_t *host_tag;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_save_sequence_args;

/** Arguments of skc_load_sequence. */
typedef struct skc_load_sequence_args {
    /** Set to sizeof(skc_load_sequence_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: none is defined, set to 0. */
    uint32_t flags;
    /** The sequence that is overwritten. */
    int32_t seq_id;
    /** Unused: set to 0. */
    uint32_t reserved;
    /** The snapshot, in host memory, of any alignment. */
    const void *data;
    /** Bytes of the snapshot, neither more nor less. */
    uint64_t n_bytes;
    /** The SKC_HOST_TAG_BYTES bytes that the snapshot was saved with. NULL = zeros. */
    const uint8_t *host_tag;
    /**
     * CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
     * NULL.
     */
    void *stream;
} skc_load_sequence_args;

/** Arguments of skc_copy_sequence. */
typedef struct skc_copy_sequence_args {
    /** Set to sizeof(skc_copy_sequence_args): says which version of the struct the caller was built with. */
    uint32_t struct_size;
    /** Flags: 0, or SKC_READ_BACK to read the source's state from the device first. */
    uint32_t flags;
    /** The cache of the source. It may be the one that is copied to. */
    struct skc_cache *src_cache;
    /** The sequence of src_cache that is copied. */
    int32_t src_seq_id;
    /** The sequence that is overwritten. */
    int32_t dst_seq_id;
    /** CUDA: the stream of the cache that is copied to; NULL = the legacy default stream. CPU: NULL. */
    void *stream;
    /**
     * CUDA: the stream of src_cache; NULL = the legacy default stream, or stream where both caches are one. CPU: NULL.
     */
    void *src_stream;
} skc_copy_sequence_args;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/* ---- Functions ---- */

/**
 * Fills a cache's configuration with the defaults, the same as SKC_CACHE_CONFIG_INIT. `struct_size` is the caller's
 * sizeof(skc_cache_config): not more bytes are written.
 *
 * Returns: SKC_STATUS_OK, or
 * - SKC_STATUS_NULL_POINTER: config is NULL.
 * - SKC_STATUS_INVALID_ARGUMENT: config is misaligned.
 * - SKC_STATUS_VERSION_MISMATCH: struct_size is smaller than in the first release, or above 4096.
 * - SKC_STATUS_INTERNAL: a bug in this library.
 *
 * Lifetime: config until the call returns.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API skc_status skc_cache_config_init(struct skc_cache_config *config, uint32_t struct_size);

/**
 * Fills a layer's configuration with the defaults, the same as SKC_LAYER_CONFIG_INIT. `struct_size` is the caller's
 * sizeof(skc_layer_config): not more bytes are written.
 *
 * Returns: SKC_STATUS_OK, or
 * - SKC_STATUS_NULL_POINTER: config is NULL.
 * - SKC_STATUS_INVALID_ARGUMENT: config is misaligned.
 * - SKC_STATUS_VERSION_MISMATCH: struct_size is smaller than in the first release, or above 4096.
 * - SKC_STATUS_INTERNAL: a bug in this library.
 *
 * Lifetime: config until the call returns.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API skc_status skc_layer_config_init(struct skc_layer_config *config, uint32_t struct_size);

/**
 * Creates a cache, and allocates all memory that it will ever use. For CUDA it also compiles or loads kernels, and
 * waits for the device. On success `*cache` is the new handle; on failure `*cache` is unchanged.
 *
 * Returns: SKC_STATUS_OK, the common statuses of a function without a cache, and
 * - SKC_STATUS_INVALID_CONFIG: a setting is not allowed, or the environment variable SINKCACHE_CPU names an
 *   instruction set that is not available.
 * - SKC_STATUS_INVALID_ARGUMENT: also for cuda_context that is not a live context, and for an allocation callback that
 *   returned misaligned memory.
 * - SKC_STATUS_OUT_OF_MEMORY: an allocation failed, or threads could not be started.
 * - SKC_STATUS_BACKEND_UNAVAILABLE: CUDA with no driver, no device, or neither NVRTC nor built-in kernels.
 * - SKC_STATUS_DEVICE_LOST: the CUDA device failed.
 *
 * Lifetime: config and all arrays it points to until the call returns. Callbacks, their user pointers and cuda_context
 * until skc_destroy_cache has returned. The handle is valid until then.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API skc_status skc_create_cache(const struct skc_cache_config *config, struct skc_cache **cache);

/**
 * Destroys a cache and frees its memory. For CUDA it waits for all work of the cache's context first. An
 * unfinished step of skc_step_part is abandoned, unless the call returns an error.
 *
 * Returns: SKC_STATUS_OK, or
 * - SKC_STATUS_INVALID_HANDLE: the cache is NULL, was destroyed, or was never created.
 * - SKC_STATUS_BUSY: a call on the cache is under way in another thread, or this is a callback of one; a stream of the
 *   CUDA context is being captured; in a child of fork(2), another thread was using the cache at the fork. The cache
 *   lives on.
 * - SKC_STATUS_INTERNAL: a bug in this library.
 *
 * Lifetime: after SKC_STATUS_OK no callback of the cache is called any more. Destroy all caches before the library is
 * unloaded.
 *
 * Threads: any thread.
 */
SKC_API skc_status skc_destroy_cache(struct skc_cache *cache);

/**
 * Computes the bytes that skc_create_cache would allocate for a configuration, in host and in device memory. Allocates
 * none of them.
 *
 * Returns: SKC_STATUS_OK, the common statuses of a function without a cache, and
 * - SKC_STATUS_INVALID_CONFIG: a setting is not allowed.
 * - SKC_STATUS_INVALID_ARGUMENT: also for cuda_context that is not a live context.
 * - SKC_STATUS_OUT_OF_MEMORY: the result exceeds 2^64 bytes or the address space, or memory for the check is lacking.
 * - SKC_STATUS_BACKEND_UNAVAILABLE: CUDA without a driver or a device.
 * - SKC_STATUS_DEVICE_LOST: the CUDA device failed.
 *
 * Lifetime: config and all arrays it points to until the call returns.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API skc_status skc_cache_bytes(const struct skc_cache_config *config, uint64_t *host_bytes, uint64_t *device_bytes);

/**
 * Appends tokens: rotates (RoPE) and stores the keys and values of the next tokens of each sequence of a batch, in one
 * layer. Tokens that leave the window are dropped.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_CHUNK_TOO_LONG: more than max_chunk tokens of one sequence.
 * - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; more entries than the cache accepts; positions
 *   beyond 2^64 - 1.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: with SKC_IN_STEP alone.
 * - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of a sequence's window: reset it.
 *
 * Lifetime: args, its arrays and its tensors until the call returns. For a CUDA cache the tensors, and with
 * SKC_ON_DEVICE the arrays, until the work has finished, and at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_append_kv(struct skc_cache *cache, const struct skc_append_kv_args *args);

/**
 * Computes attention for the queries of the last tokens appended to each sequence of a batch, in one layer.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; more entries than the cache accepts; more
 *   queries than the sequence's latest append had tokens (after an edit: any query).
 * - SKC_STATUS_TOKENS_GONE: tokens that a query attends to have been overwritten.
 *
 * Lifetime: args, its arrays and its tensors until the call returns. For a CUDA cache the tensors, and with
 * SKC_ON_DEVICE the arrays, until the work has finished, and at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_attend(struct skc_cache *cache, const struct skc_attend_args *args);

/**
 * skc_append_kv and skc_attend in one call, for any number of tokens: more than max_chunk are split into chunks.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; more entries than the cache accepts; positions
 *   beyond 2^64 - 1.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: with SKC_IN_STEP alone.
 * - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of a sequence's window: reset it.
 *
 * Lifetime: args, its arrays and its tensors until the call returns. For a CUDA cache the tensors, and with
 * SKC_ON_DEVICE the arrays, until the work has finished, and at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_step(struct skc_cache *cache, const struct skc_step_args *args);

/**
 * skc_step by a thread team of the host: `nth` threads (at most n_threads) call it with the same arguments, each with
 * its own `ith` below `nth`. The work is divided by KV heads. For CPU caches only.
 *
 * The call never blocks on other members. Output and cache state are valid after all `nth` calls have returned: the
 * host needs a barrier between them and the next call on the cache.
 *
 * A member that is rejected leaves the step open for the others. skc_abort_step ends a step whose other members never
 * come; a member that comes after that begins a new step.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_BUSY: also when the team's step has other arguments.
 * - SKC_STATUS_INVALID_ARGUMENT: also for a CUDA cache; `nth` is not that of the step, 0, or above n_threads; `ith` is
 *   not below `nth`, or has come already.
 * - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; positions beyond 2^64 - 1.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: with SKC_IN_STEP alone.
 * - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of a sequence's window: reset it.
 *
 * If a member's call fails with SKC_STATUS_INTERNAL, the last member's call returns it too.
 *
 * Lifetime: args until the call returns; its arrays and tensors until all members' calls have returned.
 *
 * Threads: `nth` threads at the same time, each once per step. Other calls on the cache return SKC_STATUS_BUSY
 * meanwhile.
 */
SKC_API skc_status skc_step_part(struct skc_cache *cache, const struct skc_step_args *args, uint32_t ith, uint32_t nth);

/**
 * Permanently drops the oldest window tokens of sequences, in all layers: the window is shorter until new tokens fill
 * it.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; a layer's window holds fewer tokens; too many entries.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: a sequence has different lengths in its layers.
 *
 * Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
 * at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_evict(struct skc_cache *cache, const struct skc_evict_args *args);

/**
 * Removes the newest tokens of sequences, such as rejected drafts, in all layers, as if they had never been appended:
 * tokens that they pushed out of the window are visible again.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist, or is shorter; too many entries.
 * - SKC_STATUS_TOKENS_GONE: tokens that would be visible again have been overwritten (see max_rewind) or evicted; the
 *   cut would go below the end of a pinned or evicted range.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: a sequence has different lengths in its layers.
 *
 * Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
 * at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_rewind(struct skc_cache *cache, const struct skc_rewind_args *args);

/**
 * Empties sequences, in all layers, and sets the stream positions of their next tokens.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; too many entries.
 *
 * Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
 * at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_reset(struct skc_cache *cache, const struct skc_reset_args *args);

/**
 * Makes sequences independent copies of others, in all layers. A CPU cache copies K and V during the call.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; too many entries.
 * - SKC_STATUS_INVALID_ARGUMENT: also for a destination that is a source, too.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: a source has different lengths in its layers.
 *
 * Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
 * at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_fork(struct skc_cache *cache, const struct skc_fork_args *args);

/**
 * Holds a range of tokens of each sequence permanently, such as a system prompt, in all layers whose max_pinned is
 * above 0; other layers ignore it. Pinned tokens no longer count as window tokens: the window has room for as many new
 * ones. Sinks, and tokens that are pinned already, cost nothing. Only skc_evict_range gives a pin up, or what empties
 * or replaces the whole sequence.
 *
 * If a layer changes, tokens that are not held then are gone for good: a later rewind may cut neither into what was
 * pinned nor below the oldest token that the window held; and queries of the latest append can no longer be asked. The
 * call moves rows: it costs what it moves.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; a range ends beyond the sequence; too many entries.
 * - SKC_STATUS_TOKENS_GONE: a layer whose max_pinned is above 0 no longer holds a token of a range; an aborted step
 *   has overwritten tokens of a sequence's window: reset it.
 * - SKC_STATUS_NO_ROOM: a layer would have more pinned tokens than its max_pinned, or more segments than its
 *   max_segments; no layer has a max_pinned above 0.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: a sequence has different lengths in its layers.
 *
 * Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
 * at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_pin(struct skc_cache *cache, const struct skc_pin_args *args);

/**
 * Permanently drops a range of tokens of each sequence, such as a model's thoughts or an old tool result, in all
 * layers: from each layer what it holds of the range, pinned or in the window. Older tokens stay, newer ones close the
 * gap. What has left the cache already does not matter.
 *
 * If a layer changes, tokens that are not held then are gone for good: a later rewind may cut neither into the range
 * nor below the oldest token that the window held; and queries of the latest append can no longer be asked. The call
 * moves rows: it costs what it moves.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; a sink is in a range; a range ends beyond the sequence; too
 *   many entries.
 * - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of a sequence's window: reset it.
 * - SKC_STATUS_NO_ROOM: a layer would have more segments than its max_segments.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: a sequence has different lengths in its layers.
 *
 * Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
 * at every replay of a graph that has captured it.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_evict_range(struct skc_cache *cache, const struct skc_evict_range_args *args);

/**
 * Aborts a step that failed between layers: cuts every layer of the sequences to the length of the shortest, so that
 * the step can be repeated. It also ends an unfinished step of skc_step_part, even if it then returns
 * SKC_STATUS_TOKENS_GONE; after other errors that step goes on.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; too many entries.
 * - SKC_STATUS_TOKENS_GONE: a longer layer has overwritten tokens that would be visible again: reset the sequence.
 * - SKC_STATUS_BUSY: also while a member is inside skc_step_part.
 *
 * Lifetime: args and its array until the call returns.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_abort_step(struct skc_cache *cache, const struct skc_abort_step_args *args);

/**
 * Queries the state of one sequence: its lengths over all layers, and all other values as they are in layer `layer`.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: the layer or the sequence does not exist.
 * - SKC_STATUS_LENGTH_UNKNOWN: the host's counters of the sequence are stale, and SKC_READ_BACK is not set.
 * - SKC_STATUS_INVALID_ARGUMENT: also with SKC_READ_BACK while the stream is being captured.
 * - SKC_STATUS_OUT_OF_MEMORY: with SKC_READ_BACK, if the host has no memory for the counters.
 *
 * Lifetime: info until the call returns. With SKC_READ_BACK the stream of the latest call must still be valid.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY. With SKC_READ_BACK it waits for the
 * stream.
 */
SKC_API skc_status skc_seq_info(
    struct skc_cache *cache, uint32_t layer, int32_t seq_id, struct skc_sequence_info *info);

/**
 * Queries what this build can do on this machine. For CUDA it looks for a driver, a device, and a compiler or built-in
 * kernels.
 *
 * Returns: SKC_STATUS_OK, or one of the common statuses of a function without a cache.
 *
 * Lifetime: info until the call returns.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API skc_status skc_capabilities(struct skc_capability_info *info);

/**
 * Version of the library, such as "0.1.0".
 *
 * Returns: a C string, never NULL.
 *
 * Lifetime: the string is valid as long as the library is loaded.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API const char *skc_version(void);

/**
 * ABI version of the library. After loading, compare it with the header's SKC_ABI_VERSION.
 *
 * Returns: the number.
 *
 * Lifetime: takes and returns no pointer.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API uint32_t skc_abi_version(void);

/**
 * Name of a status, such as "SKC_STATUS_BUSY".
 *
 * Returns: a C string, never NULL; "unknown status" for a number that is not a status of this library.
 *
 * Lifetime: the string is valid as long as the library is loaded.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API const char *skc_status_name(skc_status status);

/**
 * Value of a constant of this header by its name, for languages that cannot read C: "SKC_DTYPE_F16" gives 2.
 *
 * Returns: SKC_STATUS_OK, or
 * - SKC_STATUS_NULL_POINTER: name or value is NULL.
 * - SKC_STATUS_INVALID_ARGUMENT: there is no constant of that name, or value is misaligned.
 * - SKC_STATUS_INTERNAL: a bug in this library.
 *
 * Lifetime: name and value until the call returns.
 *
 * Threads: any thread, also several at a time.
 */
SKC_API skc_status skc_constant(const char *name, int64_t *value);

/**
 * Queries which kernel a call runs in a layer, if the rows of its tensors begin at multiples of 16 bytes: `call` is
 * SKC_CALL_APPEND, SKC_CALL_ATTEND or SKC_CALL_STEP, on up to `n_tokens` tokens of each of `n_entries` sequences. The
 * choice depends only on these numbers, the cache's settings and the device, never on what sequences hold.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_INVALID_ARGUMENT: also for `call` that is none of the three.
 * - SKC_STATUS_OUT_OF_RANGE: the layer does not exist; `n_entries` or `n_tokens` is 0 or more than a call may have.
 *
 * Lifetime: info until the call returns.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_kernel_choice(
    struct skc_cache *cache,
    uint32_t layer,
    uint32_t call,
    uint32_t n_entries,
    uint32_t n_tokens,
    struct skc_kernel_info *info);

/**
 * Reports length changes that the host did not see: tokens that graph replays, or calls with SKC_ON_DEVICE, have
 * appended to sequences or removed from them. It updates the host's counters, so that skc_seq_info can answer again
 * and edits are checked by the host again. Lengths and positions on the device are correct without it.
 *
 * Report all changes of a sequence, in order. Work that has not finished yet may be reported too. It cannot report
 * what skc_pin or skc_evict_range have changed in a graph or with SKC_ON_DEVICE: after them only skc_reset, or
 * skc_seq_info with SKC_READ_BACK, brings the host's counters of the sequence up to date.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_INVALID_ARGUMENT: also for a CPU cache.
 * - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; a length below 0, or positions beyond 2^64 - 1.
 * - SKC_STATUS_LENGTH_UNKNOWN: a skc_pin or skc_evict_range may have changed a sequence unseen by the host.
 *
 * Lifetime: args and its arrays until the call returns.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_note_replay(struct skc_cache *cache, const struct skc_note_replay_args *args);

/**
 * Returns and clears the record of invalid batch entries that completed device work has skipped. Never blocks; it may
 * be called while a graph runs or a stream is being captured. Always empty for CPU caches.
 *
 * Returns: SKC_STATUS_OK, also if there is an entry in the record; or one of the common statuses.
 *
 * Lifetime: error until the call returns.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_poll_error(struct skc_cache *cache, struct skc_device_error *error);

/**
 * Computes the bytes that skc_save_sequence would write for a sequence as it is now.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and those of skc_save_sequence, except that data, n_bytes and host_tag
 * are not used.
 *
 * Lifetime: args and n_bytes until the call returns. With SKC_READ_BACK the stream must be valid.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY. With SKC_READ_BACK it waits for the
 * stream.
 */
SKC_API skc_status skc_snapshot_bytes(
    struct skc_cache *cache, const struct skc_save_sequence_args *args, uint64_t *n_bytes);

/**
 * Saves a sequence: writes a snapshot of its state, which skc_load_sequence restores, in this cache or in another one,
 * on either backend, in another process. The sequence stays as it is. docs/snapshot.md describes the bytes.
 * *n_written, unless it is NULL, gets their number. A snapshot has the sinks, pinned tokens, the window, and what a
 * rewind of max_rewind tokens may bring back.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_OUT_OF_RANGE: the sequence does not exist; n_bytes is less than the snapshot has. Nothing is written.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: the sequence has different lengths in its layers.
 * - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of the sequence's window: reset it.
 * - SKC_STATUS_LENGTH_UNKNOWN: the host's counters of the sequence are stale, and SKC_READ_BACK is not set.
 * - SKC_STATUS_INVALID_ARGUMENT: also while the stream is being captured.
 * - SKC_STATUS_OUT_OF_MEMORY: with SKC_READ_BACK, if the host has no memory for the counters.
 *
 * Lifetime: args, its arrays and n_written until the call returns.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY. A CUDA cache waits for the stream.
 */
SKC_API skc_status skc_save_sequence(
    struct skc_cache *cache, const struct skc_save_sequence_args *args, uint64_t *n_written);

/**
 * Loads a snapshot into a sequence, in place of what it holds. These settings must be those of the cache that it was
 * saved from: n_layers, heads, dims, k_dtype, v_dtype, and of each layer n_sink, window, position_mode, RoPE, scale,
 * softcap, ALiBi slopes and sink logits. All others may differ, the backend too. A later rewind brings back what both
 * caches' max_rewind allow. Queries of tokens before the load can no longer be asked for.
 *
 * All of a snapshot is checked before anything changes.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_INVALID_SNAPSHOT: the bytes are damaged, cut off, of a later version, or of a cache whose settings or
 *   whose host_tag differ. The text names what differs.
 * - SKC_STATUS_NO_ROOM: the sequence has more pinned tokens than max_pinned, or more segments than max_segments.
 * - SKC_STATUS_OUT_OF_RANGE: the sequence does not exist.
 * - SKC_STATUS_INVALID_ARGUMENT: also while the stream is being captured.
 *
 * Lifetime: args and its arrays until the call returns. For a CUDA cache, data in pinned memory must stay as it is
 * until the stream's work has finished; pageable memory has been read when the call returns.
 *
 * Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY. For a CUDA cache it may wait for the
 * stream, unless data is in pinned memory.
 */
SKC_API skc_status skc_load_sequence(struct skc_cache *cache, const struct skc_load_sequence_args *args);

/**
 * Makes a sequence an independent copy of one of another cache, or of the same cache as skc_fork does. The settings
 * must agree as for skc_load_sequence; backends may differ. Between CUDA caches of one context the copy is put into
 * stream: order it with the work of src_stream. Otherwise the call waits for the streams of CUDA caches.
 *
 * Returns: SKC_STATUS_OK, the common statuses, and
 * - SKC_STATUS_INVALID_HANDLE, SKC_STATUS_BUSY, SKC_STATUS_DEVICE_LOST, SKC_STATUS_INTERNAL: also for src_cache.
 * - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist.
 * - SKC_STATUS_INVALID_ARGUMENT: also for settings that differ, for a sequence copied to itself, and while a stream is
 *   being captured.
 * - SKC_STATUS_NO_ROOM: as for skc_load_sequence.
 * - SKC_STATUS_LAYERS_OUT_OF_STEP: the source has different lengths in its layers.
 * - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of the source's window.
 * - SKC_STATUS_LENGTH_UNKNOWN: the host's counters of the source are stale, and SKC_READ_BACK is not set.
 * - SKC_STATUS_OUT_OF_MEMORY: with a CUDA cache, if the host has no memory for a part of the copy.
 *
 * Lifetime: args until the call returns.
 *
 * Threads: any thread; a second call on one of the caches returns SKC_STATUS_BUSY.
 */
SKC_API skc_status skc_copy_sequence(struct skc_cache *cache, const struct skc_copy_sequence_args *args);

/**
 * Text of the latest error of a call on this thread, in English: names the rejected value and what is allowed.
 * Successful calls do not change it.
 *
 * Returns: a C string, never NULL; empty before the first error.
 *
 * Lifetime: the string is valid until the next call that fails on this thread, or until the thread ends.
 *
 * Threads: any thread; each has a text of its own.
 */
SKC_API const char *skc_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SINKCACHE_H */
