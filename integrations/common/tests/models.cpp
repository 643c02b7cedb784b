// Damaged models are rejected, with a text that names the file and the problem.
#include "model_checks.hpp"

#include <gguf.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>

namespace {

using programs::GgufFile;

std::string bytes_of(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

/** A file that is removed with this object. */
struct TemporaryFile {
    const std::string path = testing::TempDir() + "skc-model-" + std::to_string(getpid()) + ".gguf";

    explicit TemporaryFile(const std::string &bytes) { std::ofstream(path, std::ios::binary) << bytes; }
    ~TemporaryFile() { std::filesystem::remove(path); }
};

/** The error of opening and checking a file, without the path; empty if there is none. */
std::string error_of(const std::string &bytes) {
    const TemporaryFile file(bytes);
    try {
        programs::check_model(GgufFile(file.path));
        return "";
    } catch (const std::runtime_error &error) {
        const std::string text = error.what(), begin = "model '" + file.path + "' ";
        EXPECT_EQ(text.rfind(begin, 0), 0U) << text;
        return text.substr(begin.size());
    }
}

void expect_error(const std::string &bytes, const std::string &part) {
    const std::string error = error_of(bytes);
    EXPECT_NE(error.find(part), std::string::npos) << "\"" << error << "\" lacks \"" << part << "\"";
}

using Change = std::function<void(gguf_context *)>;

/** The bundled model with other metadata. */
std::string changed(const Change &change) {
    const std::string whole = bytes_of(MODEL);
    const std::unique_ptr<gguf_context, void (*)(gguf_context *)> gguf(gguf_init_from_file(MODEL, {true, nullptr}),
                                                                       gguf_free);
    const std::string data = whole.substr(gguf_get_data_offset(gguf.get()));
    change(gguf.get());
    std::string header(gguf_get_meta_size(gguf.get()), '\0');
    gguf_get_meta_data(gguf.get(), header.data());
    return header + data;
}

Change count(const char *key, std::uint32_t n) {
    return [=](gguf_context *gguf) { gguf_set_val_u32(gguf, key, n); };
}

Change number(const char *key, float x) {
    return [=](gguf_context *gguf) { gguf_set_val_f32(gguf, key, x); };
}

Change text(const char *key, const char *value) {
    return [=](gguf_context *gguf) { gguf_set_val_str(gguf, key, value); };
}

Change counts(const char *key, std::vector<std::int32_t> n) {
    return [=](gguf_context *gguf) { gguf_set_arr_data(gguf, key, GGUF_TYPE_INT32, n.data(), n.size()); };
}

/** The bundled model with other bytes in the header, behind `name`. */
std::string patched(const std::string &name, std::size_t behind, const std::string &bytes) {
    std::string whole = bytes_of(MODEL);
    const std::size_t at = whole.find(name);
    EXPECT_NE(at, std::string::npos);
    return whole.replace(at + name.size() + behind, bytes.size(), bytes);
}

std::string le64(std::uint64_t n) { return std::string(reinterpret_cast<const char *>(&n), sizeof n); }
std::string le32(std::uint32_t n) { return std::string(reinterpret_cast<const char *>(&n), sizeof n); }

}  // namespace

TEST(Models, TheBundledOneIsSound) {
    EXPECT_EQ(error_of(bytes_of(MODEL)), "");
    // So is what only looks unusual.
    EXPECT_EQ(error_of(changed(counts("llama.attention.head_count", {4, 4, 4, 4, 4, 4}))), "");
    EXPECT_EQ(error_of(changed(number("llama.rope.scaling.factor", 0))), "");
    EXPECT_EQ(error_of(changed(text("llama.rope.scaling.type", "yarn"))), "");
    EXPECT_EQ(error_of(changed(number("other.attention.layer_norm_epsilon", -1))), "");
    EXPECT_EQ(error_of(changed(count("tokenizer.ggml.padding_token_id", 0xFFFFFFFF))), "");
}

TEST(Models, ThatAreCutShortAreRejected) {
    const std::string whole = bytes_of(MODEL);
    for (const std::size_t n : {0, 3, 4, 20, 100, 1000, 5000, 10'000}) {
        expect_error(whole.substr(0, n), "is not a valid GGUF file");
    }
    for (const std::size_t n : {whole.size() / 2, whole.size() - 1}) {
        expect_error(whole.substr(0, n), "is cut short: tensor '");
    }
    const std::string no_tensor_one_key = std::string("GGUF\3\0\0\0", 8) + le64(0) + le64(1);
    expect_error(no_tensor_one_key + le64(17) + "general.alignment" + le32(4) + le32(0),
                 "alignment 0 is not a power of 2");
    EXPECT_THROW(GgufFile("/nowhere/model.gguf"), std::runtime_error);
    EXPECT_THROW(GgufFile(testing::TempDir()), std::runtime_error);
    EXPECT_THROW(GgufFile("/dev/zero"), std::runtime_error);
}

TEST(Models, CountsOutOfRangeAreRejected) {
    for (const std::uint32_t n : {0U, 513U, 0x80000000U, 0xFFFFFFFFU}) {
        expect_error(changed(count("llama.block_count", n)),
                     "has " + std::to_string(n) + " for 'llama.block_count': 1 to 512 is allowed");
    }
    for (const char *key : {"llama.embedding_length", "llama.vocab_size", "llama.attention.key_length",
                            "llama.attention.value_length", "llama.context_length"}) {
        expect_error(changed(count(key, 0)), std::string("has 0 for '") + key + "': 1 to ");
        expect_error(changed(count(key, 0xFFFFFFFF)), std::string("has 4294967295 for '") + key);
    }
    for (const char *key : {"llama.attention.head_count", "llama.attention.head_count_kv",
                            "llama.feed_forward_length", "llama.rope.dimension_count"}) {
        expect_error(changed(count(key, 0xFFFFFFFF)), std::string("has 4294967295 for '") + key);
    }
    expect_error(changed(counts("llama.feed_forward_length", {704, -1})), "has 4294967295 for");
    expect_error(changed(count("llama.attention.head_count_kv", 3)), "it must divide 4, the number of query heads");
    expect_error(changed(count("llama.attention.head_count_kv", 0)), "it must divide 4");
    expect_error(changed(count("llama.nextn_predict_layers", 7)), "has 7 for 'llama.nextn_predict_layers': 0 to 6");
    expect_error(changed(text("llama.block_count", "six")), "has 'llama.block_count' of type str: u32 is allowed");
    expect_error(changed([](gguf_context *gguf) { gguf_remove_key(gguf, "llama.block_count"); }), "has no count");
    expect_error(changed([](gguf_context *gguf) { gguf_remove_key(gguf, "general.architecture"); }),
                 "has no text 'general.architecture'");
}

TEST(Models, ExpertsThatDoNotFitTogetherAreRejected) {
    expect_error(changed(count("llama.expert_count", 1025)), "0 to 1024 is allowed");
    expect_error(changed(count("llama.expert_used_count", 1)), "has 1 for 'llama.expert_used_count': 0 to 0");
    expect_error(changed(count("llama.expert_count", 8)), "has 8 experts and uses none");
    const auto experts = [](std::uint32_t groups, std::uint32_t used) {
        return changed([=](gguf_context *gguf) {
            gguf_set_val_u32(gguf, "llama.expert_count", 8);
            gguf_set_val_u32(gguf, "llama.expert_used_count", 2);
            gguf_set_val_u32(gguf, "llama.expert_group_count", groups);
            gguf_set_val_u32(gguf, "llama.expert_group_used_count", used);
        });
    };
    EXPECT_EQ(error_of(experts(4, 2)), "");
    expect_error(experts(3, 2), "it must divide 8, the number of experts");
    expect_error(experts(8, 2), "has 8 for 'llama.expert_group_count': 0 to 7");
    expect_error(experts(4, 4), "has 4 for 'llama.expert_group_used_count': 1 to 3");
}

TEST(Models, NumbersOutOfRangeAreRejected) {
    const float inf = std::numeric_limits<float>::infinity();
    for (const char *key : {"llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"}) {
        for (const float x : {-1e-5F, 0.0F, -inf, inf, std::nanf("")}) {
            expect_error(changed(number(key, x)), std::string(" for '") + key + "': it must be finite and above 0");
        }
    }
    for (const float x : {inf, std::nanf("")}) {
        expect_error(changed(number("llama.rope.scaling.factor", x)), "it must be finite");
    }
    expect_error(changed(text("llama.rope.scaling.type", "dynamic\n")), "scales RoPE by 'dynamic\\x0A'");
}

TEST(Models, TokensThatStandTwiceAreRejected) {
    // <0x40> becomes <0x42>.
    expect_error(patched("<0x4", 0, "2"), "has token '<0x42>' twice, as 67 and as 69");
}

TEST(Models, TensorsThatNoKernelTakesAreRejected) {
    // Name, number of dimensions, dimensions, type, offset.
    const std::string norm = "blk.0.attn_norm.weight", matrix = "blk.0.attn_q.weight";
    // Of the last tensor, so that the offsets of others stay right.
    std::string last;
    changed([&](gguf_context *gguf) { last = gguf_get_tensor_name(gguf, gguf_get_n_tensors(gguf) - 1); });
    expect_error(patched(last, 4, le64(0)), "has a dimension of 0 in tensor '" + last + "'");
    expect_error(patched(matrix, 4, le64(std::uint64_t(1) << 63)), "is not a valid GGUF file");
    expect_error(patched(matrix, 4 + 16, le32(1000)), "is not a valid GGUF file");
    const auto typed = [](const std::string &name, ggml_type type) {
        return changed([=](gguf_context *gguf) { gguf_set_tensor_type(gguf, name.c_str(), type); });
    };
    expect_error(typed(norm, GGML_TYPE_Q8_0), "of type q8_0: a vector must not be quantised");
    expect_error(typed(norm, GGML_TYPE_I32), "of type i32, which has no conversion to f32");
    expect_error(typed(matrix, GGML_TYPE_I8), "of type i8, which has no conversion to f32");
}
