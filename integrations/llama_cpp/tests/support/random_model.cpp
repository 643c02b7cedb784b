#include "random_model.hpp"

#include "random_gemma.hpp"
#include "random_hybrid.hpp"

#include <ggml-cpp.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>

namespace {

void copy_tokenizer(gguf_context *to, const std::string &path) {
    gguf_init_params params{true, nullptr};
    const gguf_context_ptr from(gguf_init_from_file(path.c_str(), params));
    if (!from) {
        throw std::runtime_error("cannot read " + path);
    }
    for (std::int64_t i = gguf_get_n_kv(from.get()) - 1; i >= 0; --i) {
        const std::string key = gguf_get_key(from.get(), i);
        if (key.rfind("tokenizer.", 0) != 0) {
            gguf_remove_key(from.get(), key.c_str());
        }
    }
    gguf_set_kv(to, from.get());
}

void add_tensor(ggml_context *ctx, gguf_context *gguf, const RandomTensor &t, ggml_type type, std::mt19937 &random) {
    ggml_tensor *tensor = ggml_new_tensor(ctx, type, static_cast<int>(t.dims.size()), t.dims.data());
    ggml_set_name(tensor, t.name.c_str());
    std::vector<float> values(static_cast<std::size_t>(ggml_nelements(tensor)));
    std::normal_distribution<float> normal(t.mean, t.deviation);
    for (float &x : values) {
        x = normal(random);
    }
    const std::int64_t row = tensor->ne[0];
    ggml_quantize_chunk(type, values.data(), tensor->data, 0, std::int64_t(values.size()) / row, row, nullptr);
    gguf_add_tensor(gguf, tensor);
}

}  // namespace

void RandomModel::write(const std::string &path, std::uint32_t seed) const {
    const gguf_context_ptr gguf(gguf_init_empty());
    const auto full_key = [&](const std::string &key) {
        return key.rfind("general.", 0) == 0 || key.rfind("tokenizer.", 0) == 0 ? key : arch + "." + key;
    };
    if (tokenizer_of.empty()) {
        gguf_set_val_str(gguf.get(), "tokenizer.ggml.model", "no_vocab");
    } else {
        copy_tokenizer(gguf.get(), tokenizer_of);
    }
    gguf_set_val_str(gguf.get(), "general.architecture", arch.c_str());
    for (const auto &[key, value] : integers) {
        gguf_set_val_u32(gguf.get(), full_key(key).c_str(), value);
    }
    for (const auto &[key, value] : reals) {
        gguf_set_val_f32(gguf.get(), full_key(key).c_str(), value);
    }
    for (const auto &[key, value] : strings) {
        gguf_set_val_str(gguf.get(), full_key(key).c_str(), value.c_str());
    }
    for (const auto &[key, value] : arrays) {
        gguf_set_arr_data(gguf.get(), full_key(key).c_str(), GGUF_TYPE_INT32, value.data(), value.size());
    }
    std::size_t bytes = 0;
    for (const RandomTensor &t : tensors) {
        std::size_t n = 4;
        for (const std::int64_t dim : t.dims) {
            n *= static_cast<std::size_t>(dim);
        }
        bytes += n + ggml_tensor_overhead() + 64;
    }
    const ggml_context_ptr ctx(ggml_init({bytes, nullptr, false}));
    std::mt19937 random(seed);
    for (const RandomTensor &t : tensors) {
        add_tensor(ctx.get(), gguf.get(), t, t.dims.size() == 2 && t.deviation > 0 ? type : GGML_TYPE_F32, random);
    }
    if (!gguf_write_to_file(gguf.get(), path.c_str(), false)) {
        throw std::runtime_error("cannot write " + path);
    }
}

