#include "model_checks.hpp"

#include "command_line.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace programs {
namespace {

/** llama.cpp has arrays of this many layers and experts. */
constexpr std::uint64_t MAX_LAYERS = 512, MAX_EXPERTS = 1024;
/** Lengths beyond 2^31 - 1 do not fit llama.cpp's positions. */
constexpr std::uint64_t MAX_LENGTH = (std::uint64_t(1) << 31) - 1;
/** 0: a layer, or a model, without attention heads or without a feed-forward. */
constexpr CountRange MAY_BE_ZERO{0, 1U << 20};

bool ends_with(const std::string &text, const std::string &end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/** A key that may be absent. */
void check_optional(const GgufFile &file, const std::string &key, CountRange range = CountRange()) {
    if (file.has(key)) {
        file.count(key, {}, range);
    }
}

/** A count for all layers, or one for each. Returns the largest. */
std::uint64_t check_per_layer(const GgufFile &file, const std::string &key, CountRange range) {
    const auto counts = file.counts(key, range);
    return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
}

void check_shape(const GgufFile &file, const std::string &prefix) {
    const std::uint64_t layers = file.count(prefix + "block_count", {}, {1, MAX_LAYERS});
    file.count(prefix + "embedding_length");
    check_optional(file, prefix + "context_length", {1, MAX_LENGTH});
    check_optional(file, prefix + "vocab_size");
    check_optional(file, prefix + "attention.key_length");
    check_optional(file, prefix + "attention.value_length");
    check_optional(file, prefix + "rope.dimension_count", MAY_BE_ZERO);
    check_optional(file, prefix + "nextn_predict_layers", {0, layers});
    for (const char *key : {"feed_forward_length", "attention.head_count"}) {
        check_per_layer(file, prefix + key, MAY_BE_ZERO);
    }
    // Of models with heads every KV head serves some of them.
    const auto heads = file.counts(prefix + "attention.head_count", MAY_BE_ZERO);
    const auto kv_heads = file.counts(prefix + "attention.head_count_kv", MAY_BE_ZERO);
    if (heads.size() == 1 && kv_heads.size() == 1 && heads[0] > 0 && (kv_heads[0] == 0 || heads[0] % kv_heads[0])) {
        file.fail("has " + std::to_string(kv_heads[0]) + " for " + in_quotes(prefix + "attention.head_count_kv") +
                  ": it must divide " + std::to_string(heads[0]) + ", the number of query heads");
    }
}

void check_experts(const GgufFile &file, const std::string &prefix) {
    const std::uint64_t experts = file.count(prefix + "expert_count", 0, {0, MAX_EXPERTS});
    const std::string used = prefix + "expert_used_count", groups = prefix + "expert_group_count";
    const std::uint64_t most = check_per_layer(file, used, {0, experts});
    if (experts > 1 && most == 0) {
        file.fail("has " + std::to_string(experts) + " experts and uses none: " + in_quotes(used) +
                  " must be 1 or more");
    }
    const std::uint64_t n_groups = file.count(groups, 0, {0, experts > 0 ? experts - 1 : 0});
    if (n_groups > 1) {
        if (experts % n_groups != 0) {
            file.fail("has " + std::to_string(n_groups) + " for " + in_quotes(groups) + ": it must divide " +
                      std::to_string(experts) + ", the number of experts");
        }
        file.count(prefix + "expert_group_used_count", {}, {1, n_groups - 1});
    }
}

void check_numbers(const GgufFile &file, const std::string &prefix) {
    for (const GgufNumber &number : file.numbers()) {
        if (number.key.rfind(prefix, 0) != 0) {
            continue;
        }
        const bool above_zero = ends_with(number.key, "_epsilon") || ends_with(number.key, "rope.freq_base");
        if (above_zero) {
            file.number(number.key);
        } else if (!std::isfinite(number.value)) {
            file.fail("has " + std::to_string(number.value) + " for " + in_quotes(number.key) + ": it must be finite");
        }
    }
    const std::string scaling = file.text(prefix + "rope.scaling.type");
    const auto known = {"", "none", "linear", "yarn", "longrope"};
    if (std::find(known.begin(), known.end(), scaling) == known.end()) {
        file.fail("scales RoPE by " + in_quotes(scaling) + ": none, linear, yarn and longrope are allowed");
    }
}

/** llama.cpp finds tokens by their text. */
void check_tokens(const GgufFile &file) {
    const auto tokens = file.texts("tokenizer.ggml.tokens");
    std::unordered_map<std::string, std::size_t> ids;
    for (std::size_t id = 0; id < tokens.size(); id++) {
        // llama.cpp gives empty ones names of their own.
        const auto [at, is_new] = ids.emplace(tokens[id], id);
        if (!is_new && !tokens[id].empty()) {
            file.fail("has token " + in_quotes(tokens[id]) + " twice, as " + std::to_string(at->second) + " and as " +
                      std::to_string(id));
        }
    }
}

/** Norms and biases are not quantised; matrices are of any type that has a conversion to f32. */
void check_tensor_types(const GgufFile &file) {
    for (const GgufTensor &tensor : file.tensors()) {
        if (!ends_with(tensor.name, ".weight") && !ends_with(tensor.name, ".bias")) {
            continue;
        }
        const auto fail = [&](const char *why) {
            file.fail("has tensor " + in_quotes(tensor.name) + " of type " + ggml_type_name(tensor.type) + why);
        };
        const bool is_vector = tensor.dims[1] == 1 && tensor.dims[2] == 1 && tensor.dims[3] == 1;
        if (is_vector && ggml_is_quantized(tensor.type)) {
            fail(": a vector must not be quantised");
        }
        if (tensor.type != GGML_TYPE_F32 && !ggml_get_type_traits(tensor.type)->to_float) {
            fail(", which has no conversion to f32");
        }
    }
}

}  // namespace

void check_model(const GgufFile &file) {
    const std::string architecture = file.text("general.architecture");
    if (architecture.empty()) {
        file.fail("has no text 'general.architecture'");
    }
    const std::string prefix = architecture + ".";
    check_shape(file, prefix);
    check_experts(file, prefix);
    check_numbers(file, prefix);
    check_tokens(file);
    check_tensor_types(file);
}

}  // namespace programs
