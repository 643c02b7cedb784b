#include "random_hybrid.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace {

constexpr std::int64_t N_EMBD = 64, D_CONV = 4;

std::string block(std::int64_t layer) { return "blk." + std::to_string(layer) + "."; }

void add(RandomModel &model, const std::string &name, const std::vector<std::int64_t> &dims, float deviation,
         float mean = 0) {
    model.tensors.push_back({name, dims, deviation, mean});
}

void add_matrix(RandomModel &model, const std::string &name, std::int64_t in, std::int64_t out, float gain = 1.0F) {
    add(model, name + ".weight", {in, out}, gain / std::sqrt(float(in)));
}

void add_norm(RandomModel &model, const std::string &name, std::int64_t n) { add(model, name, {n}, 0.1F, 1.0F); }

/** Removes the tensors of a layer whose names begin with `part`. */
void remove(RandomModel &model, std::int64_t layer, const std::string &part) {
    const std::string name = block(layer) + part;
    model.tensors.erase(std::remove_if(model.tensors.begin(), model.tensors.end(),
                                       [&](const RandomTensor &t) { return t.name.rfind(name, 0) == 0; }),
                        model.tensors.end());
}

void rename(RandomModel &model, const std::string &from, const std::string &to) {
    for (RandomTensor &t : model.tensors) {
        t.name = t.name == from ? to : t.name;
    }
}

RandomModel decoder_of(const std::string &arch, std::int64_t n_layers, bool qk_norm = false) {
    Shape shape;
    shape.n_layers = n_layers;
    shape.n_embd = N_EMBD;
    shape.qk_norm = qk_norm;
    return decoder(arch, shape);
}

void set_ssm(RandomModel &model, std::uint32_t inner, std::uint32_t state, std::uint32_t rank, std::uint32_t groups) {
    model.integers["ssm.conv_kernel"] = D_CONV;
    model.integers["ssm.inner_size"] = inner;
    model.integers["ssm.state_size"] = state;
    model.integers["ssm.time_step_rank"] = rank;
    model.integers["ssm.group_count"] = groups;
}

/** KV heads of each layer; 0 makes it recurrent. */
void set_kv_heads(RandomModel &model, const std::vector<std::int32_t> &heads) {
    model.integers.erase("attention.head_count_kv");
    model.arrays["attention.head_count_kv"] = heads;
}

/** Mamba 2 with four heads of 32, and states of 16. */
void set_mamba2(RandomModel &model) { set_ssm(model, 128, 16, 4, 1); }
void add_mamba2(RandomModel &model, std::int64_t layer) {
    const std::int64_t inner = 128, state = 16, heads = 4, conv = inner + 2 * state;
    const std::string of = block(layer);
    add_matrix(model, of + "ssm_in", N_EMBD, 2 * inner + 2 * state + heads);
    add(model, of + "ssm_conv1d.weight", {D_CONV, conv}, 0.5F);
    add(model, of + "ssm_conv1d.bias", {conv}, 0.1F);
    add(model, of + "ssm_dt.bias", {heads}, 0.1F);
    // Slow decay: a state must depend on tokens that are far back, or a lost one would not show.
    add(model, of + "ssm_a", {1, heads}, 0.02F, -0.1F);
    add(model, of + "ssm_d", {1, heads}, 0.5F, 1.0F);
    add(model, of + "ssm_norm.weight", {inner, 1}, 0.1F, 1.0F);
    add_matrix(model, of + "ssm_out", inner, N_EMBD);
}

/** The first Mamba. */
void add_mamba(RandomModel &model, std::int64_t layer) {
    const std::int64_t inner = 128, state = 16, rank = 8;
    const std::string of = block(layer);
    add_matrix(model, of + "ssm_in", N_EMBD, 2 * inner);
    add(model, of + "ssm_conv1d.weight", {D_CONV, inner}, 0.5F);
    add(model, of + "ssm_conv1d.bias", {inner}, 0.1F);
    add_matrix(model, of + "ssm_x", inner, rank + 2 * state);
    add_norm(model, of + "ssm_dt_norm.weight", rank);
    add_norm(model, of + "ssm_b_norm.weight", state);
    add_norm(model, of + "ssm_c_norm.weight", state);
    add_matrix(model, of + "ssm_dt", rank, inner, 0.3F);
    add(model, of + "ssm_dt.bias", {inner}, 0.1F);
    add(model, of + "ssm_a", {state, inner}, 0.02F, -0.1F);
    add(model, of + "ssm_d", {inner}, 0.5F, 1.0F);
    add_matrix(model, of + "ssm_out", inner, N_EMBD);
}

