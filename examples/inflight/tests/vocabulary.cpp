// Text through llama.cpp's tokenizers and templates: prompts, messages, answers.
#include "vocabulary.hpp"

#include "cpu_model.hpp"
#include "executor.hpp"
#include "learned_vocabulary.hpp"
#include "report.hpp"
#include "requests_file.hpp"
#include "support/random_model.hpp"
#include "utf8.hpp"

#include <ggml-cpp.h>
#include <gtest/gtest.h>
#include <llama-cpp.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

using namespace inflight;
using test::VocabularyKind;

constexpr std::size_t TEXTS = 1000;

/** A vocabulary, alone and as that of a random model; the files are removed at the end. */
class VocabularyFile {
public:
    explicit VocabularyFile(VocabularyKind kind) {
        test::write_vocabulary(alone_, kind);
        const gguf_context_ptr gguf(gguf_init_from_file(alone_.c_str(), {true, nullptr}));
        Shape shape;
        shape.n_vocab = static_cast<std::int64_t>(
            gguf_get_arr_n(gguf.get(), gguf_find_key(gguf.get(), "tokenizer.ggml.tokens")));
        RandomModel random = decoder("llama", shape);
        random.tokenizer_of = alone_;
        random.write(model_);
    }
    ~VocabularyFile() {
        std::filesystem::remove(alone_);
        std::filesystem::remove(model_);
    }
    VocabularyFile(const VocabularyFile &) = delete;
    VocabularyFile &operator=(const VocabularyFile &) = delete;

    const std::string &alone() const { return alone_; }
    const std::string &model() const { return model_; }

private:
    std::string base_ = testing::TempDir() + "inflight-vocabulary-" + std::to_string(getpid());
    std::string alone_ = base_ + ".gguf", model_ = base_ + "-model.gguf";
};

/** What llama.cpp itself says, by a model of its own. */
class Reference {
public:
    explicit Reference(const std::string &path) {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_model_params params = llama_model_default_params();
        params.vocab_only = true;
        model_.reset(llama_model_load_from_file(path.c_str(), params));
    }
    std::vector<Token> tokenize(const std::string &text, bool begins) const {
        std::vector<Token> tokens(2 * text.size() + 16);
        const std::int32_t n =
            llama_tokenize(llama_model_get_vocab(model_.get()), text.data(), static_cast<std::int32_t>(text.size()),
                           tokens.data(), static_cast<std::int32_t>(tokens.size()), begins, true);
        tokens.resize(static_cast<std::size_t>(n));
        return tokens;
    }

private:
    llama_model_ptr model_;
};

/** Prose, letters of several scripts, emoji, white space and special tokens, mixed. */
std::vector<std::string> texts() {
    std::ifstream file(DATA "/stream.txt", std::ios::binary);
    const std::string prose(std::istreambuf_iterator<char>(file), {});
    const std::vector<std::string> others{"\u00e9", "\u00df", "\u0416\u0443\u043a", "\u4e2d\u6587", "\u0939\u093f",
                                          "\U0001F600", "\U0001F468\u200D\U0001F469", "\u200b", "\n\n", "\t", "  ",
                                          "123", "<|im_end|>", "<s>", "'ll", "!?"};
    std::mt19937 random(3);
    std::vector<std::string> all;
    for (std::size_t i = 0; i < TEXTS; i++) {
        std::string text;
        for (std::size_t parts = 1 + random() % 6; parts > 0; parts--) {
            text += random() % 2 == 0 ? prose.substr(random() % 500000, 1 + random() % 60)
                                      : others[random() % others.size()];
        }
        all.push_back(text);
    }
    return all;
}

Request read(const nlohmann::json &line, const LlamaConfig &config, const Vocabulary &vocabulary) {
    std::istringstream in(line.dump() + "\n");
    const auto read = RequestReader(in, config, vocabulary).next();
    if (!read || !read->request) {
        throw std::runtime_error(read ? read->error : "no line");
    }
    return *read->request;
}

std::string error_of(const nlohmann::json &line, const LlamaConfig &config, const Vocabulary &vocabulary) {
    try {
        read(line, config, vocabulary);
        return "none";
    } catch (const std::runtime_error &error) {
        return error.what();
    }
}

/** A model with such a vocabulary. */
struct Loaded {
    VocabularyFile file;
    LlamaConfig config;
    std::unique_ptr<Vocabulary> vocabulary;
    Reference reference;

    explicit Loaded(VocabularyKind kind)
        : file(kind), config(LlamaWeights::load(file.model()).config),
          vocabulary(make_vocabulary(file.model(), config)), reference(file.alone()) {}
};

void expect_ids_of_llama(VocabularyKind kind) {
    const Loaded loaded(kind);
    ASSERT_TRUE(loaded.vocabulary->has_text());
    std::size_t tokens = 0, bytes = 0;
    for (const std::string &text : texts()) {
        const Request r = read({{"id", "a"}, {"prompt", text}}, loaded.config, *loaded.vocabulary);
        ASSERT_EQ(r.prompt, loaded.reference.tokenize(text, true)) << text;
        const Request round =
            read({{"id", "a"}, {"prompt", text}, {"continue", "c"}}, loaded.config, *loaded.vocabulary);
        ASSERT_EQ(round.prompt, loaded.reference.tokenize(text, false)) << text;
        tokens += r.prompt.size();
        bytes += text.size();
    }
    // Tokens are merged, not single bytes.
    EXPECT_LT(2 * tokens, bytes * 3 / 2);
}

