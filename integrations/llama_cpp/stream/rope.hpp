// RoPE parameters: read from a node of a llama.cpp graph, converted to those of a sinkcache layer.
#ifndef SINKCACHE_LLAMA_ROPE_HPP
#define SINKCACHE_LLAMA_ROPE_HPP

#include <ggml.h>

#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** The parameters that ggml_rope_ext stores in a ROPE node. */
struct RopeParams {
    std::int32_t n_dims = 0;
    /** GGML_ROPE_TYPE_NORMAL or GGML_ROPE_TYPE_NEOX. */
    std::int32_t mode = 0;
    std::int32_t n_ctx_orig = 0;
    float base = 0;
    float scale = 0;
    float ext_factor = 0;
    float attn_factor = 0;
    float beta_fast = 0;
    float beta_slow = 0;
    /** Frequency factors of the model, or NULL. Owned by the model. */
    const ggml_tensor *freq_factors = nullptr;

    bool operator==(const RopeParams &other) const;

    /** Whether `base` and `scale` alone give the frequencies: neither factors nor YaRN. */
    bool is_linear() const { return !freq_factors && ext_factor == 0; }
    /** Angular frequencies in radians per token, [n_dims / 2]. @throws NotSupported if the factors cannot be read. */
    std::vector<float> inv_freq() const;
    /** Factor on the rotated dims of q and of k (YaRN's attention factor). */
    double mscale() const;
};

/** Parameters of a ROPE node. @throws NotSupported for a kind of RoPE that the cache does not compute. */
RopeParams read_rope(const ggml_tensor *node);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_ROPE_HPP
