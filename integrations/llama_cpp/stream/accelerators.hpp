// CUDA devices of ggml: their memory is where the attention of a model's layers on them is computed.
#ifndef SINKCACHE_LLAMA_ACCELERATORS_HPP
#define SINKCACHE_LLAMA_ACCELERATORS_HPP

#include <ggml.h>

#include <cstdint>
#include <string>

namespace sinkcache {
namespace llama_cpp {

/** Whether a node is an op whose work belongs to the CUDA device of an ordinal. */
using IsOpOf = bool (*)(const ggml_tensor *node, std::int32_t device);

/**
 * Adds a device to ggml for each of its CUDA devices, once in a process: contexts that are created later then give it
 * the ops for which `is_op_of` holds, with tensors in that CUDA device's memory. Contexts of others get the devices as
 * well, and no work for them. Does nothing where ggml has no CUDA device, or too many, or sinkcache cannot use CUDA. No
 * other thread may look at ggml's list of devices meanwhile.
 *
 * @return Why CUDA devices that ggml has are not used; empty if they are, or if there are none
 */
const std::string &add_accelerators(IsOpOf is_op_of);

/** No CUDA device: the layer is on the CPU. */
constexpr std::int32_t ON_CPU = -1;

/** Ordinal of the CUDA device in whose memory a tensor lies, if add_accelerators() has added one for it; or ON_CPU. */
std::int32_t cuda_device_of(const ggml_tensor *t);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_ACCELERATORS_HPP
