/* A program that uses the library and another one that is written in Rust. */
#include <sinkcache.h>

#include <stdio.h>

size_t other_call(size_t n);

int main(void) {
    skc_layer_config layer = SKC_LAYER_CONFIG_INIT;
    skc_cache_config config = SKC_CACHE_CONFIG_INIT;
    config.n_q_heads = 8;
    config.n_kv_heads = 2;
    config.head_dim = 64;
    config.n_layer_configs = 1;
    config.layers = &layer;
    config.n_threads = 2;
    skc_cache *cache;
    if (skc_create_cache(&config, &cache) != SKC_STATUS_OK) {
        puts(skc_last_error());
        return 1;
    }
    static float q[8 * 64], k[2 * 64], v[2 * 64], out[8 * 64];
    int32_t seq_id = 0, n_tokens = 1;
    skc_step_args step = {0};
    step.struct_size = sizeof step;
    step.n_entries = 1;
    step.seq_ids = &seq_id;
    step.n_tokens = &n_tokens;
    step.q = q;
    step.k = k;
    step.v = v;
    step.out = out;
    if (skc_step(cache, &step) != SKC_STATUS_OK || skc_destroy_cache(cache) != SKC_STATUS_OK) {
        puts(skc_last_error());
        return 2;
    }
    return other_call(7) == 7 ? 0 : 3;
}
