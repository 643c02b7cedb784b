/* The declarations of sinkcache.h of 2026-11-23, as they were, without comments. */
#ifndef SINKCACHE_H
#define SINKCACHE_H
#include <stddef.h>
#include <stdint.h>
#define SKC_CACHE_CONFIG_INIT \
    {sizeof(skc_cache_config), 0, SKC_BACKEND_CPU, 1, 1, 0, 0, 0, 0, SKC_DTYPE_F32, 0, SKC_DTYPE_F16, 512, 16, 1, 0, \
     NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL}
#define SKC_LAYER_CONFIG_INIT \
    {sizeof(skc_layer_config), 0, 4, 2044, SKC_POSITION_ROPE, SKC_ROPE_NEOX, 0, 0, 10000.0, 1.0, 1.0, 0.0, 0.0, NULL, \
     NULL, NULL, 0, 0}
#define SKC_ABI_VERSION 0
#define SKC_BACKEND_CPU 1
#define SKC_BACKEND_CUDA 2
#define SKC_DTYPE_F32 1
#define SKC_DTYPE_F16 2
#define SKC_DTYPE_BF16 3
#define SKC_POSITION_ROPE 1
#define SKC_POSITION_ROPE_APPLIED 2
#define SKC_POSITION_ALIBI 3
#define SKC_POSITION_NONE 4
#define SKC_ROPE_NEOX 1
#define SKC_ROPE_INTERLEAVED 2
#define SKC_LOG_INFO 1
#define SKC_LOG_WARN 2
#define SKC_LOG_ERROR 3
#define SKC_PADDING -1
typedef struct skc_cache skc_cache;
typedef int32_t skc_status;
typedef struct skc_layer_config {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t n_sink;
    uint32_t window;
    uint32_t position_mode;
    uint32_t rope_style;
    uint32_t rope_dim;
    uint32_t n_inv_freq;
    double rope_base;
    double rope_scale;
    double rope_mscale;
    double scale;
    double softcap;
    const float *inv_freq;
    const float *alibi_slopes;
    const float *sink_logits;
    uint32_t n_alibi_slopes;
    uint32_t n_sink_logits;
} skc_layer_config;
typedef void *(*skc_alloc_fn)(void *user, size_t bytes, size_t align);
typedef void (*skc_free_fn)(void *user, void *ptr, size_t bytes);
typedef void (*skc_task_fn)(void *data, uint32_t index);
typedef void (*skc_parallel_for_fn)(void *user, uint32_t n, skc_task_fn task, void *data);
typedef void (*skc_log_fn)(void *user, uint32_t level, const char *text);
typedef struct skc_cache_config {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t backend;
    uint32_t n_layers;
    uint32_t n_seqs;
    uint32_t n_q_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t head_dim_v;
    uint32_t in_dtype;
    uint32_t out_dtype;
    uint32_t kv_dtype;
    uint32_t max_chunk;
    uint32_t max_rewind;
    uint32_t n_threads;
    uint32_t n_layer_configs;
    const struct skc_layer_config *layers;
    uint64_t layer_stride;
    skc_alloc_fn alloc;
    skc_free_fn free;
    void *memory_user;
    skc_parallel_for_fn parallel_for;
    void *parallel_for_user;
    skc_log_fn log;
    void *log_user;
} skc_cache_config;
typedef struct skc_append_kv_args {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t layer;
    uint32_t n_entries;
    const int32_t *seq_ids;
    const int32_t *n_tokens;
    const void *k;
    const void *v;
    int64_t k_token_stride;
    int64_t k_head_stride;
    int64_t v_token_stride;
    int64_t v_head_stride;
} skc_append_kv_args;
typedef struct skc_attend_args {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t layer;
    uint32_t n_entries;
    const int32_t *seq_ids;
    const int32_t *n_tokens;
    const void *q;
    void *out;
    float *lse;
    int64_t q_token_stride;
    int64_t q_head_stride;
    int64_t out_token_stride;
    int64_t out_head_stride;
    int64_t lse_token_stride;
    int64_t lse_head_stride;
} skc_attend_args;
typedef struct skc_step_args {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t layer;
    uint32_t n_entries;
    const int32_t *seq_ids;
    const int32_t *n_tokens;
    const void *k;
    const void *v;
    const void *q;
    void *out;
    float *lse;
    int64_t k_token_stride;
    int64_t k_head_stride;
    int64_t v_token_stride;
    int64_t v_head_stride;
    int64_t q_token_stride;
    int64_t q_head_stride;
    int64_t out_token_stride;
    int64_t out_head_stride;
    int64_t lse_token_stride;
    int64_t lse_head_stride;
} skc_step_args;
typedef struct skc_evict_args {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t n_entries;
    uint32_t reserved;
    const int32_t *seq_ids;
    const int32_t *n_tokens;
} skc_evict_args;
typedef struct skc_rewind_args {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t n_entries;
    uint32_t reserved;
    const int32_t *seq_ids;
    const int32_t *n_tokens;
} skc_rewind_args;
typedef struct skc_reset_args {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t n_entries;
    uint32_t reserved;
    const int32_t *seq_ids;
    const uint64_t *start_positions;
} skc_reset_args;
typedef struct skc_fork_args {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t n_entries;
    uint32_t reserved;
    const int32_t *src_seq_ids;
    const int32_t *dst_seq_ids;
} skc_fork_args;
typedef struct skc_abort_step_args {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t n_entries;
    uint32_t reserved;
    const int32_t *seq_ids;
} skc_abort_step_args;
typedef struct skc_sequence_info {
    uint32_t struct_size;
    uint32_t flags;
    uint64_t length_min;
    uint64_t length_max;
    uint64_t start_position;
    uint64_t cached_tokens;
    uint64_t evicted_tokens;
    uint64_t room;
    uint64_t rewindable;
} skc_sequence_info;
typedef struct skc_capability_info {
    uint32_t struct_size;
    uint32_t flags;
    uint32_t abi_version;
    uint32_t backends;
    uint32_t io_dtypes;
    uint32_t kv_dtypes;
    uint32_t position_modes;
    uint32_t rope_styles;
    uint32_t max_head_dim;
    uint32_t head_dim_multiple;
    uint32_t max_layers;
    uint32_t max_seqs;
    uint32_t max_threads;
    uint32_t max_chunk;
} skc_capability_info;
#define SKC_STATUS_OK 0
#define SKC_STATUS_INVALID_HANDLE -1
#define SKC_STATUS_NULL_POINTER -2
#define SKC_STATUS_INVALID_ARGUMENT -3
#define SKC_STATUS_INVALID_CONFIG -4
#define SKC_STATUS_OUT_OF_RANGE -5
#define SKC_STATUS_VERSION_MISMATCH -6
#define SKC_STATUS_BACKEND_UNAVAILABLE -7
#define SKC_STATUS_OUT_OF_MEMORY -8
#define SKC_STATUS_BUSY -9
#define SKC_STATUS_LAYERS_OUT_OF_STEP -10
#define SKC_STATUS_CHUNK_TOO_LONG -11
#define SKC_STATUS_TOKENS_GONE -12
#define SKC_STATUS_DEVICE_LOST -13
#define SKC_STATUS_INTERNAL -14
#ifdef __cplusplus
extern "C" {
#endif
skc_status skc_constant(const char *name, int64_t *value);
skc_status skc_cache_config_init(struct skc_cache_config *config, uint32_t struct_size);
skc_status skc_layer_config_init(struct skc_layer_config *config, uint32_t struct_size);
skc_status skc_create_cache(const struct skc_cache_config *config, struct skc_cache **cache);
skc_status skc_destroy_cache(struct skc_cache *cache);
skc_status skc_cache_bytes(const struct skc_cache_config *config, uint64_t *host_bytes, uint64_t *device_bytes);
skc_status skc_append_kv(struct skc_cache *cache, const struct skc_append_kv_args *args);
skc_status skc_attend(struct skc_cache *cache, const struct skc_attend_args *args);
skc_status skc_step(struct skc_cache *cache, const struct skc_step_args *args);
skc_status skc_step_part(struct skc_cache *cache, const struct skc_step_args *args, uint32_t ith, uint32_t nth);
skc_status skc_evict(struct skc_cache *cache, const struct skc_evict_args *args);
skc_status skc_rewind(struct skc_cache *cache, const struct skc_rewind_args *args);
skc_status skc_reset(struct skc_cache *cache, const struct skc_reset_args *args);
skc_status skc_fork(struct skc_cache *cache, const struct skc_fork_args *args);
skc_status skc_abort_step(struct skc_cache *cache, const struct skc_abort_step_args *args);
skc_status skc_seq_info(struct skc_cache *cache, uint32_t layer, int32_t seq_id, struct skc_sequence_info *info);
skc_status skc_capabilities(struct skc_capability_info *info);
const char *skc_version(void);
uint32_t skc_abi_version(void);
const char *skc_status_name(skc_status status);
const char *skc_last_error(void);
#ifdef __cplusplus
}
#endif
#endif
