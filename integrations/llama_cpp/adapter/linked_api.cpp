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

// It was compiled with the headers of what it is linked with.
const std::string &api_problem() {
    static const std::string none;
    return none;
}

}  // namespace llama_cpp
}  // namespace sinkcache
