// Text to tokens and back.
#pragma once

#include "llama_config.hpp"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace inflight {

struct Message {
    std::string role, content;
};

/** A conversation's messages as a model wants them, up to where its answer begins. */
struct ChatPrompt {
    std::vector<Token> tokens;
    /** The token that ends the answer before them, if the template has one. */
    std::optional<Token> answer_end;
};

class Vocabulary {
public:
    virtual ~Vocabulary() = default;
    /** Whether there is text at all. Without it the other calls throw std::runtime_error, which says why. */
    virtual bool has_text() const { return true; }
    /** Without a first token of the model's. What looks like a special token is one. */
    virtual std::vector<Token> tokenize(const std::string &text) const = 0;
    /** The bytes of a token, which need not be whole characters; empty for special ones. */
    virtual std::string piece(Token token) const = 0;
    /** By the model's template. `continues`: they follow an answer that the sequence has. */
    virtual ChatPrompt chat(const std::vector<Message> &messages, bool continues) const = 0;

    /** The text of tokens, without a character at the end that is not whole. */
    std::string text(const std::vector<Token> &tokens) const;
};

/**
 * The vocabulary of a model: bytes, or, in a build with llama.cpp, what it makes of the file. Completes what `config`
 * says about the first token and those that end an answer.
 */
std::unique_ptr<Vocabulary> make_vocabulary(const std::string &model, LlamaConfig &config);

}  // namespace inflight
