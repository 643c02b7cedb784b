// The program of the documentation, for 300 tokens with a cache of 64.
#include "sinkcache_llama.hpp"

#include <cstdio>

int main(int argc, char **argv) try {
    if (argc != 2) {
        return 2;
    }
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    llama_sampler *sampler = llama_sampler_init_greedy();
    {
        sinkcache::LlamaOptions options;
        options.n_sink = 4;
        options.window = 60;
        llama_context_params params = llama_context_default_params();
        params.n_batch = 512;
        // One thread: llama.cpp's threads spin while they wait, which is slow on a busy machine.
        params.n_threads = 1;
        params.n_threads_batch = 1;
        sinkcache::LlamaContext stream(model, params, options);

        llama_token token = llama_vocab_bos(llama_model_get_vocab(model));
        for (int i = 0; i < 300; ++i) {
            stream.decode(llama_batch_get_one(&token, 1));
            token = llama_sampler_sample(sampler, stream.get(), -1);
        }
        stream.rewind(0, 3);
        std::printf("%llu tokens\n", static_cast<unsigned long long>(stream.length(0)));
        if (stream.length(0) != 297) {
            return 1;
        }
    }
    llama_sampler_free(sampler);
    llama_model_free(model);
    return 0;
} catch (const sinkcache::Error &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
