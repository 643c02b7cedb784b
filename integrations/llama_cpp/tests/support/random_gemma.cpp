#include "random_gemma.hpp"

#include <cmath>

namespace {

constexpr std::int64_t VOCABULARY = 128;

std::string block(std::int64_t layer) { return "blk." + std::to_string(layer) + "."; }

void add_matrix(RandomModel &model, const std::string &name, std::int64_t in, std::int64_t out, float gain = 1.0F) {
    model.tensors.push_back({name + ".weight", {in, out}, gain / std::sqrt(float(in))});
}

void add_norm(RandomModel &model, const std::string &name, std::int64_t n, float mean = 1.0F) {
    model.tensors.push_back({name + ".weight", {n}, 0.1F * mean, mean});
}

/** What all layers of both have: norms, feed-forward. Little weight for ggml's GELU, which rounds its input to f16. */
void add_common(RandomModel &model, const std::string &of, std::int64_t n_embd, std::int64_t n_ff) {
    const float little = 0.05F;
    add_norm(model, of + "attn_norm", n_embd);
    add_norm(model, of + "post_attention_norm", n_embd);
    add_norm(model, of + "ffn_norm", n_embd);
    add_norm(model, of + "post_ffw_norm", n_embd, little);
    add_matrix(model, of + "ffn_gate", n_embd, n_ff);
    add_matrix(model, of + "ffn_up", n_embd, n_ff);
    add_matrix(model, of + "ffn_down", n_ff, n_embd);
}

RandomModel without_layers(const std::string &arch, std::int64_t n_layers, std::int64_t n_embd, std::int64_t n_ff) {
    RandomModel model;
    model.arch = arch;
    const auto u = [](std::int64_t n) { return static_cast<std::uint32_t>(n); };
    model.integers = {{"block_count", u(n_layers)},
                      {"context_length", 4096},
                      {"embedding_length", u(n_embd)},
                      {"feed_forward_length", u(n_ff)},
                      {"attention.head_count", 4},
                      {"attention.sliding_window", 32},
                      {"vocab_size", u(VOCABULARY)}};
    model.reals = {{"attention.layer_norm_rms_epsilon", 1e-5F}, {"rope.freq_base", 100000.0F}};
    model.tensors.push_back({"token_embd.weight", {n_embd, VOCABULARY}, 1.0F});
    add_norm(model, "output_norm", n_embd);
    return model;
}

}  // namespace

RandomModel random_gemma4(bool shared) {
    const std::int64_t n_layers = 6, n_embd = 64, n_ff = 96;
    const std::vector<std::int32_t> slides = {1, 1, 1, 0, 1, 0};
    RandomModel model = without_layers("gemma4", n_layers, n_embd, n_ff);
    model.reals["rope.freq_base_swa"] = 10000.0F;
    model.integers["attention.key_length"] = model.integers["attention.value_length"] = 32;
    model.integers["attention.key_length_swa"] = model.integers["attention.value_length_swa"] = 16;
    model.integers["rope.dimension_count"] = 32;
    model.integers["rope.dimension_count_swa"] = 16;
    model.integers["attention.shared_kv_layers"] = shared ? 2 : 0;
    model.integers["embedding_length_per_layer_input"] = 0;
    model.arrays["attention.sliding_window_pattern"] = slides;
    model.arrays["attention.head_count_kv"] = {2, 2, 2, 1, 2, 1};
    // Proportional RoPE: the last pairs of layers without a window hardly turn.
    model.tensors.push_back({"rope_freqs.weight", {16}, 0.5F, 5.0F});
    for (std::int64_t i = 0; i < n_layers; ++i) {
        const std::string of = block(i);
        const bool full = slides[std::size_t(i)] == 0;
        const std::int64_t dim = full ? 32 : 16, n_kv = full ? 1 : 2;
        add_common(model, of, n_embd, n_ff);
        add_matrix(model, of + "attn_q", n_embd, 4 * dim);
        add_norm(model, of + "attn_q_norm", dim, 0.8F);
        if (!shared || i < 4) {
            add_matrix(model, of + "attn_k", n_embd, n_kv * dim);
            add_norm(model, of + "attn_k_norm", dim, 0.8F);
            // Without V of its own, a layer's values are its keys before their norm.
            if (i != 3) {
                add_matrix(model, of + "attn_v", n_embd, n_kv * dim);
            }
        }
        add_matrix(model, of + "attn_output", 4 * dim, n_embd);
    }
    return model;
}

RandomModel random_gemma3n() {
    const std::int64_t n_layers = 25, n_embd = 32, n_ff = 48, dim = 16, n_kv = 2, altup = 4, per_layer = 256, rank = 64;
    RandomModel model = without_layers("gemma3n", n_layers, n_embd, n_ff);
    model.integers["attention.head_count_kv"] = std::uint32_t(n_kv);
    model.integers["attention.key_length"] = model.integers["attention.value_length"] = std::uint32_t(dim);
    model.reals["final_logit_softcapping"] = 30;
    model.tensors.push_back({"altup_proj.weight", {n_embd, n_embd, altup - 1}, 0.2F});
    model.tensors.push_back({"altup_unembd_proj.weight", {n_embd, n_embd, altup - 1}, 0.2F});
    model.tensors.push_back({"per_layer_token_embd.weight", {per_layer * n_layers, VOCABULARY}, 0.1F});
    add_matrix(model, "per_layer_model_proj", n_embd, per_layer * n_layers);
    add_norm(model, "per_layer_proj_norm", per_layer);
    for (std::int64_t i = 0; i < n_layers; ++i) {
        const std::string of = block(i);
        add_common(model, of, n_embd, n_ff);
        add_matrix(model, of + "attn_q", n_embd, 4 * dim);
        add_matrix(model, of + "attn_k", n_embd, n_kv * dim);
        add_matrix(model, of + "attn_v", n_embd, n_kv * dim);
        add_norm(model, of + "attn_q_norm", dim, 0.8F);
        add_norm(model, of + "attn_k_norm", dim, 0.8F);
        add_matrix(model, of + "attn_output", 4 * dim, n_embd);
        add_matrix(model, of + "inp_gate", n_embd, per_layer);
        add_matrix(model, of + "proj", per_layer, n_embd);
        add_norm(model, of + "post_norm", n_embd, 0.05F);
        add_matrix(model, of + "altup_correct_coef", altup, altup, 0.2F);
        add_norm(model, of + "altup_correct_scale", n_embd);
        add_matrix(model, of + "altup_predict_coef", altup, altup * altup, 0.2F);
        add_matrix(model, of + "altup_router", n_embd, altup);
        add_norm(model, of + "altup_router_norm", n_embd);
        add_matrix(model, of + "laurel_l", n_embd, rank);
        add_matrix(model, of + "laurel_r", rank, n_embd);
        add_norm(model, of + "laurel_post_norm", n_embd);
    }
    return model;
}
