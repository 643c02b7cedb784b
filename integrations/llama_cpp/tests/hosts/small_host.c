// A program of llama.cpp: creates a context and says whether it got one, and how long a stream may become.
#include <ggml-backend.h>
#include <llama.h>
#include <stdio.h>

#if WHICH == 1
// The struct of the library that it was built for.
struct newer_params {
    char bytes[sizeof(struct llama_context_params) + sizeof(size_t)];
};
struct newer_params newer_default_params(void) __asm__("llama_context_default_params");
struct llama_context *newer_init(struct llama_model *, struct newer_params) __asm__("llama_init_from_model");
#define default_params newer_default_params
#define init newer_init
typedef struct newer_params params_type;
#else
#define default_params llama_context_default_params
#define init llama_init_from_model
typedef struct llama_context_params params_type;
#endif

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    ggml_backend_load_all_from_path(argv[1]);
    struct llama_model *model = llama_model_load_from_file(argv[2], llama_model_default_params());
    if (!model) {
        return 3;
    }
    params_type params = default_params();
    struct llama_context *ctx = init(model, params);
    if (!ctx) {
        printf("no context\n");
        llama_model_free(model);
        return 1;
    }
    printf("a context of %u\n", llama_n_ctx(ctx));
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
