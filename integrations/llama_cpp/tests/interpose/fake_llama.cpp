// A libllama of another version, whose llama_context_params has one more field, for tests of what becomes of its hosts.
#include "fake_llama.hpp"

#include <cstring>

// The functions defined below are left out of the lists.
#define llama_context_default_params unused_0
#define llama_init_from_model unused_1

#include "interposed_calls.hpp"
#include "stream_calls.hpp"

extern "C" {

// All names exist; nobody gets as far as to call these.
#define SINKCACHE_CALL(name)                                                                                           \
    void name() {}
SINKCACHE_STREAM_CALLS(SINKCACHE_CALL)
SINKCACHE_INTERPOSED_CALLS(SINKCACHE_CALL)

#undef llama_context_default_params
#undef llama_init_from_model

FakeParams llama_context_default_params() {
    FakeParams params{};
    params.n_ctx = 512;
    return params;
}

void *llama_init_from_model(void *model, FakeParams params) {
    for (std::size_t i = 0; i < sizeof params.rest; ++i) {
        if (params.rest[i] != static_cast<unsigned char>(i)) {
            return nullptr;
        }
    }
    return params.n_ctx == 77 ? model : nullptr;
}

}  // extern "C"
