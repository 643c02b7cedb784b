/*
 * A program of the first header runs with today's library: structs only grow at their ends, and numbers keep
 * their meaning. The header beside this file has the declarations of 2026-11-23.
 */
#include "sinkcache.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, Q_HEADS = 4, KV_HEADS = 2, DIM = 32, SINKS = 2, WINDOW = 10, MOST = 20 };

static float q[MOST * Q_HEADS * DIM], k[MOST * KV_HEADS * DIM], v[MOST * KV_HEADS * DIM];
static float out[MOST * Q_HEADS * DIM], lse[MOST * Q_HEADS];

#define EXPECT(condition)                                                                                     \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, skc_last_error());                    \
            exit(EXIT_FAILURE);                                                                               \
        }                                                                                                     \
    } while (0)

/* n tokens whose values are all `value`: so is what a query reads that sees no others. */
static void forward(skc_cache *cache, int32_t seq, int32_t n, float value, int whole) {
    for (int i = 0; i < MOST * KV_HEADS * DIM; i++) {
        k[i] = sinf((float)i);
        v[i] = value;
    }
    for (int i = 0; i < MOST * Q_HEADS * DIM; i++) {
        q[i] = cosf((float)i);
    }
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        memset(out, 0, sizeof out);
        if (whole) {
            skc_step_args step = {0};
            step.struct_size = sizeof step;
            step.layer = layer;
            step.n_entries = 1;
            step.seq_ids = &seq;
            step.n_tokens = &n;
            step.q = q, step.k = k, step.v = v, step.out = out, step.lse = lse;
            EXPECT(skc_step(cache, &step) == SKC_STATUS_OK);
        } else {
            skc_append_kv_args append = {0};
            append.struct_size = sizeof append;
            append.layer = layer;
            append.n_entries = 1;
            append.seq_ids = &seq;
            append.n_tokens = &n;
            append.k = k, append.v = v;
            EXPECT(skc_append_kv(cache, &append) == SKC_STATUS_OK);
            skc_attend_args attend = {0};
            attend.struct_size = sizeof attend;
            attend.layer = layer;
            attend.n_entries = 1;
            attend.seq_ids = &seq;
            attend.n_tokens = &n;
            attend.q = q, attend.out = out, attend.lse = lse;
            EXPECT(skc_attend(cache, &attend) == SKC_STATUS_OK);
        }
    }
}

static void expect_outputs(int n, float value) {
    for (int i = 0; i < n * Q_HEADS * DIM; i++) {
        EXPECT(fabsf(out[i] - value) < 1e-3f);
    }
    for (int i = 0; i < n * Q_HEADS; i++) {
        EXPECT(isfinite(lse[i]));
    }
}

static skc_sequence_info info_of(skc_cache *cache, int32_t seq) {
    skc_sequence_info info = {0};
    info.struct_size = sizeof info;
    EXPECT(skc_seq_info(cache, 1, seq, &info) == SKC_STATUS_OK);
    return info;
}

int main(void) {
    EXPECT(skc_abi_version() == SKC_ABI_VERSION);
    skc_layer_config layer = SKC_LAYER_CONFIG_INIT, by_call;
    memset(&by_call, 0xAA, sizeof by_call);
    EXPECT(skc_layer_config_init(&by_call, sizeof by_call) == SKC_STATUS_OK);
    EXPECT(by_call.struct_size == sizeof layer && by_call.window == layer.window && by_call.n_sink == layer.n_sink);
    layer.n_sink = SINKS;
    layer.window = WINDOW;
    skc_cache_config config = SKC_CACHE_CONFIG_INIT;
    config.n_layers = LAYERS;
    config.n_seqs = 2;
    config.n_q_heads = Q_HEADS;
    config.n_kv_heads = KV_HEADS;
    config.head_dim = DIM;
    config.n_layer_configs = 1;
    config.layers = &layer;
    uint64_t host = 0, device = 1;
    EXPECT(skc_cache_bytes(&config, &host, &device) == SKC_STATUS_OK && host > 0 && device == 0);
    skc_cache *cache = NULL;
    EXPECT(skc_create_cache(&config, &cache) == SKC_STATUS_OK);

    forward(cache, 0, 7, 1.0f, 1);
    expect_outputs(7, 1.0f);
    forward(cache, 0, 5, 1.0f, 0);
    expect_outputs(5, 1.0f);
    skc_sequence_info info = info_of(cache, 0);
    EXPECT(info.length_min == 12 && info.length_max == 12 && info.cached_tokens == 12 && info.room == 0);

    const int32_t zero = 0, one = 1, three = 3;
    skc_rewind_args rewind = {0};
    rewind.struct_size = sizeof rewind;
    rewind.n_entries = 1;
    rewind.seq_ids = &zero;
    rewind.n_tokens = &three;
    EXPECT(skc_rewind(cache, &rewind) == SKC_STATUS_OK);
    skc_fork_args fork = {0};
    fork.struct_size = sizeof fork;
    fork.n_entries = 1;
    fork.src_seq_ids = &zero;
    fork.dst_seq_ids = &one;
    EXPECT(skc_fork(cache, &fork) == SKC_STATUS_OK);
    skc_evict_args evict = {0};
    evict.struct_size = sizeof evict;
    evict.n_entries = 1;
    evict.seq_ids = &one;
    evict.n_tokens = &three;
    EXPECT(skc_evict(cache, &evict) == SKC_STATUS_OK);
    EXPECT(info_of(cache, 0).cached_tokens == 9 && info_of(cache, 1).evicted_tokens == 3);
    forward(cache, 1, MOST, 1.0f, 1);
    expect_outputs(MOST, 1.0f);
    EXPECT(info_of(cache, 1).cached_tokens == SINKS + WINDOW);

    const uint64_t start = 1000;
    skc_reset_args reset = {0};
    reset.struct_size = sizeof reset;
    reset.n_entries = 1;
    reset.seq_ids = &zero;
    reset.start_positions = &start;
    EXPECT(skc_reset(cache, &reset) == SKC_STATUS_OK);
    EXPECT(info_of(cache, 0).start_position == 1000 && info_of(cache, 0).length_max == 0);
    skc_abort_step_args abort_step = {0};
    abort_step.struct_size = sizeof abort_step;
    EXPECT(skc_abort_step(cache, &abort_step) == SKC_STATUS_OK);

    /* What was refused is refused with the same number. */
    evict.n_tokens = &one;
    evict.seq_ids = &three;
    EXPECT(skc_evict(cache, &evict) == SKC_STATUS_OUT_OF_RANGE);
    EXPECT(skc_evict(cache, NULL) == SKC_STATUS_NULL_POINTER);
    skc_capability_info capabilities = {0};
    capabilities.struct_size = sizeof capabilities;
    EXPECT(skc_capabilities(&capabilities) == SKC_STATUS_OK);
    int64_t value = 0;
    EXPECT(skc_constant("SKC_DTYPE_F16", &value) == SKC_STATUS_OK && value == SKC_DTYPE_F16);
    EXPECT(strcmp(skc_status_name(SKC_STATUS_BUSY), "SKC_STATUS_BUSY") == 0);
    EXPECT(skc_destroy_cache(cache) == SKC_STATUS_OK);
    EXPECT(skc_destroy_cache(cache) == SKC_STATUS_INVALID_HANDLE);
    return EXIT_SUCCESS;
}
