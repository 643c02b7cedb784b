// The functions of llama.cpp and ggml that a stream calls, as a table.
#ifndef SINKCACHE_LLAMA_API_HPP
#define SINKCACHE_LLAMA_API_HPP

#include "stream_calls.hpp"

#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <string>

namespace sinkcache {
namespace llama_cpp {

/** Each member is the function of its name. */
struct LlamaApi {
#define SINKCACHE_CALL(name) decltype(&::name) name = nullptr;
    SINKCACHE_STREAM_CALLS(SINKCACHE_CALL)
#undef SINKCACHE_CALL
};

/**
 * The table. The adapter links llama.cpp and takes the functions' addresses. The library that is preloaded has
 * functions of these names itself and links no llama.cpp: it looks the others up in the process. Therefore nothing in
 * this folder calls a function of llama.cpp or ggml by its name.
 */
const LlamaApi &api();

/** Why the functions of the table must not be called; empty if they may. */
const std::string &api_problem();

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_API_HPP