RandomModel decoder(const std::string &arch, const Shape &s) {
    RandomModel m;
    m.arch = arch;
    const auto u = [](std::int64_t n) { return static_cast<std::uint32_t>(n); };
    m.integers = {{"block_count", u(s.n_layers)},          {"context_length", 4096},
                  {"embedding_length", u(s.n_embd)},       {"feed_forward_length", u(s.n_ff)},
                  {"attention.head_count", u(s.n_heads)},  {"attention.head_count_kv", u(s.n_kv_heads)},
                  {"attention.key_length", u(s.head_dim)}, {"attention.value_length", u(s.head_dim)},
                  {"rope.dimension_count", u(s.head_dim)}, {"vocab_size", u(s.n_vocab)}};
    m.reals = {{"attention.layer_norm_rms_epsilon", 1e-5F},
               {"attention.layer_norm_epsilon", 1e-5F},
               {"rope.freq_base", 10000.0F}};
    const auto matrix = [&](const std::string &name, std::int64_t in, std::int64_t out, float gain = 1.0F) {
        m.tensors.push_back({name, {in, out}, gain / std::sqrt(float(in))});
    };
    const auto norm = [&](const std::string &name, std::int64_t n) {
        m.tensors.push_back({name + ".weight", {n}, 0.1F, 1.0F});
        if (s.norm_bias) {
            m.tensors.push_back({name + ".bias", {n}, 0.1F});
        }
    };
    m.tensors.push_back({"token_embd.weight", {s.n_embd, s.n_vocab}, 1.0F});
    norm("output_norm", s.n_embd);
    if (s.output) {
        matrix("output.weight", s.n_embd, s.n_vocab);
    }
    const std::int64_t q = s.n_heads * s.head_dim, kv = s.n_kv_heads * s.head_dim;
    // Larger Q and K than at initialisation: attention must not be uniform, or errors in it would not show in the
    // logits.
    const float sharp = 1.6F;
    for (std::int64_t i = 0; i < s.n_layers; ++i) {
        const std::string block = "blk." + std::to_string(i) + ".";
        norm(block + "attn_norm", s.n_embd);
        norm(block + "ffn_norm", s.n_embd);
        if (s.fused_qkv) {
            matrix(block + "attn_qkv.weight", s.n_embd, q + 2 * kv, sharp);
        } else {
            matrix(block + "attn_q.weight", s.n_embd, q, sharp);
            matrix(block + "attn_k.weight", s.n_embd, kv, sharp);
            matrix(block + "attn_v.weight", s.n_embd, kv);
        }
        if (s.qkv_bias) {
            m.tensors.push_back({block + "attn_q.bias", {q}, 0.5F});
            m.tensors.push_back({block + "attn_k.bias", {kv}, 0.5F});
            m.tensors.push_back({block + "attn_v.bias", {kv}, 0.5F});
        }
        if (s.qk_norm) {
            m.tensors.push_back({block + "attn_q_norm.weight", {s.head_dim}, 0.1F, sharp});
            m.tensors.push_back({block + "attn_k_norm.weight", {s.head_dim}, 0.1F, sharp});
        }
        matrix(block + "attn_output.weight", q, s.n_embd, 1.5F);
        if (s.gate) {
            matrix(block + "ffn_gate.weight", s.n_embd, s.n_ff);
        }
        matrix(block + "ffn_up.weight", s.n_embd, s.n_ff);
        matrix(block + "ffn_down.weight", s.n_ff, s.n_embd);
    }
    return m;
}

