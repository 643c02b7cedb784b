#include "rope.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace sinkcache {
namespace llama_cpp {

bool Rope::operator==(const Rope &o) const {
    return n_dims == o.n_dims && mode == o.mode && n_ctx_orig == o.n_ctx_orig && base == o.base && scale == o.scale &&
           ext_factor == o.ext_factor && attn_factor == o.attn_factor && beta_fast == o.beta_fast &&
           beta_slow == o.beta_slow && factors == o.factors;
}

// Pair j turns by base^(-2j / n_dims) / factor_j per token; YaRN then slows it by `scale`, the more the lower it is.
std::vector<float> Rope::frequencies() const {
    const auto n = static_cast<std::size_t>(n_dims / 2);
    std::vector<float> factor(n, 1.0F);
    if (factors) {
        if (!factors->buffer || !factors->data) {
            throw Refusal(std::string("the frequency factors '") + factors->name + "' have no data");
        }
        ggml_backend_tensor_get(factors, factor.data(), 0, n * sizeof(float));
    }
    float reach[2] = {0, 0};
    ggml_rope_yarn_corr_dims(n_dims, n_ctx_orig, base, beta_fast, beta_slow, reach);
    std::vector<float> frequency(n);
    for (std::size_t j = 0; j < n; ++j) {
        const double extrapolated = std::pow(double(base), -2.0 * double(j) / n_dims) / factor[j];
        if (!std::isfinite(extrapolated)) {
            throw Refusal("frequency factor " + std::to_string(j) + " is " + std::to_string(factor[j]));
        }
        const double y = (double(j) - reach[0]) / std::max(0.001, double(reach[1]) - reach[0]);
        const double mix = ext_factor * (1.0 - std::min(1.0, std::max(0.0, y)));
        frequency[j] = static_cast<float>(extrapolated * (scale * (1.0 - mix) + mix));
    }
    return frequency;
}

double Rope::mscale() const {
    return ext_factor == 0 ? attn_factor : attn_factor * (1.0 + 0.1 * std::log(1.0 / scale));
}

// ggml_rope_ext and its kin write these.
Rope read_rope(const ggml_tensor *node) {
    const auto integer = [&](int i) { return node->op_params[i]; };
    const auto real = [&](int i) {
        float x;
        std::memcpy(&x, &node->op_params[i], sizeof x);
        return x;
    };
    Rope rope;
    rope.n_dims = integer(1);
    rope.mode = integer(2);
    rope.n_ctx_orig = integer(4);
    rope.base = real(5);
    rope.scale = real(6);
    rope.ext_factor = real(7);
    rope.attn_factor = real(8);
    rope.beta_fast = real(9);
    rope.beta_slow = real(10);
    rope.factors = node->src[2];
    if (rope.mode != GGML_ROPE_TYPE_NORMAL && rope.mode != GGML_ROPE_TYPE_NEOX) {
        throw Refusal(rope.mode & GGML_ROPE_TYPE_MROPE ? "M-RoPE (several positions per token) is not supported"
                                                       : "RoPE mode " + std::to_string(rope.mode) + " is not supported");
    }
    if (integer(15) != 0) {
        throw Refusal("RoPE of dims from " + std::to_string(integer(15)) + " on, not from 0, is not supported");
    }
    if (!(rope.base > 0) || !(rope.scale > 0) || rope.n_dims <= 0 || rope.n_dims % 2 != 0) {
        throw Refusal("RoPE with base " + std::to_string(rope.base) + ", scale " + std::to_string(rope.scale) + " and " +
                      std::to_string(rope.n_dims) + " dims is not supported");
    }
    return rope;
}

}  // namespace llama_cpp
}  // namespace sinkcache
