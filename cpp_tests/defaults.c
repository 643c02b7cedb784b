/* The header's initialisers equal the results of the init calls in every byte. C, and by defaults.cpp C++. */
#include <sinkcache.h>

#include <stdio.h>
#include <string.h>

static int differ(const char *name, const void *by_macro, const void *by_call, size_t size) {
    const unsigned char *a = (const unsigned char *)by_macro, *b = (const unsigned char *)by_call;
    size_t i;
    for (i = 0; i < size; i++) {
        if (a[i] != b[i]) {
            printf("%s: byte %u is %02x by the macro, %02x by the call\n", name, (unsigned)i, a[i], b[i]);
            return 1;
        }
    }
    return 0;
}

int main(void) {
    skc_cache_config config = SKC_CACHE_CONFIG_INIT, config_by_call;
    skc_layer_config layer = SKC_LAYER_CONFIG_INIT, layer_by_call;
    /* Not zero, so that a byte which the call does not write is detected. */
    memset(&config_by_call, 0xA5, sizeof config_by_call);
    memset(&layer_by_call, 0xA5, sizeof layer_by_call);
    if (skc_cache_config_init(&config_by_call, sizeof config_by_call) != SKC_STATUS_OK ||
        skc_layer_config_init(&layer_by_call, sizeof layer_by_call) != SKC_STATUS_OK) {
        printf("%s\n", skc_last_error());
        return 1;
    }
    return differ("skc_cache_config", &config, &config_by_call, sizeof config) +
           differ("skc_layer_config", &layer, &layer_by_call, sizeof layer);
}