namespace {

/** Removes the tensors with `part` in their names. */
void remove_tensors(RandomModel &model, const std::string &part) {
    const auto has_part = [&](const RandomTensor &t) { return t.name.find(part) != std::string::npos; };
    model.tensors.erase(std::remove_if(model.tensors.begin(), model.tensors.end(), has_part), model.tensors.end());
}

/** Norms behind attention and feed-forward in place of those before them; Olmo's of Q and K go over all heads. */
void add_models_with_late_norms(std::map<std::string, RandomModel> &models) {
    for (const char *arch : {"olmo2", "exaone4"}) {
        const bool olmo = std::string(arch) == "olmo2";
        Shape shape;
        shape.n_layers = 4;
        shape.qk_norm = !olmo;
        RandomModel model = decoder(arch, shape);
        remove_tensors(model, "ffn_norm");
        remove_tensors(model, "attn_norm");
        for (std::int64_t i = 0; i < shape.n_layers; ++i) {
            const std::string block = "blk." + std::to_string(i) + ".";
            model.tensors.push_back({block + "post_attention_norm.weight", {shape.n_embd}, 0.1F, 1.0F});
            model.tensors.push_back({block + "post_ffw_norm.weight", {shape.n_embd}, 0.1F, 1.0F});
            if (olmo) {
                const std::int64_t q = shape.n_heads * shape.head_dim, k = shape.n_kv_heads * shape.head_dim;
                model.tensors.push_back({block + "attn_q_norm.weight", {q}, 0.1F, 1.2F});
                model.tensors.push_back({block + "attn_k_norm.weight", {k}, 0.1F, 1.2F});
            }
        }
        models[std::string(arch) + "_late_norms"] = model;
        if (olmo) {
            // Every fourth layer is without a window.
            model.integers["attention.sliding_window"] = 32;
            models["olmo2_windows"] = model;
        }
    }
    // Q, K and V in one matrix, and so are the gate and the way up.
    Shape shape;
    shape.fused_qkv = true;
    shape.gate = false;
    RandomModel phi = decoder("phi3", shape);
    for (RandomTensor &t : phi.tensors) {
        if (t.name.find("ffn_up") != std::string::npos) {
            t.dims[1] *= 2;
        }
    }
    models["phi3_fused"] = phi;
}

/** M-RoPE, whose pairs take one of a token's four positions. */
void add_models_with_mrope(std::map<std::string, RandomModel> &models) {
    Shape shape;
    shape.qkv_bias = true;
    RandomModel qwen2 = decoder("qwen2vl", shape);
    qwen2.arrays["rope.dimension_sections"] = {2, 3, 3, 0};
    models["qwen2vl_mrope"] = qwen2;
    // The last pair takes the fourth position.
    qwen2.arrays["rope.dimension_sections"] = {2, 3, 2, 1};
    models["qwen2vl_mrope_fourth"] = qwen2;

    shape = Shape();
    shape.qk_norm = true;
    RandomModel qwen3 = decoder("qwen3vl", shape);
    qwen3.arrays["rope.dimension_sections"] = {3, 3, 2, 0};
    models["qwen3vl_mrope"] = qwen3;
    // As Qwen3-VL's, sections that leave the last of the interleaved pairs to the fourth position.
    qwen3.arrays["rope.dimension_sections"] = {4, 2, 2, 0};
    models["qwen3vl_mrope_fourth"] = qwen3;
}

/** Layers with a sliding window of 32 tokens, layers without RoPE, learned sink logits. */
void add_models_with_windows(std::map<std::string, RandomModel> &models) {
    Shape shape;
    shape.n_layers = 4;
    // Every fourth layer has no RoPE.
    models["smollm3_no_rope"] = decoder("smollm3", shape);

    shape.output = false;
    for (const char *arch : {"gemma2", "gemma3"}) {
        shape.qk_norm = std::string(arch) == "gemma3";
        // Gemma 3 has five layers with a window for each without.
        shape.n_layers = shape.qk_norm ? 6 : 4;
        RandomModel gemma = decoder(arch, shape);
        gemma.integers["attention.sliding_window"] = 32;
        if (!shape.qk_norm) {
            gemma.reals["attn_logit_softcapping"] = 50;
            gemma.reals["final_logit_softcapping"] = 30;
        }
        for (std::int64_t i = 0; i < shape.n_layers; ++i) {
            const std::string block = "blk." + std::to_string(i) + ".";
            gemma.tensors.push_back({block + "post_attention_norm.weight", {shape.n_embd}, 0.1F, 1.0F});
            // Little weight for ggml's GELU, which rounds its input to f16: differences of 1e-6 then flip roundings.
            gemma.tensors.push_back({block + "post_ffw_norm.weight", {shape.n_embd}, 0.01F, 0.05F});
        }
        models[std::string(arch) + "_windows"] = gemma;
    }

    // Of four layers the last has neither window nor RoPE.
    shape = Shape();
    shape.n_layers = 4;
    shape.output = false;
    RandomModel cohere = decoder("cohere2", shape);
    cohere.integers["attention.sliding_window"] = 32;
    cohere.reals["logit_scale"] = 0.5F;
    remove_tensors(cohere, "ffn_norm");
    models["cohere2_windows"] = cohere;

    // gpt-oss: experts with biases.
    shape = Shape();
    shape.n_layers = 4;
    shape.qkv_bias = true;
    const std::int64_t n_experts = 2, n_ff = 32;
    RandomModel oss = decoder("gpt-oss", shape);
    oss.integers["attention.sliding_window"] = 32;
    oss.integers["expert_count"] = n_experts;
    oss.integers["expert_used_count"] = 2;
    oss.integers["expert_feed_forward_length"] = n_ff;
    remove_tensors(oss, "ffn_");
    for (std::int64_t i = 0; i < shape.n_layers; ++i) {
        const std::string block = "blk." + std::to_string(i) + ".";
        const std::int64_t d = shape.n_embd;
        const std::vector<RandomTensor> tensors = {
            {block + "post_attention_norm.weight", {d}, 0.1F, 1.0F},
            {block + "attn_sinks.weight", {shape.n_heads}, 1.0F, 1.0F},
            {block + "attn_output.bias", {d}, 0.1F},
            {block + "ffn_gate_inp.weight", {d, n_experts}, 0.1F},
            {block + "ffn_gate_inp.bias", {n_experts}, 0.1F},
            {block + "ffn_gate_exps.weight", {d, n_ff, n_experts}, 0.1F},
            {block + "ffn_up_exps.weight", {d, n_ff, n_experts}, 0.1F},
            {block + "ffn_down_exps.weight", {n_ff, d, n_experts}, 0.2F},
            {block + "ffn_gate_exps.bias", {n_ff, n_experts}, 0.1F},
            {block + "ffn_up_exps.bias", {n_ff, n_experts}, 0.1F},
            {block + "ffn_down_exps.bias", {d, n_experts}, 0.1F}};
        oss.tensors.insert(oss.tensors.end(), tensors.begin(), tensors.end());
    }
    models["gptoss_windows"] = oss;
}

}  // namespace

