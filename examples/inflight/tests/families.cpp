// Families of models: logits beside llama.cpp's, with random models. What the engine lacks is rejected by name.
#include "cpu_model.hpp"
#include "support/random_model.hpp"
#include "support/stock.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <unistd.h>

namespace {

using inflight::Batch;
using inflight::CpuModel;
using inflight::LlamaWeights;
using inflight::OutputRow;

constexpr std::size_t TOKENS = 256, CHUNK = 64;

/** A random model's file, which is removed at the end. */
class ModelFile {
public:
    explicit ModelFile(const RandomModel &model)
        : path_(testing::TempDir() + "inflight-family-" + std::to_string(getpid()) + ".gguf") {
        model.write(path_);
    }
    ~ModelFile() { std::filesystem::remove(path_); }
    ModelFile(const ModelFile &) = delete;
    ModelFile &operator=(const ModelFile &) = delete;

    const std::string &path() const { return path_; }

private:
    std::string path_;
};

/** Logits of all tokens of one sequence, which enters in chunks. */
Rows logits_of(CpuModel &model, const Tokens &tokens) {
    Rows rows;
    const std::size_t n = model.config().vocabulary;
    model.observe([&](const OutputRow &, const float *row) { rows.emplace_back(row, row + n); });
    for (std::size_t from = 0; from < tokens.size(); from += CHUNK) {
        Batch batch;
        batch.seq_ids = {0};
        batch.tokens = slice(tokens, from, from + CHUNK);
        batch.n_tokens = {static_cast<std::int32_t>(batch.tokens.size())};
        for (std::uint32_t i = 0; i < batch.tokens.size(); i++) {
            batch.output_rows.push_back({i, {}, 0});
        }
        model.forward(batch);
    }
    return rows;
}

inflight::PluginConfig plugin_config() {
    inflight::PluginConfig c{};
    c.window = TOKENS;
    c.max_seqs = 1;
    c.chunk = CHUNK;
    return c;
}

void expect_logits_of_llama(const std::string &name, const RandomModel &random) {
    const ModelFile file(random);
    const llama_model_ptr model = load(file.path());
    const Tokens tokens = random_tokens(model.get(), TOKENS);
    const Rows want = run(stock(model.get(), 2 * TOKENS).get(), tokens, CHUNK);
    inflight::Group group;
    CpuModel engine(LlamaWeights::load(file.path()), plugin_config(), group, 1);
    const Difference d = compare(logits_of(engine, tokens), want);
    ASSERT_EQ(d.rows, TOKENS) << name;
    EXPECT_LT(d.largest, 1e-3) << name;
    EXPECT_EQ(d.same_argmax, TOKENS) << name;
    std::printf("%-16s largest difference of logits %.2g, the same argmax %zu of %zu\n", name.c_str(), d.largest,
                d.same_argmax, d.rows);
}

TEST(Families, LogitsAreThoseOfLlamaCpp) {
    auto models = supported_models();
    // ggml's GELU rounds its input to f16: a little of it shows a wrong function, and not the rounding.
    for (RandomTensor &tensor : models.at("gemma_scaled_q").tensors) {
        tensor.deviation *= tensor.name.find("ffn_down") == std::string::npos ? 1.0F : 0.1F;
    }
    for (const char *name : {"llama_gqa", "llama_mha", "llama_linear", "llama_factors", "qwen2_neox", "qwen3_qk_norm",
                             "granite_scale", "gemma_scaled_q", "gemma2_windows", "gemma3_windows"}) {
        expect_logits_of_llama(name, models.at(name));
    }
}

TEST(Families, KeysOfTheFileCount) {
    // Each of them changes the logits.
    RandomModel gemma3 = supported_models().at("gemma3_windows");
    gemma3.reals["rope.freq_base"] = 1e6F;
    gemma3.strings["rope.scaling.type"] = "linear";
    gemma3.reals["rope.scaling.factor"] = 8;
    gemma3.reals["final_logit_softcapping"] = 20;
    gemma3.integers["attention.sliding_window_pattern"] = 3;
    expect_logits_of_llama("gemma3, keys", gemma3);
    RandomModel biased = supported_models().at("llama_gqa");
    biased.tensors.push_back({"blk.1.attn_q.bias", {64}, 0.5F});
    biased.tensors.push_back({"blk.1.attn_k.bias", {32}, 0.5F});
    biased.tensors.push_back({"blk.1.attn_v.bias", {32}, 0.5F});
    expect_logits_of_llama("llama, biases", biased);
}

void expect_rejected(const RandomModel &model, const std::string &part) {
    const ModelFile file(model);
    try {
        LlamaWeights::load(file.path());
        ADD_FAILURE() << "accepted: " << part;
    } catch (const std::runtime_error &error) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
}

TEST(Families, OthersAreRejectedByName) {
    const auto models = supported_models();
    expect_rejected(models.at("stablelm_partial"), "is of architecture 'stablelm': llama, qwen2, ");
    expect_rejected(models.at("cohere2_windows"), "is of architecture 'cohere2'");
    expect_rejected(models.at("gptoss_windows"), "is of architecture 'gpt-oss'");
    expect_rejected(models.at("llama_yarn"), "scales RoPE by 'yarn'");
    expect_rejected(models.at("llama_longrope"), "scales RoPE by 'longrope'");
    expect_rejected(models.at("llama_fused_qkv"), "has no tensor 'blk.0.attn_q.weight'");
    const RandomModel llama = models.at("llama_gqa");
    RandomModel more = llama;
    more.tensors.push_back({"blk.1.attn_output.bias", {64}, 0.5F});
    expect_rejected(more, "has tensor 'blk.1.attn_output.bias', which");
    more = llama;
    more.reals["attention.clamp_kqv"] = 8;
    expect_rejected(more, "has a key 'llama.attention.clamp_kqv'");
    more = llama;
    more.integers["attention.value_length"] = 8;
    expect_rejected(more, "has values of 8 dims and keys of 16");
    more = models.at("gemma3_windows");
    more.reals["rope.freq_base"] = 1e6F;
    more.tensors.push_back({"rope_freqs.weight", {8}, 0.5F});
    expect_rejected(more, "scales RoPE by a tensor, and its layers have other bases");
    more = models.at("gemma3_windows");
    more.integers["block_count"] = 5;
    expect_rejected(more, "has sliding windows in all of its layers");
}

TEST(Families, RanksHaveTheBiasesOfTheirHeads) {
    const ModelFile file(supported_models().at("qwen2_neox"));
    const auto whole = LlamaWeights::load(file.path()).layers[1].qkv_bias,
               second = LlamaWeights::load(file.path(), 1, 2).layers[1].qkv_bias;
    // 4 query heads and 2 KV heads of 16: the last two and the last one.
    ASSERT_EQ(second.size(), 64u);
    EXPECT_EQ(std::vector<float>(second.begin(), second.begin() + 32),
              std::vector<float>(whole.begin() + 32, whole.begin() + 64));
    EXPECT_EQ(std::vector<float>(second.begin() + 32, second.begin() + 48),
              std::vector<float>(whole.begin() + 80, whole.begin() + 96));
    EXPECT_EQ(std::vector<float>(second.begin() + 48, second.end()),
              std::vector<float>(whole.begin() + 112, whole.end()));
}

}  // namespace