TEST(Text, TokensAreThoseOfLlamaCpp) {
    expect_ids_of_llama(VocabularyKind::byte_pairs);
    expect_ids_of_llama(VocabularyKind::sentence_piece);
}

TEST(Text, LongWordsNeedNoLongStack) {
    // With this division of texts into words, llama.cpp recurses for each character of one.
    const VocabularyFile file(VocabularyKind::byte_pairs);
    std::ifstream in(file.model(), std::ios::binary);
    std::string all(std::istreambuf_iterator<char>(in), {});
    all.replace(all.find("gpt-2"), 5, "bloom");
    std::ofstream(file.model(), std::ios::binary) << all;
    LlamaConfig config = LlamaWeights::load(file.model()).config;
    const auto vocabulary = make_vocabulary(file.model(), config);
    const std::string word(300000, 'x');
    EXPECT_EQ(vocabulary->text(vocabulary->tokenize(word)), word);
}

/** Whether all of it is whole characters. */
bool is_whole(const std::string &text) {
    try {
        return nlohmann::json(text).dump().size() > 0;
    } catch (const nlohmann::json::type_error &) {
        return false;
    }
}

TEST(Text, StreamsNeverCutACharacter) {
    for (const VocabularyKind kind : {VocabularyKind::byte_pairs, VocabularyKind::sentence_piece}) {
        const Loaded loaded(kind);
        std::size_t held_back = 0;
        for (std::string text : texts()) {
            // Special tokens have no text.
            for (const char *special : {"<|im_end|>", "<s>"}) {
                for (std::size_t at; (at = text.find(special)) != std::string::npos;) {
                    text.erase(at, std::string(special).size());
                }
            }
            Utf8Stream stream;
            std::string all, raw;
            for (const Token token : loaded.vocabulary->tokenize(text)) {
                const std::string piece = loaded.vocabulary->piece(token), part = stream.push(piece);
                ASSERT_TRUE(is_whole(part)) << text;
                held_back += !is_whole(piece);
                raw += piece;
                all += part;
            }
            ASSERT_EQ(all, raw);
            // SentencePiece puts a space in front.
            ASSERT_EQ(all.substr(all.size() - text.size()), text);
        }
        EXPECT_GT(held_back, TEXTS);
    }
}

TEST(Text, WhatIsNotWholeIsFound) {
    const std::string four = "\U0001F600";
    for (std::size_t n = 0; n < 4; n++) {
        EXPECT_EQ(whole_characters("a" + four.substr(0, n)), 1u) << n;
    }
    EXPECT_EQ(whole_characters("a" + four), 5u);
    EXPECT_EQ(whole_characters(""), 0u);
    EXPECT_EQ(whole_characters("\u00e9"), 2u);
    EXPECT_EQ(whole_characters("\xc3"), 0u);
    // No beginning of a character: nothing to wait for.
    EXPECT_EQ(whole_characters("\xff"), 1u);
    EXPECT_EQ(whole_characters("\x80\x80\x80\x80"), 4u);
    EXPECT_EQ(whole_characters("\xc3\xa9\x80"), 3u);
}

nlohmann::json message(const std::string &role, const std::string &content) {
    return {{"role", role}, {"content", content}};
}

TEST(Text, MessagesGetTheTemplate) {
    for (const VocabularyKind kind : {VocabularyKind::byte_pairs, VocabularyKind::sentence_piece}) {
        const Loaded loaded(kind);
        const auto read_line = [&](const nlohmann::json &line) {
            return read(line, loaded.config, *loaded.vocabulary);
        };
        const Request first =
            read_line({{"id", "a"}, {"messages", {message("system", "Be brief."), message("user", "Hello")}}});
        const std::string text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
                                 "<|im_start|>assistant\n";
        auto want = loaded.reference.tokenize(text, false);
        if (kind == VocabularyKind::sentence_piece) {
            want.insert(want.begin(), loaded.config.bos);
        }
        EXPECT_EQ(first.prompt, want);
        EXPECT_FALSE(first.answer_end);
        const Request next =
            read_line({{"id", "b"}, {"continue", "c"}, {"messages", nlohmann::json::array({message("user", "More")})}});
        EXPECT_EQ(next.prompt, loaded.reference.tokenize("\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n",
                                                         false));
        ASSERT_TRUE(next.answer_end);
        EXPECT_TRUE(loaded.config.ends(*next.answer_end));
        EXPECT_EQ(next.answer_end, loaded.reference.tokenize("<|im_end|>", false)[0]);
        // A marker may be given as text.
        const Request thoughts =
            read_line({{"id", "a"}, {"prompt", "x"}, {"drop_thoughts", {"<|im_start|>", "<|im_end|>"}}});
        EXPECT_EQ(thoughts.drop_thoughts->close, *next.answer_end);
    }
}

