#include "rope.hpp"

#include "errors.hpp"
#include "llama_api.hpp"
#include "op_params.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

namespace sinkcache {
namespace llama_cpp {

bool RopeParams::operator==(const RopeParams &o) const {
    return n_dims == o.n_dims && mode == o.mode && sections == o.sections && n_ctx_orig == o.n_ctx_orig &&
           base == o.base && scale == o.scale && ext_factor == o.ext_factor && attn_factor == o.attn_factor &&
           beta_fast == o.beta_fast && beta_slow == o.beta_slow && freq_factors == o.freq_factors;
}

bool RopeParams::turns_like(const RopeParams &other) const {
    RopeParams same_tensor = other;
    same_tensor.freq_factors = freq_factors;
    if (!(*this == same_tensor) || !freq_factors != !other.freq_factors) {
        return false;
    }
    if (freq_factors == other.freq_factors) {
        return true;
    }
    const auto has_data = [](const ggml_tensor *t) { return t->buffer && t->data; };
    if (!has_data(freq_factors) || !has_data(other.freq_factors)) {
        return std::strcmp(freq_factors->name, other.freq_factors->name) == 0;
    }
    return inv_freq() == other.inv_freq();
}

// As ggml_mrope_cache_init chooses it. Qwen3-VL's sections of 24, 20, 20 and 0 leave two pairs to it.
bool RopeParams::takes_fourth_position(std::int32_t pair) const {
    if (!is_mrope()) {
        return false;
    }
    const std::int32_t in_three = sections[0] + sections[1] + sections[2];
    const std::int32_t sector = pair % (in_three + sections[3]);
    if (mode == GGML_ROPE_TYPE_IMROPE) {
        return sector >= 3 * sections[static_cast<std::size_t>(sector % 3)];
    }
    return sector >= in_three;
}

bool RopeParams::is_linear() const {
    bool all_turn = true;
    for (std::int32_t pair = 0; pair < n_dims / 2; ++pair) {
        all_turn = all_turn && !takes_fourth_position(pair);
    }
    return all_turn && !freq_factors && ext_factor == 0;
}

// Pair j is rotated by base^(-2j / n_dims) / factor_j radians per token. YaRN multiplies low frequencies by `scale`,
// keeps high ones, and interpolates linearly between the dims that ggml_rope_yarn_corr_dims gives.
std::vector<float> RopeParams::inv_freq() const {
    const auto n = static_cast<std::size_t>(n_dims / 2);
    std::vector<float> factor(n, 1.0F);
    if (freq_factors) {
        require(freq_factors->buffer && freq_factors->data,
                [&] { return std::string("the frequency factors '") + freq_factors->name + "' have no data"; });
        api().ggml_backend_tensor_get(freq_factors, factor.data(), 0, n * sizeof(float));
    }
    float corr_dims[2] = {0, 0};
    api().ggml_rope_yarn_corr_dims(n_dims, n_ctx_orig, base, beta_fast, beta_slow, corr_dims);
    std::vector<float> frequencies(n);
    for (std::size_t j = 0; j < n; ++j) {
        const double extrapolated = std::pow(double(base), -2.0 * double(j) / n_dims) / factor[j];
        require(std::isfinite(extrapolated),
                [&] { return "frequency factor " + std::to_string(j) + " is " + std::to_string(factor[j]); });
        if (takes_fourth_position(static_cast<std::int32_t>(j))) {
            continue;
        }
        const double ramp = (double(j) - corr_dims[0]) / std::max(0.001, double(corr_dims[1]) - corr_dims[0]);
        const double mix = ext_factor * (1.0 - std::min(1.0, std::max(0.0, ramp)));
        frequencies[j] = static_cast<float>(extrapolated * (scale * (1.0 - mix) + mix));
    }
    return frequencies;
}

double RopeParams::mscale() const {
    return ext_factor == 0 ? attn_factor : attn_factor * (1.0 + 0.1 * std::log(1.0 / scale));
}

// The indices are those that ggml_rope_ext and its variants write.
RopeParams read_rope(const ggml_tensor *node) {
    const auto i32 = [&](int i) { return node->op_params[i]; };
    const auto f32 = [&](int i) { return op_param_f32(node, i); };
    RopeParams rope;
    rope.n_dims = i32(1);
    rope.mode = i32(2);
    rope.n_ctx_orig = i32(4);
    rope.base = f32(5);
    rope.scale = f32(6);
    rope.ext_factor = f32(7);
    rope.attn_factor = f32(8);
    rope.beta_fast = f32(9);
    rope.beta_slow = f32(10);
    rope.freq_factors = node->src[2];
    require(rope.mode == GGML_ROPE_TYPE_NORMAL || rope.mode == GGML_ROPE_TYPE_NEOX ||
                rope.mode == GGML_ROPE_TYPE_MROPE || rope.mode == GGML_ROPE_TYPE_IMROPE,
            [&] { return "RoPE mode " + std::to_string(rope.mode) + " is not supported"; });
    if (rope.is_mrope()) {
        std::int64_t pairs = 0;
        for (std::size_t i = 0; i < rope.sections.size(); ++i) {
            rope.sections[i] = i32(11 + static_cast<int>(i));
            require(rope.sections[i] >= 0 && rope.sections[i] <= rope.n_dims,
                    [&] { return "M-RoPE with a section of " + std::to_string(rope.sections[i]) + " pairs"; });
            pairs += rope.sections[i];
        }
        require(pairs > 0, "M-RoPE without sections");
    }
    require(i32(15) == 0,
            [&] { return "RoPE of dims from " + std::to_string(i32(15)) + " on, not from 0, is not supported"; });
    require(rope.base > 0 && rope.scale > 0 && rope.n_dims > 0 && rope.n_dims % 2 == 0, [&] {
        return "RoPE with base " + std::to_string(rope.base) + ", scale " + std::to_string(rope.scale) + " and " +
               std::to_string(rope.n_dims) + " dims is not supported";
    });
    return rope;
}

}  // namespace llama_cpp
}  // namespace sinkcache
