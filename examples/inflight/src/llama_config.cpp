#include "llama_config.hpp"

#include "command_line.hpp"
#include "model_checks.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

namespace inflight {
namespace {

/** What the models of an architecture have beside, or instead of, what a Llama has. */
struct Family {
    const char *architecture;
    bool rope_neox = false;
    bool qk_norm = false;
    bool post_norms = false;
    Activation activation = Activation::silu;
    /** Embeddings are multiplied by the square root of their width. */
    bool root_of_width = false;
    /** Factors are in the file: Granite's. */
    bool scales = false;
    /** The last of so many layers has the engine's window, the others a sliding window of their own; 0 = none has. */
    std::uint32_t window_pattern = 0;
    /** That window, where the file names none; 0 = all layers then have the engine's. */
    std::uint32_t window = 0;
    /** RoPE base of those layers, where the file names none; 0 = that of the others. */
    double local_rope_base = 0;
    /** With so many layers, QK^T is divided by the root of width / heads, which is not that of head_dim; 0 = never. */
    std::size_t layers_scaled_by_width = 0;
};

const Family *find_family(const std::string &architecture) {
    static const std::vector<Family> families = [] {
        Family llama{"llama"}, qwen2{"qwen2"}, qwen3{"qwen3"}, granite{"granite"}, gemma{"gemma"};
        qwen2.rope_neox = true;
        qwen3.rope_neox = true;
        qwen3.qk_norm = true;
        granite.scales = true;
        gemma.rope_neox = true;
        gemma.activation = Activation::gelu;
        gemma.root_of_width = true;
        Family gemma2 = gemma;
        gemma2.architecture = "gemma2";
        gemma2.post_norms = true;
        gemma2.window_pattern = 2;
        gemma2.window = 4096;
        gemma2.layers_scaled_by_width = 46;
        Family gemma3 = gemma;
        gemma3.architecture = "gemma3";
        gemma3.post_norms = true;
        gemma3.qk_norm = true;
        gemma3.window_pattern = 6;
        gemma3.local_rope_base = 10000;
        gemma3.layers_scaled_by_width = 62;
        return std::vector<Family>{llama, qwen2, qwen3, granite, gemma, gemma2, gemma3};
    }();
    const auto at = std::find_if(families.begin(), families.end(),
                                 [&](const Family &family) { return architecture == family.architecture; });
    return at == families.end() ? nullptr : &*at;
}

/** `<unk>`, `<s>`, `</s>`, then the names of the 256 bytes; SentencePiece writes a space as U+2581. */
bool is_byte_vocabulary(const std::vector<std::string> &tokens) {
    if (tokens.size() != 256 + LlamaConfig::byte_offset) {
        return false;
    }
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", b);
        const std::string &token = tokens[b + LlamaConfig::byte_offset];
        if (token != name && !(b == ' ' && token == "\xE2\x96\x81")) {
            return false;
        }
    }
    return true;
}

/** Reads the keys of a file under the prefix of its architecture. */
class ConfigReader {
public:
    ConfigReader(const programs::GgufFile &gguf, const Family &family)
        : gguf_(gguf), family_(family), prefix_(std::string(family.architecture) + ".") {}

    LlamaConfig read() {
        reject_unknown();
        LlamaConfig c{};
        read_shape(c);
        read_vocabulary(c);
        read_layers(c);
        read_factors(c);
        return c;
    }

private:
    const programs::GgufFile &gguf_;
    const Family &family_;
    std::string prefix_;

    std::uint64_t count(const char *key, std::optional<std::uint64_t> otherwise = {}) const {
        return gguf_.count(prefix_ + key, otherwise);
    }
    /** The first token of a vocabulary may be special, too: it is in Granite's. */
    Token token(const char *key, std::optional<std::uint64_t> otherwise = {}) const {
        return static_cast<Token>(gguf_.count(key, otherwise, {0, 1U << 20}));
    }
    double number(const char *key, std::optional<double> otherwise = {}) const {
        return gguf_.number(prefix_ + key, otherwise);
    }
    /** For numbers that may be missing. */
    double number_or_0(const char *key) const { return gguf_.has(prefix_ + key) ? number(key) : 0; }

