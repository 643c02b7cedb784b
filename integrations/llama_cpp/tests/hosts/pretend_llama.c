// A library that pretends to be another version of llama.cpp. It has the functions that WHICH asks for, and leaves all
// others to the real one, which it is linked with.
//   WHICH 1: llama_context_params has one more field in its middle, as in version 0.7
//   WHICH 2: llama_context_params has another default
//   WHICH 3: a type of ggml has another name
#include <dlfcn.h>
#include <llama.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *real(const char *name) {
    void *library = dlopen(REAL, RTLD_LAZY);
    void *found = library ? dlsym(library, name) : NULL;
    if (!found) {
        fprintf(stderr, "pretend: no %s in " REAL "\n", name);
        exit(3);
    }
    return found;
}

typedef struct llama_context *(*init_function)(struct llama_model *, struct llama_context_params);
typedef struct llama_context_params (*params_function)(void);

#if WHICH == 1
enum { BEFORE = offsetof(struct llama_context_params, abort_callback) };

struct newer_params {
    char before[BEFORE];
    size_t moe_cache_size;
    char after[sizeof(struct llama_context_params) - BEFORE];
};

// The header declares these names with the real struct.
struct newer_params newer_default_params(void) __asm__("llama_context_default_params");
struct llama_context *newer_init(struct llama_model *, struct newer_params) __asm__("llama_init_from_model");

struct newer_params newer_default_params(void) {
    const struct llama_context_params p = ((params_function)real("llama_context_default_params"))();
    struct newer_params newer;
    memcpy(newer.before, &p, BEFORE);
    newer.moe_cache_size = 77;
    memcpy(newer.after, (const char *)&p + BEFORE, sizeof newer.after);
    return newer;
}

struct llama_context *newer_init(struct llama_model *model, struct newer_params newer) {
    struct llama_context_params p;
    memcpy(&p, newer.before, BEFORE);
    memcpy((char *)&p + BEFORE, newer.after, sizeof newer.after);
    if (newer.moe_cache_size != 77 || p.abort_callback) {
        fprintf(stderr, "pretend: the params came in pieces\n");
        exit(3);
    }
    return ((init_function)real("llama_init_from_model"))(model, p);
}
#else
struct llama_context_params llama_context_default_params(void) {
    struct llama_context_params p = ((params_function)real("llama_context_default_params"))();
    p.n_batch = WHICH == 2 ? 4096 : p.n_batch;
    return p;
}

struct llama_context *llama_init_from_model(struct llama_model *model, struct llama_context_params p) {
    return ((init_function)real("llama_init_from_model"))(model, p);
}

#if WHICH == 3
const char *ggml_type_name(enum ggml_type type) {
    return type == GGML_TYPE_Q8_0 ? "q8_9" : ((const char *(*)(enum ggml_type))real("ggml_type_name"))(type);
}
#endif
#endif