std::map<std::string, RandomModel> supported_models() {
    std::map<std::string, RandomModel> models;
    models["llama_gqa"] = decoder("llama");
    Shape shape;
    shape.n_kv_heads = 4;
    models["llama_mha"] = decoder("llama", shape);
    shape = Shape();
    shape.fused_qkv = true;
    models["llama_fused_qkv"] = decoder("llama", shape);

    RandomModel linear = decoder("llama");
    linear.strings["rope.scaling.type"] = "linear";
    linear.reals["rope.scaling.factor"] = 4.0F;
    models["llama_linear"] = linear;

    RandomModel yarn = decoder("llama");
    yarn.strings["rope.scaling.type"] = "yarn";
    yarn.reals["rope.scaling.factor"] = 4.0F;
    yarn.integers["rope.scaling.original_context_length"] = 128;
    models["llama_yarn"] = yarn;

    RandomModel factors = decoder("llama");
    factors.tensors.push_back({"rope_freqs.weight", {Shape().head_dim / 2}, 1.0F, 5.0F});
    models["llama_factors"] = factors;

    RandomModel longrope = decoder("llama");
    longrope.strings["rope.scaling.type"] = "longrope";
    longrope.integers["rope.scaling.original_context_length"] = 2048;
    longrope.reals["rope.scaling.attn_factor"] = 1.2F;
    longrope.tensors.push_back({"rope_factors_short.weight", {Shape().head_dim / 2}, 0.2F, 1.5F});
    longrope.tensors.push_back({"rope_factors_long.weight", {Shape().head_dim / 2}, 2.0F, 9.0F});
    models["llama_longrope"] = longrope;

    RandomModel granite = decoder("granite");
    granite.reals["attention.scale"] = 0.4F;
    granite.reals["logit_scale"] = 2.0F;
    granite.reals["residual_scale"] = 0.7F;
    granite.reals["embedding_scale"] = 1.5F;
    models["granite_scale"] = granite;

    shape = Shape();
    shape.qkv_bias = true;
    models["qwen2_neox"] = decoder("qwen2", shape);
    RandomModel qwen_yarn = decoder("qwen2", shape);
    qwen_yarn.strings = yarn.strings;
    qwen_yarn.reals["rope.scaling.factor"] = 4.0F;
    qwen_yarn.integers["rope.scaling.original_context_length"] = 128;
    models["qwen2_yarn"] = qwen_yarn;

    shape = Shape();
    shape.qk_norm = true;
    shape.head_dim = 32;  // wider than n_embd / n_heads
    models["qwen3_qk_norm"] = decoder("qwen3", shape);

    shape = Shape();
    shape.output = false;
    shape.n_kv_heads = 1;
    models["gemma_scaled_q"] = decoder("gemma", shape);

    shape = Shape();
    shape.norm_bias = true;
    RandomModel partial = decoder("stablelm", shape);
    partial.integers["rope.dimension_count"] = 8;
    partial.integers.erase("attention.key_length");
    partial.integers.erase("attention.value_length");
    models["stablelm_partial"] = partial;
    add_models_with_windows(models);
    add_models_with_late_norms(models);
    add_models_with_mrope(models);
    models["gemma3n_shared_kv"] = random_gemma3n();
    models["gemma4_heads"] = random_gemma4(false);
    models["gemma4_shared_kv"] = random_gemma4(true);
    models.merge(hybrid_models());
    return models;
}