    std::string scaling_type() const { return gguf_.text(prefix_ + "rope.scaling.type"); }

    /** Keys that change what is computed, and that this engine would ignore. */
    void reject_unknown() const {
        const std::string scaling = scaling_type();
        if (!scaling.empty() && scaling != "none" && scaling != "linear") {
            gguf_.fail("scales RoPE by '" + programs::one_line(scaling) +
                       "': only plain and linear RoPE and a tensor of factors are supported");
        }
        for (const char *key : {"attention.clamp_kqv", "attention.temperature_scale", "deepstack_mapping",
                                "rope.scaling.attn_factor", "rope.scaling.alpha"}) {
            if (gguf_.has(prefix_ + key)) {
                gguf_.fail("has a key '" + prefix_ + key + "', which is not supported");
            }
        }
        // The second one says in files of Granite whether there is RoPE.
        for (const char *key : {"attention.causal", "rope.scaling.finetuned"}) {
            if (gguf_.flag(prefix_ + key) == std::optional<bool>(false)) {
                gguf_.fail("has '" + prefix_ + key + "' false, which is not supported");
            }
        }
    }

    void read_shape(LlamaConfig &c) const {
        c.width = count("embedding_length");
        c.n_layers = count("block_count");
        c.n_q_heads = count("attention.head_count");
        c.n_kv_heads = count("attention.head_count_kv", c.n_q_heads);
        c.head_dim = count("attention.key_length", std::max<std::uint64_t>(c.width / c.n_q_heads, 1));
        if (const std::uint64_t n = count("attention.value_length", c.head_dim); n != c.head_dim) {
            gguf_.fail("has values of " + std::to_string(n) + " dims and keys of " + std::to_string(c.head_dim) +
                       ": they must be equal");
        }
        c.rope_dim = count("rope.dimension_count", c.head_dim);
        c.feed_forward = count("feed_forward_length");
        // check_model() has checked it: some models were trained with more than 2^20 tokens.
        c.trained_context = gguf_.count(prefix_ + "context_length", 0, {0, UINT32_MAX});
        c.rms_eps = static_cast<float>(number("attention.layer_norm_rms_epsilon"));
        c.rope_neox = family_.rope_neox;
        c.qk_norm = family_.qk_norm;
        c.post_norms = family_.post_norms;
        c.activation = family_.activation;
    }

    void read_vocabulary(LlamaConfig &c) const {
        const auto tokens = gguf_.texts("tokenizer.ggml.tokens");
        c.vocabulary = count("vocab_size", tokens.size());
        if (!tokens.empty() && tokens.size() != c.vocabulary) {
            gguf_.fail("names " + std::to_string(tokens.size()) + " tokens of a vocabulary of " +
                       std::to_string(c.vocabulary));
        }
        c.bytes = is_byte_vocabulary(tokens);
        c.bos = token("tokenizer.ggml.bos_token_id", 1);
        // In most vocabularies of byte pairs no token stands for the beginning.
        c.add_bos = gguf_.flag("tokenizer.ggml.add_bos_token").value_or(gguf_.text("tokenizer.ggml.model") != "gpt2");
        c.end_tokens = {token("tokenizer.ggml.eos_token_id", 2)};
        for (const char *key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
            if (gguf_.has(key)) {
                c.end_tokens.insert(token(key));
            }
        }
        if (static_cast<std::size_t>(std::max(c.bos, *c.end_tokens.rbegin())) >= c.vocabulary) {
            gguf_.fail("begins or ends with a token outside its vocabulary of " + std::to_string(c.vocabulary));
        }
    }

    /** Positions are divided by it. */
    double linear_scaling() const {
        const double factor = gguf_.has(prefix_ + "rope.scaling.factor") ? number("rope.scaling.factor")
                                                                          : number("rope.scale_linear", 1.0);
        return scaling_type() == "none" ? 1 : factor;
    }

