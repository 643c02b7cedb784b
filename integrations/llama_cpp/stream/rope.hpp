// RoPE parameters: read from a node of a llama.cpp graph, converted to those of a sinkcache layer.
#ifndef SINKCACHE_LLAMA_ROPE_HPP
#define SINKCACHE_LLAMA_ROPE_HPP

#include <ggml.h>

#include <array>
#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** The parameters that ggml_rope_ext and ggml_rope_multi store in a ROPE node. */
struct RopeParams {
    std::int32_t n_dims = 0;
    /** GGML_ROPE_TYPE_NORMAL, _NEOX, _MROPE or _IMROPE. */
    std::int32_t mode = 0;
    /** Of M-RoPE: how many pairs take each of a token's four positions. */
    std::array<std::int32_t, 4> sections{};
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
    /** The same, also if the frequency factors are copies: llama.cpp has one on each device. */
    bool turns_like(const RopeParams &other) const;

    bool is_mrope() const { return (mode & GGML_ROPE_TYPE_MROPE) != 0; }
    /** Positions of a token in the graph's tensor of positions. */
    std::int64_t n_positions() const { return is_mrope() ? 4 : 1; }
    /** Whether the halves of a head are paired, not neighbours. */
    bool is_neox() const { return mode == GGML_ROPE_TYPE_NEOX || is_mrope(); }
    /** Whether `base` and `scale` alone give the frequencies: neither factors nor YaRN nor pairs that stay. */
    bool is_linear() const;
    /**
     * Angular frequencies in radians per token, [n_dims / 2], for tokens of text: of M-RoPE's four positions the first
     * three are then equal and the fourth is 0. @throws NotSupported if the factors cannot be read.
     */
    std::vector<float> inv_freq() const;
    /** Factor on the rotated dims of q and of k (YaRN's attention factor). */
    double mscale() const;

private:
    bool takes_fourth_position(std::int32_t pair) const;
};

/** Parameters of a ROPE node. @throws NotSupported for a kind of RoPE that the cache does not compute. */
RopeParams read_rope(const ggml_tensor *node);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_ROPE_HPP