std::optional<RandomModel> shift_reference(const std::string &name) {
    for (const char *part : {"yarn", "longrope", "no_rope", "cohere2", "mrope_fourth", "hybrid_mrope"}) {
        if (name.find(part) != std::string::npos) {
            return std::nullopt;
        }
    }
    RandomModel model = supported_models().at(name);
    if (model.arrays.erase("rope.dimension_sections") > 0) {
        model.arch = model.arch == "qwen2vl" ? "qwen2" : "qwen3";
    }
    return model;
}

std::map<std::string, Unsupported> unsupported_models() {
    std::map<std::string, Unsupported> models;
    RandomModel longrope = supported_models().at("llama_longrope");
    longrope.integers["rope.scaling.original_context_length"] = 300;
    models["longrope_beyond"] = {longrope, "LongRoPE"};

    Shape shape;
    shape.norm_bias = true;
    shape.n_kv_heads = 4;
    shape.gate = false;
    shape.fused_qkv = true;
    RandomModel bloom = decoder("bloom", shape);
    bloom.tensors.push_back({"token_embd_norm.weight", {shape.n_embd}, 0.1F, 1.0F});
    bloom.tensors.push_back({"token_embd_norm.bias", {shape.n_embd}, 0.1F});
    const auto biases = [&](RandomModel &m) {
        for (std::int64_t i = 0; i < shape.n_layers; ++i) {
            const std::string block = "blk." + std::to_string(i) + ".";
            m.tensors.push_back({block + "attn_qkv.bias", {3 * shape.n_embd}, 0.1F});
            m.tensors.push_back({block + "attn_output.bias", {shape.n_embd}, 0.1F});
            m.tensors.push_back({block + "ffn_up.bias", {shape.n_ff}, 0.1F});
            m.tensors.push_back({block + "ffn_down.bias", {shape.n_embd}, 0.1F});
        }
    };
    biases(bloom);
    models["bloom"] = {bloom, "without RoPE"};
    RandomModel gpt2 = decoder("gpt2", shape);
    gpt2.tensors.push_back({"position_embd.weight", {shape.n_embd, 4096}, 0.1F});
    biases(gpt2);
    models["gpt2"] = {gpt2, "without RoPE"};

    // Mamba: no attention.
    RandomModel mamba;
    mamba.arch = "mamba";
    const std::int64_t d = 64, inner = 128, state = 16, rank = 8, conv = 4;
    mamba.integers = {{"block_count", 2},         {"context_length", 4096},    {"embedding_length", 64},
                      {"feed_forward_length", 0}, {"attention.head_count", 0}, {"vocab_size", 128},
                      {"ssm.conv_kernel", 4},     {"ssm.inner_size", 128},     {"ssm.state_size", 16},
                      {"ssm.time_step_rank", 8}};
    mamba.reals = {{"attention.layer_norm_rms_epsilon", 1e-5F}};
    mamba.tensors = {{"token_embd.weight", {d, 128}, 1.0F}, {"output_norm.weight", {d}, 0.1F, 1.0F}};
    for (int i = 0; i < 2; ++i) {
        const std::string block = "blk." + std::to_string(i) + ".";
        const std::vector<RandomTensor> tensors = {{block + "attn_norm.weight", {d}, 0.1F, 1.0F},
                                                   {block + "ssm_in.weight", {d, 2 * inner}, 0.1F},
                                                   {block + "ssm_conv1d.weight", {conv, inner}, 0.1F},
                                                   {block + "ssm_conv1d.bias", {inner}, 0.1F},
                                                   {block + "ssm_x.weight", {inner, rank + 2 * state}, 0.1F},
                                                   {block + "ssm_dt.weight", {rank, inner}, 0.1F},
                                                   {block + "ssm_dt.bias", {inner}, 0.1F},
                                                   {block + "ssm_a", {state, inner}, 0.1F, -1.0F},
                                                   {block + "ssm_d", {inner}, 0.1F},
                                                   {block + "ssm_out.weight", {inner, d}, 0.1F}};
        mamba.tensors.insert(mamba.tensors.end(), tensors.begin(), tensors.end());
    }
    models["mamba"] = {mamba, "recurrent"};

    RandomModel windows = hybrid_models().at("lfm2_hybrid");
    windows.integers["attention.sliding_window"] = 32;
    models["lfm2_windows"] = {windows, "sliding windows in a model with recurrent layers"};

    // DeepSeek 2: K and V are one latent vector; dense feed-forward in all layers.
    shape = Shape();
    const std::int64_t lora = 32, rope = 8, nope = 16, v = 16;
    RandomModel mla = decoder("deepseek2", shape);
    mla.integers["attention.q_lora_rank"] = 32;
    mla.integers["attention.kv_lora_rank"] = 32;
    mla.integers["attention.head_count_kv"] = 1;
    mla.integers["attention.key_length"] = lora + rope;
    mla.integers["attention.value_length"] = lora;
    mla.integers["attention.key_length_mla"] = nope + rope;
    mla.integers["attention.value_length_mla"] = v;
    mla.integers["rope.dimension_count"] = rope;
    mla.integers["leading_dense_block_count"] = 3;
    mla.integers["expert_feed_forward_length"] = 32;
    mla.integers["expert_shared_count"] = 1;
    std::vector<RandomTensor> kept;
    for (const RandomTensor &t : mla.tensors) {
        if (t.name.find("attn_q.") == std::string::npos && t.name.find("attn_k.") == std::string::npos &&
            t.name.find("attn_v.") == std::string::npos) {
            kept.push_back(t);
        }
    }
    mla.tensors = kept;
    for (std::int64_t i = 0; i < shape.n_layers; ++i) {
        const std::string block = "blk." + std::to_string(i) + ".";
        const std::vector<RandomTensor> tensors = {
            {block + "attn_q_a_norm.weight", {32}, 0.1F, 1.0F},
            {block + "attn_kv_a_norm.weight", {lora}, 0.1F, 1.0F},
            {block + "attn_q_a.weight", {shape.n_embd, 32}, 0.1F},
            {block + "attn_q_b.weight", {32, shape.n_heads * (nope + rope)}, 0.1F},
            {block + "attn_kv_a_mqa.weight", {shape.n_embd, lora + rope}, 0.1F},
            {block + "attn_k_b.weight", {nope, lora, shape.n_heads}, 0.1F},
            {block + "attn_v_b.weight", {lora, v, shape.n_heads}, 0.1F}};
        mla.tensors.insert(mla.tensors.end(), tensors.begin(), tensors.end());
    }
    models["deepseek2"] = {mla, "MLA"};
    return models;
}
