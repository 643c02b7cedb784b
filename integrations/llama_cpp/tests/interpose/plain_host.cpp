// A program of llama.cpp that knows nothing of sinkcache: PROGRAM MODEL TOKENS [LIBRARY]. It generates from the first
// token of the model's vocabulary and prints how far it came. With LIBRARY it opens that one, and looks up all
// functions there, as programs in other languages do; without, it calls those it is linked with.
#include <ggml-backend.h>
#include <llama.h>

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

void *library = nullptr;

template <class Function>
Function *find(Function *linked, const char *name) {
    void *found = library ? dlsym(library, name) : reinterpret_cast<void *>(linked);
    if (!found) {
        std::printf("no %s\n", name);
        std::exit(1);
    }
    return reinterpret_cast<Function *>(found);
}
#ifdef NOT_LINKED
#define CALL(name) find(static_cast<decltype(&name)>(nullptr), #name)
#else
#define CALL(name) find(&name, #name)
#endif

}  // namespace

int main(int argc, char **argv) {
    if (argc < 3 || (argc > 3 && !(library = dlopen(argv[3], RTLD_NOW | RTLD_LOCAL)))) {
        std::printf("%s\n", argc < 3 ? "MODEL TOKENS [LIBRARY]" : dlerror());
        return 1;
    }
    CALL(llama_log_set)([](ggml_log_level, const char *, void *) {}, nullptr);
#ifndef NOT_LINKED
    // Loads GGML_BACKEND_PATH, too.
    ggml_backend_load_all();
#endif
    llama_model *model = CALL(llama_model_load_from_file)(argv[1], CALL(llama_model_default_params)());
    llama_context_params params = CALL(llama_context_default_params)();
    params.n_ctx = 256;
    params.n_threads = params.n_threads_batch = 1;
    llama_context *ctx = model ? CALL(llama_init_from_model)(model, params) : nullptr;
    if (!ctx) {
        std::printf("no %s\n", model ? "context" : "model");
        return 1;
    }
    const llama_vocab *vocab = CALL(llama_model_get_vocab)(model);
    const std::int32_t n_vocab = CALL(llama_vocab_n_tokens)(vocab);
    llama_token token = CALL(llama_vocab_bos)(vocab);
    int n = 0;
    for (; n < std::atoi(argv[2]); ++n) {
        if (CALL(llama_decode)(ctx, CALL(llama_batch_get_one)(&token, 1)) != 0) {
            break;
        }
        const float *logits = CALL(llama_get_logits_ith)(ctx, -1);
        token = 0;
        for (llama_token t = 1; t < n_vocab; ++t) {
            token = logits[t] > logits[token] ? t : token;
        }
    }
    std::printf("told %u, %d tokens\n", CALL(llama_n_ctx)(ctx), n);
    CALL(llama_free)(ctx);
    CALL(llama_model_free)(model);
    return 0;
}
