// The llama.cpp of the process that this library is loaded into.
#ifndef SINKCACHE_INTERPOSE_HOST_HPP
#define SINKCACHE_INTERPOSE_HOST_HPP

#include "interposed_calls.hpp"
#include "llama_api.hpp"

#include <llama.h>

#include <string>

namespace sinkcache {
namespace interpose {

struct HostApi : llama_cpp::LlamaApi {
#define SINKCACHE_CALL(name) decltype(&::name) name = nullptr;
    SINKCACHE_INTERPOSED_CALLS(SINKCACHE_CALL)
#undef SINKCACHE_CALL
};

struct Host {
    HostApi calls;
    /** The file of libllama. */
    std::string library;
    /** Why contexts of this llama.cpp cannot be served; empty if they can. */
    std::string problem;
};

/** Found at the first use, by any thread. Ends the process if there is none: then nobody can call this library. */
const Host &host();

/** Whether the process was started with this library in LD_PRELOAD: its host is then linked with llama.cpp. */
bool is_preloaded();

/**
 * The file of a llama.cpp that the process has loaded for itself, although this library is preloaded; empty if there is
 * none, or this library is not preloaded.
 */
std::string private_llama();

/** The functions of the host's llama.cpp itself. */
inline const HostApi &real() { return host().calls; }

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_HOST_HPP