TEST(Text, AnAnswerThatWasCutIsEndedBeforeTheNextMessage) {
    const Loaded loaded(VocabularyKind::byte_pairs);
    Group group;
    PluginConfig plugin{};
    plugin.window = 60;
    plugin.max_seqs = 2;
    plugin.chunk = 16;
    LlamaWeights weights = LlamaWeights::load(loaded.file.model());
    weights.config = loaded.config;
    CpuModel model(weights, plugin, group, 1);
    ExecutorConfig config;
    config.max_seqs = 2;
    config.budget = 64;
    config.chunk = 16;
    Executor executor(model, config);
    const auto run = [&](const Request &r) {
        executor.submit(r);
        while (executor.step()) {
        }
        return executor.take_results().at(0);
    };
    const auto hello = nlohmann::json::array({message("user", "Hello")});
    const Request first = read({{"id", "a"}, {"conversation", "c"}, {"messages", hello}, {"max_tokens", 4}},
                               loaded.config, *loaded.vocabulary);
    const Result cut = run(first);
    ASSERT_EQ(cut.tokens.size(), 4u);
    ASSERT_FALSE(loaded.config.ends(cut.tokens.back()));
    const Request next = read({{"id", "b"}, {"continue", "c"}, {"messages", hello}, {"max_tokens", 4}}, loaded.config,
                              *loaded.vocabulary);
    const Result second = run(next);
    // The pending token, <|im_end|>, the prompt, and all but the last of the answer.
    EXPECT_EQ(second.stream_length, cut.stream_length + 2 + next.prompt.size() + second.tokens.size() - 1);
}

TEST(Text, WrongMessagesAreRejected) {
    const Loaded loaded(VocabularyKind::byte_pairs);
    const auto error = [&](const nlohmann::json &fields) {
        nlohmann::json line{{"id", "a"}};
        line.update(fields);
        return error_of(line, loaded.config, *loaded.vocabulary);
    };
    const auto expect_error = [&](const nlohmann::json &fields, const std::string &part) {
        const std::string got = error(fields);
        EXPECT_NE(got.find(part), std::string::npos) << "\"" << got << "\" lacks \"" << part << "\"";
    };
    expect_error({{"messages", "Hello"}}, "field 'messages' is \"Hello\" (text): it must be an array of messages");
    expect_error({{"messages", nlohmann::json::array()}}, "field 'messages' is an array of 0");
    expect_error({{"messages", {1}}}, "made of objects with the texts 'role' and 'content'");
    expect_error({{"messages", {{{"role", "user"}}}}}, "made of objects with the texts");
    expect_error({{"messages", nlohmann::json::array({message("robot", "x")})}}, "roles system, user and assistant");
    expect_error({{"messages", nlohmann::json::array({message("user", "x")})}, {"prompt", "x"}},
                 "'prompt' and 'messages' exclude each other");
    // Of bytes there is text, but no template; of a model without a vocabulary, tokens only.
    LlamaConfig bytes = LlamaWeights::load(DATA "/tiny-llama-bytes.gguf").config;
    const auto of_bytes = make_vocabulary(DATA "/tiny-llama-bytes.gguf", bytes);
    EXPECT_NE(error_of({{"id", "a"}, {"messages", nlohmann::json::array({message("user", "x")})}}, bytes, *of_bytes)
                  .find("has no chat template"),
              std::string::npos);
}

TEST(Text, AModelWithoutAVocabularyHasTokensOnly) {
    const std::string path = testing::TempDir() + "inflight-no-vocabulary-" + std::to_string(getpid()) + ".gguf";
    decoder("llama").write(path);
    LlamaConfig config = LlamaWeights::load(path).config;
    const auto vocabulary = make_vocabulary(path, config);
    EXPECT_FALSE(vocabulary->has_text());
    EXPECT_NE(error_of({{"id", "a"}, {"prompt", "x"}}, config, *vocabulary).find("the model has no vocabulary"),
              std::string::npos);
    EXPECT_EQ(read({{"id", "a"}, {"tokens", {5, 6}}}, config, *vocabulary).prompt, (std::vector<Token>{1, 5, 6}));
    std::filesystem::remove(path);
}

TEST(Text, ReportsHaveWholeCharacters) {
    const Loaded loaded(VocabularyKind::byte_pairs);
    std::ostringstream out;
    Report report(out, true, *loaded.vocabulary);
    // The last character lacks its end.
    Result result;
    result.id = "a";
    result.tokens = loaded.vocabulary->tokenize("Hi \U0001F600\U0001F601");
    result.tokens.pop_back();
    for (const Token token : result.tokens) {
        report.token("a", token);
    }
    report.request(result);
    std::istringstream lines(out.str());
    std::string streamed, whole;
    for (std::string line; std::getline(lines, line);) {
        const auto json = nlohmann::json::parse(line);
        streamed += json.value("delta", "");
        whole = json.value("text", "");
    }
    EXPECT_EQ(streamed, "Hi \U0001F600");
    EXPECT_EQ(whole, "Hi \U0001F600");
}

}  // namespace
