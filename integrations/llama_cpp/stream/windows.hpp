// Which layers of a model have a sliding window.
#ifndef SINKCACHE_LLAMA_WINDOWS_HPP
#define SINKCACHE_LLAMA_WINDOWS_HPP

#include "attention.hpp"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/**
 * The window of each layer in tokens, the query's own included; 0 for a layer without one. Graphs do not tell, since
 * masks have the same name and size in all layers, so llama.cpp is asked: four tokens are decoded, of which a window of
 * `n_swa` tokens hides one, and the masks are looked at. `ctx` must be empty, and is empty afterwards; its graphs must
 * have ops of `attention`, with masks. `other` is a sequence beside 0.
 *
 * @throws NotSupported for a layer whose mask is neither full nor a window of that many tokens
 * @throws Error if llama.cpp cannot decode
 */
std::vector<std::uint32_t> probe_windows(llama_context *ctx, Attention &attention, std::uint32_t n_swa,
                                         llama_seq_id other);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_WINDOWS_HPP