constexpr std::int64_t DELTA_DIM = 16, DELTA_K_HEADS = 2, DELTA_V_HEADS = 4;

/** Gated delta net, but for the gates' projections. */
void add_delta_net(RandomModel &model, std::int64_t layer) {
    const std::int64_t keys = DELTA_K_HEADS * DELTA_DIM, values = DELTA_V_HEADS * DELTA_DIM, all = 2 * keys + values;
    const std::string of = block(layer);
    add_matrix(model, of + "attn_qkv", N_EMBD, all);
    add_matrix(model, of + "attn_gate", N_EMBD, values);
    add(model, of + "ssm_conv1d.weight", {D_CONV, all}, 0.5F);
    add(model, of + "ssm_dt.bias", {DELTA_V_HEADS}, 0.1F);
    add(model, of + "ssm_a", {DELTA_V_HEADS}, 0.02F, -0.1F);
    add_norm(model, of + "ssm_norm.weight", DELTA_DIM);
    add_matrix(model, of + "ssm_out", values, N_EMBD);
}

/** Every second layer has attention, whose queries have gates. */
void add_qwen_layers(RandomModel &model, std::int64_t n_layers,
                     const std::function<void(std::int64_t layer)> &add_recurrent) {
    model.integers["full_attention_interval"] = 2;
    set_ssm(model, std::uint32_t(DELTA_V_HEADS * DELTA_DIM), std::uint32_t(DELTA_DIM), std::uint32_t(DELTA_V_HEADS),
            std::uint32_t(DELTA_K_HEADS));
    for (std::int64_t i = 0; i < n_layers; ++i) {
        rename(model, block(i) + "ffn_norm.weight", block(i) + "post_attention_norm.weight");
        if (i % 2 == 0) {
            for (const char *part : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
                remove(model, i, part);
            }
            add_delta_net(model, i);
            add_recurrent(i);
        } else {
            remove(model, i, "attn_q.weight");
            add_matrix(model, block(i) + "attn_q", N_EMBD, 2 * N_EMBD, 1.6F);
        }
    }
}

RandomModel random_qwen3next() {
    const std::int64_t n_layers = 4, n_experts = 2, n_ff = 32;
    RandomModel model = decoder_of("qwen3next", n_layers, true);
    model.integers["expert_count"] = std::uint32_t(n_experts);
    model.integers["expert_used_count"] = 2;
    model.integers["expert_feed_forward_length"] = std::uint32_t(n_ff);
    model.integers["expert_shared_feed_forward_length"] = std::uint32_t(n_ff);
    add_qwen_layers(model, n_layers, [&](std::int64_t layer) {
        add_matrix(model, block(layer) + "ssm_ba", N_EMBD, 2 * DELTA_V_HEADS);
    });
    for (std::int64_t i = 0; i < n_layers; ++i) {
        const std::string of = block(i) + "ffn_";
        remove(model, i, "ffn_");
        add_matrix(model, of + "gate_inp", N_EMBD, n_experts, 0.1F);
        add(model, of + "gate_exps.weight", {N_EMBD, n_ff, n_experts}, 0.1F);
        add(model, of + "up_exps.weight", {N_EMBD, n_ff, n_experts}, 0.1F);
        add(model, of + "down_exps.weight", {n_ff, N_EMBD, n_experts}, 0.2F);
        add(model, of + "gate_inp_shexp.weight", {N_EMBD}, 0.1F);
        add_matrix(model, of + "gate_shexp", N_EMBD, n_ff);
        add_matrix(model, of + "up_shexp", N_EMBD, n_ff);
        add_matrix(model, of + "down_shexp", n_ff, N_EMBD);
    }
    return model;
}

RandomModel random_qwen35() {
    const std::int64_t n_layers = 4;
    RandomModel model = decoder_of("qwen35", n_layers, true);
    model.arrays["rope.dimension_sections"] = {3, 3, 2, 0};
    add_qwen_layers(model, n_layers, [&](std::int64_t layer) {
        add_matrix(model, block(layer) + "ssm_beta", N_EMBD, DELTA_V_HEADS);
        add_matrix(model, block(layer) + "ssm_alpha", N_EMBD, DELTA_V_HEADS);
    });
    return model;
}