    void read_layers(LlamaConfig &c) const {
        LayerShape global;
        global.rope_base = number("rope.freq_base", 10000.0);
        global.rope_scale = 1 / linear_scaling();
        LayerShape local = global;
        if (family_.window_pattern != 0) {
            const bool named = gguf_.has(prefix_ + "attention.sliding_window");
            local.window = named ? static_cast<std::uint32_t>(count("attention.sliding_window")) : family_.window;
            const double base = family_.local_rope_base != 0 ? family_.local_rope_base : global.rope_base;
            local.rope_base = number("rope.freq_base_swa", base);
            local.rope_scale = family_.local_rope_base != 0 ? 1 : global.rope_scale;
        }
        const std::size_t pattern =
            family_.window_pattern != 0 ? count("attention.sliding_window_pattern", family_.window_pattern) : 1;
        for (std::size_t i = 0; i < c.n_layers; i++) {
            c.layers.push_back(local.window != 0 && i % pattern + 1 < pattern ? local : global);
        }
        if (c.layers[reference_layer(c.layers)].window != 0) {
            gguf_.fail("has sliding windows in all of its layers: one with the engine's window is needed");
        }
        if (gguf_.tensor("rope_freqs.weight") && global.rope_scale != 1) {
            gguf_.fail("scales RoPE by a factor and by a tensor: one of them is allowed");
        }
        if (gguf_.tensor("rope_freqs.weight") && local.rope_base != global.rope_base) {
            gguf_.fail("scales RoPE by a tensor, and its layers have other bases: one of them is allowed");
        }
    }

    void read_factors(LlamaConfig &c) const {
        const auto width = static_cast<double>(c.width);
        c.embedding_scale = family_.root_of_width ? static_cast<float>(std::sqrt(width)) : 1.0f;
        c.residual_scale = 1.0f;
        c.logit_scale = 1.0f;
        if (family_.scales) {
            c.embedding_scale = static_cast<float>(number("embedding_scale", 1.0));
            c.residual_scale = static_cast<float>(number("residual_scale", 1.0));
            c.logit_scale = 1.0f / static_cast<float>(number("logit_scale"));
            c.attention_scale = number_or_0("attention.scale");
        }
        if (family_.layers_scaled_by_width != 0 && c.n_layers == family_.layers_scaled_by_width) {
            c.attention_scale = 1 / std::sqrt(std::floor(width / static_cast<double>(c.n_q_heads)));
        }
        if (family_.post_norms) {
            // llama.cpp's numbers for a Gemma 2 whose file has none.
            const bool capped = std::string(family_.architecture) == "gemma2";
            c.attention_softcap = capped ? number("attn_logit_softcapping", 50.0) : 0;
            c.logit_softcap = capped ? number("final_logit_softcapping", 30.0) : number_or_0("final_logit_softcapping");
        }
    }
};

}  // namespace

std::uint32_t reference_layer(const std::vector<LayerShape> &layers) {
    const auto at = std::find_if(layers.begin(), layers.end(), [](const LayerShape &l) { return l.window == 0; });
    return at == layers.end() ? 0 : static_cast<std::uint32_t>(at - layers.begin());
}

bool LlamaConfig::is_plain() const {
    const bool windows = std::any_of(layers.begin(), layers.end(), [](const LayerShape &l) { return l.window != 0; });
    return !windows && !qk_norm && !post_norms && activation == Activation::silu && embedding_scale == 1 &&
           residual_scale == 1 && logit_scale == 1 && logit_softcap == 0;
}

LlamaConfig read_config(const programs::GgufFile &gguf) {
    const std::string architecture = gguf.text("general.architecture");
    const Family *const family = find_family(architecture);
    if (!family) {
        gguf.fail("is of architecture '" + programs::one_line(architecture) +
                  "': llama, qwen2, qwen3, granite, gemma, gemma2 and gemma3 are supported");
    }
    programs::check_model(gguf);
    return ConfigReader(gguf, *family).read();
}

}  // namespace inflight
