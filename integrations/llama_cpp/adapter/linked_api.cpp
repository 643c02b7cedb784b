// The functions of the llama.cpp that the adapter is linked with.
#include "llama_api.hpp"

namespace sinkcache {
namespace llama_cpp {

const LlamaApi &api() {
    static const LlamaApi table = [] {
        LlamaApi linked;
#define SINKCACHE_CALL(name) linked.name = &::name;
        SINKCACHE_STREAM_CALLS(SINKCACHE_CALL)
#undef SINKCACHE_CALL
        return linked;
    }();
    return table;
}

}  // namespace llama_cpp
}  // namespace sinkcache