RandomModel random_granite() {
    RandomModel model = decoder_of("granitehybrid", 4);
    set_mamba2(model);
    set_kv_heads(model, {0, 2, 0, 2});
    for (const std::int64_t i : {0, 2}) {
        remove(model, i, "attn_q");
        remove(model, i, "attn_k");
        remove(model, i, "attn_v");
        remove(model, i, "attn_output");
        add_mamba2(model, i);
    }
    model.reals["attention.scale"] = 0.4F;
    model.reals["logit_scale"] = 2.0F;
    model.reals["residual_scale"] = 0.7F;
    model.reals["embedding_scale"] = 1.5F;
    return model;
}

RandomModel random_lfm2() {
    RandomModel model = decoder_of("lfm2", 5, true);
    model.integers["shortconv.l_cache"] = 3;
    set_kv_heads(model, {0, 0, 2, 0, 2});
    rename(model, "output_norm.weight", "token_embd_norm.weight");
    for (const std::int64_t i : {0, 1, 3}) {
        const std::string of = block(i);
        remove(model, i, "attn_q");
        remove(model, i, "attn_k");
        remove(model, i, "attn_v");
        remove(model, i, "attn_output");
        add(model, of + "shortconv.conv.weight", {3, N_EMBD}, 0.7F);
        add_matrix(model, of + "shortconv.in_proj", N_EMBD, 3 * N_EMBD);
        add_matrix(model, of + "shortconv.out_proj", N_EMBD, N_EMBD);
    }
    return model;
}

/** Every layer has both. */
RandomModel random_falcon() {
    RandomModel model = decoder_of("falcon-h1", 3);
    set_mamba2(model);
    for (std::int64_t i = 0; i < 3; ++i) {
        rename(model, block(i) + "ffn_norm.weight", block(i) + "ffn_norm");
        add_mamba2(model, i);
    }
    return model;
}

/** A layer is Mamba, attention or feed-forward. */
RandomModel random_nemotron() {
    RandomModel model = decoder_of("nemotron_h", 6);
    set_mamba2(model);
    set_kv_heads(model, {0, 0, 2, 0, 0, 2});
    model.integers.erase("feed_forward_length");
    model.arrays["feed_forward_length"] = {0, 96, 0, 0, 96, 0};
    for (std::int64_t i = 0; i < 6; ++i) {
        remove(model, i, i % 3 == 1 ? "ffn_gate" : "ffn_");
        remove(model, i, "ffn_norm");
        if (i % 3 != 2) {
            remove(model, i, "attn_q");
            remove(model, i, "attn_k");
            remove(model, i, "attn_v");
            remove(model, i, "attn_output");
        }
        if (i % 3 == 0) {
            add_mamba2(model, i);
        }
    }
    return model;
}

RandomModel random_jamba() {
    RandomModel model = decoder_of("jamba", 4);
    set_ssm(model, 128, 16, 8, 0);
    set_kv_heads(model, {0, 2, 0, 2});
    for (const std::int64_t i : {0, 2}) {
        remove(model, i, "attn_q");
        remove(model, i, "attn_k");
        remove(model, i, "attn_v");
        remove(model, i, "attn_output");
        add_mamba(model, i);
    }
    return model;
}

}  // namespace

std::map<std::string, RandomModel> hybrid_models(std::int64_t n_vocab) {
    std::map<std::string, RandomModel> models = {
        {"granite_hybrid", random_granite()},     {"lfm2_hybrid", random_lfm2()},
        {"qwen3next_hybrid", random_qwen3next()}, {"qwen35_hybrid_mrope", random_qwen35()},
        {"falcon_h1_hybrid", random_falcon()},    {"nemotron_h_hybrid_no_rope", random_nemotron()},
        {"jamba_hybrid_no_rope", random_jamba()}};
    for (auto &[name, model] : models) {
        model.integers["vocab_size"] = std::uint32_t(n_vocab);
        for (RandomTensor &t : model.tensors) {
            if (t.name == "token_embd.weight" || t.name == "output.weight") {
                t.dims[1] = n_vocab;
            }
        }
    }
    return models;
}
