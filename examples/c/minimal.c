/*
 * The smallest host: streams random tokens far past a window and shows that the number of cached tokens is bounded.
 *
 *     cc minimal.c $(pkg-config --cflags --libs sinkcache) && ./a.out
 */
#include <sinkcache.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 2, Q_HEADS = 8, KV_HEADS = 2, DIM = 64, SINKS = 4, WINDOW = 252, PROMPT = 500, DECODE = 3000 };

static void check(skc_status status) {
    if (status != SKC_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", skc_status_name(status), skc_last_error());
        exit(EXIT_FAILURE);
    }
}

/* Uniform in [-1, 1), in place of the q, k and v of a model. */
static void fill(float *x, size_t n) {
    static uint32_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
}

static skc_cache *create(void) {
    skc_layer_config layer = SKC_LAYER_CONFIG_INIT;
    layer.n_sink = SINKS;
    layer.window = WINDOW;

    skc_cache_config config = SKC_CACHE_CONFIG_INIT;
    config.n_layers = LAYERS;
    config.n_q_heads = Q_HEADS;
    config.n_kv_heads = KV_HEADS;
    config.head_dim = DIM;
    config.n_layer_configs = 1;
    config.layers = &layer;

    uint64_t host = 0, device = 0;
    check(skc_cache_bytes(&config, &host, &device));
    printf("sinkcache %s, %" PRIu64 " bytes\n", skc_version(), host);

    skc_cache *cache = NULL;
    check(skc_create_cache(&config, &cache));
    return cache;
}

/* n tokens through all layers, with one call per layer as in a model. */
static void forward(skc_cache *cache, int32_t n, float *q, float *k, float *v, float *out) {
    const int32_t seq = 0;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        fill(q, (size_t)n * Q_HEADS * DIM);
        fill(k, (size_t)n * KV_HEADS * DIM);
        fill(v, (size_t)n * KV_HEADS * DIM);
        skc_step_args step = {0};
        step.struct_size = sizeof step;
        step.layer = layer;
        step.n_entries = 1;
        step.seq_ids = &seq;
        step.n_tokens = &n;
        step.q = q;
        step.k = k;
        step.v = v;
        step.out = out;
        check(skc_step(cache, &step));
    }
}

static void show(skc_cache *cache, const char *when) {
    skc_sequence_info info = {0};
    info.struct_size = sizeof info;
    check(skc_seq_info(cache, 0, 0, &info));
    printf("%s: %" PRIu64 " tokens, %" PRIu64 " cached, %" PRIu64 " evicted\n", when, info.length_min,
           info.cached_tokens, info.evicted_tokens);
    if (info.cached_tokens > SINKS + WINDOW) {
        exit(EXIT_FAILURE);
    }
}

int main(void) {
    if (skc_abi_version() != SKC_ABI_VERSION) {
        fprintf(stderr, "built for ABI version %d, the library has %" PRIu32 "\n", SKC_ABI_VERSION, skc_abi_version());
        return EXIT_FAILURE;
    }
    float *q = malloc(sizeof(float) * PROMPT * Q_HEADS * DIM), *out = malloc(sizeof(float) * PROMPT * Q_HEADS * DIM);
    float *k = malloc(sizeof(float) * PROMPT * KV_HEADS * DIM), *v = malloc(sizeof(float) * PROMPT * KV_HEADS * DIM);
    if (!q || !out || !k || !v) {
        return EXIT_FAILURE;
    }
    skc_cache *cache = create();
    forward(cache, PROMPT, q, k, v, out);
    show(cache, "after the prompt");
    for (int i = 0; i < DECODE; i++) {
        forward(cache, 1, q, k, v, out);
    }
    show(cache, "after decoding");
    printf("first value of the last row: %f\n", (double)out[0]);
    check(skc_destroy_cache(cache));
    free(q);
    free(out);
    free(k);
    free(v);
    return EXIT_SUCCESS;
}
