// RoPE as a llama.cpp graph states it, and as sinkcache takes it.
#ifndef SINKCACHE_LLAMA_ROPE_HPP
#define SINKCACHE_LLAMA_ROPE_HPP

#include <ggml.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** A graph or model that the cache cannot serve, and why. */
struct Refusal : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/** Parameters of a ROPE node. */
struct Rope {
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
    /** Frequency factors of the model, or NULL. */
    const ggml_tensor *factors = nullptr;

    bool operator==(const Rope &other) const;

    /** Whether the frequencies are those of a base and a linear scale. */
    bool plain() const { return !factors && ext_factor == 0; }
    /** Angular frequencies in radians per token, [n_dims / 2]. @throws Refusal if the factors cannot be read. */
    std::vector<float> frequencies() const;
    /** Factor on the rotated dims of q and of k. */
    double mscale() const;
};

/** @throws Refusal for a kind of RoPE whose angles the cache does not compute. */
Rope read_rope(const ggml_tensor *node);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_ROPE_HPP
