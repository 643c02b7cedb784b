// llama_context_params of another version of llama.cpp.
#ifndef SINKCACHE_TESTS_FAKE_LLAMA_HPP
#define SINKCACHE_TESTS_FAKE_LLAMA_HPP

/** 8 bytes more than that of the pinned version. */
struct FakeParams {
    unsigned n_ctx, n_batch;
    unsigned char rest[160];
};

extern "C" {
FakeParams llama_context_default_params();
void *llama_init_from_model(void *model, FakeParams params);
}

#endif
