// The vocabulary of a GGUF as llama.cpp reads it, with its tokenizers and chat templates.
#pragma once

#include "vocabulary.hpp"

struct llama_model;
struct llama_vocab;

namespace inflight {

class LlamaVocabulary : public Vocabulary {
public:
    /** Loads the vocabulary only. Throws std::runtime_error if there is none that llama.cpp knows. */
    LlamaVocabulary(const std::string &model, LlamaConfig &config);

    std::vector<Token> tokenize(const std::string &text) const override;
    std::string piece(Token token) const override;
    ChatPrompt chat(const std::vector<Message> &messages, bool continues) const override;

private:
    struct Free {
        void operator()(llama_model *model) const;
    };
    std::unique_ptr<llama_model, Free> model_;
    const llama_vocab *vocab_;

    std::string apply_template(const std::vector<Message> &messages) const;
};

}  // namespace inflight
