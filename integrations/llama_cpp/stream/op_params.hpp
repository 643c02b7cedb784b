// Parameters of ggml nodes.
#ifndef SINKCACHE_LLAMA_OP_PARAMS_HPP
#define SINKCACHE_LLAMA_OP_PARAMS_HPP

#include <ggml.h>

#include <cstring>

namespace sinkcache {
namespace llama_cpp {

/** The i-th parameter of a node as f32: ggml stores floats bit by bit in an array of int32. */
inline float op_param_f32(const ggml_tensor *node, int i) {
    float x;
    std::memcpy(&x, &node->op_params[i], sizeof x);
    return x;
}

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_OP_PARAMS_HPP
