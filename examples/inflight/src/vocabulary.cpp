#include "vocabulary.hpp"

#include "utf8.hpp"
#ifdef INFLIGHT_LLAMA
#include "llama_vocabulary.hpp"
#endif

#include <stdexcept>
#include <utility>

namespace inflight {
namespace {

/** Byte b is token b + byte_offset. */
class ByteVocabulary : public Vocabulary {
public:
    std::vector<Token> tokenize(const std::string &text) const override {
        std::vector<Token> tokens;
        for (const char c : text) {
            tokens.push_back(static_cast<unsigned char>(c) + LlamaConfig::byte_offset);
        }
        return tokens;
    }
    std::string piece(Token token) const override {
        const Token byte = token - LlamaConfig::byte_offset;
        return byte < 0 ? "" : std::string(1, static_cast<char>(byte));
    }
    ChatPrompt chat(const std::vector<Message> &, bool) const override {
        throw std::runtime_error("a model whose vocabulary is bytes has no chat template: give 'prompt' or 'tokens'");
    }
};

class NoVocabulary : public Vocabulary {
public:
    explicit NoVocabulary(std::string reason) : reason_(std::move(reason)) {}
    bool has_text() const override { return false; }
    std::vector<Token> tokenize(const std::string &) const override { fail(); }
    std::string piece(Token) const override { fail(); }
    ChatPrompt chat(const std::vector<Message> &, bool) const override { fail(); }

private:
    std::string reason_;

    [[noreturn]] void fail() const { throw std::runtime_error(reason_ + ": give 'tokens'"); }
};

}  // namespace

std::string Vocabulary::text(const std::vector<Token> &tokens) const {
    std::string text;
    for (const Token token : tokens) {
        text += piece(token);
    }
    text.resize(whole_characters(text));
    return text;
}

std::unique_ptr<Vocabulary> make_vocabulary([[maybe_unused]] const std::string &model, LlamaConfig &config) {
    if (config.bytes) {
        return std::make_unique<ByteVocabulary>();
    }
#ifdef INFLIGHT_LLAMA
    try {
        return std::make_unique<LlamaVocabulary>(model, config);
    } catch (const std::runtime_error &error) {
        return std::make_unique<NoVocabulary>(error.what());
    }
#else
    return std::make_unique<NoVocabulary>("this build is without llama.cpp, so it has no text for this model");
#endif
}

}  // namespace inflight
