#include "llama_vocabulary.hpp"

#include "command_line.hpp"
#include "deep_stack.hpp"

#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>

namespace inflight {
namespace {

/**
 * Many vocabularies of byte pairs divide texts by std::regex, which recurses for each character of a word: it takes 324
 * bytes of stack in GCC's library. Shorter texts need no stack of their own.
 */
constexpr std::size_t STACK_PER_BYTE = 512, STACK = 1 << 20, SHORT_TEXT = 4096;

/** A failed assertion of llama.cpp: the program ends with an error and not by a signal. */
void end_process(const char *message) {
    programs::fail("llama.cpp cannot read the model's vocabulary: " + programs::one_line(message));
    std::fflush(stdout);
    std::_Exit(programs::ERROR_CODE);
}

/** Keeps what llama.cpp logs as an error, and gives the log back to who had it. */
class LlamaErrors {
public:
    LlamaErrors() : abort_(ggml_set_abort_callback(end_process)) {
        llama_log_get(&callback_, &user_data_);
        llama_log_set(keep, this);
    }
    ~LlamaErrors() {
        llama_log_set(callback_, user_data_);
        ggml_set_abort_callback(abort_);
    }
    LlamaErrors(const LlamaErrors &) = delete;
    LlamaErrors &operator=(const LlamaErrors &) = delete;

    std::string first() const { return text_.substr(0, text_.find('\n')); }

private:
    static void keep(ggml_log_level level, const char *text, void *self) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            static_cast<LlamaErrors *>(self)->text_ += text;
        }
    }

    ggml_abort_callback_t abort_;
    ggml_log_callback callback_ = nullptr;
    void *user_data_ = nullptr;
    std::string text_;
};

}  // namespace

void LlamaVocabulary::Free::operator()(llama_model *model) const { llama_model_free(model); }

LlamaVocabulary::LlamaVocabulary(const std::string &model, LlamaConfig &config) {
    const LlamaErrors errors;
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    params.n_gpu_layers = 0;
    model_.reset(llama_model_load_from_file(model.c_str(), params));
    if (!model_) {
        throw std::runtime_error("llama.cpp cannot read the model's vocabulary (" +
                                 programs::one_line(errors.first()) + ")");
    }
    vocab_ = llama_model_get_vocab(model_.get());
    if (llama_vocab_type(vocab_) == LLAMA_VOCAB_TYPE_NONE) {
        throw std::runtime_error("the model has no vocabulary");
    }
    config.add_bos = llama_vocab_get_add_bos(vocab_);
    for (Token token = 0; token < llama_vocab_n_tokens(vocab_); token++) {
        if (llama_vocab_is_eog(vocab_, token)) {
            config.end_tokens.insert(token);
        }
    }
}

std::vector<Token> LlamaVocabulary::tokenize(const std::string &text) const {
    if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
        throw std::runtime_error("the text has " + std::to_string(text.size()) + " bytes: 2^31 - 1 are allowed");
    }
    const auto bytes = static_cast<std::int32_t>(text.size());
    // A guess: the call says how many there are if it is too low.
    std::vector<Token> tokens(text.size() / 2 + 16);
    for (;;) {
        std::int32_t n = 0;
        const auto call = [&] {
            n = llama_tokenize(vocab_, text.data(), bytes, tokens.data(), static_cast<std::int32_t>(tokens.size()),
                               false, true);
        };
        if (text.size() <= SHORT_TEXT) {
            call();
        } else {
            call_with_stack(STACK + STACK_PER_BYTE * text.size(), call);
        }
        if (n == std::numeric_limits<std::int32_t>::min()) {
            throw std::runtime_error("the text has too many tokens");
        }
        tokens.resize(static_cast<std::size_t>(std::abs(n)));
        if (n >= 0) {
            return tokens;
        }
    }
}

std::string LlamaVocabulary::piece(Token token) const {
    std::string text(64, '\0');
    std::int32_t n = llama_token_to_piece(vocab_, token, text.data(), static_cast<std::int32_t>(text.size()), 0, false);
    if (n < 0) {
        text.resize(static_cast<std::size_t>(-n));
        n = llama_token_to_piece(vocab_, token, text.data(), static_cast<std::int32_t>(text.size()), 0, false);
    }
    text.resize(static_cast<std::size_t>(std::max(n, 0)));
    return text;
}

std::string LlamaVocabulary::apply_template(const std::vector<Message> &messages) const {
    const char *const chat_template = llama_model_chat_template(model_.get(), nullptr);
    if (!chat_template) {
        throw std::runtime_error("the model has no chat template: give 'prompt' or 'tokens'");
    }
    std::vector<llama_chat_message> chat;
    for (const Message &message : messages) {
        chat.push_back({message.role.c_str(), message.content.c_str()});
    }
    std::string text(1024, '\0');
    for (;;) {
        const std::int32_t n = llama_chat_apply_template(chat_template, chat.data(), chat.size(), true, text.data(),
                                                         static_cast<std::int32_t>(text.size()));
        if (n < 0) {
            throw std::runtime_error("llama.cpp does not know the model's chat template: give 'prompt' or 'tokens'");
        }
        const bool fits = static_cast<std::size_t>(n) <= text.size();
        text.resize(static_cast<std::size_t>(n));
        if (fits) {
            return text;
        }
    }
}

ChatPrompt LlamaVocabulary::chat(const std::vector<Message> &messages, bool continues) const {
    ChatPrompt prompt;
    if (!continues) {
        prompt.tokens = tokenize(apply_template(messages));
        return prompt;
    }
    // A template formats whole conversations: what follows an answer is what it writes behind one that is known.
    static const std::string ANSWER = "inflight-serve-answer";
    std::vector<Message> all{{"user", "x"}, {"assistant", ANSWER}};
    all.insert(all.end(), messages.begin(), messages.end());
    const std::string text = apply_template(all);
    const std::size_t at = text.find(ANSWER);
    if (at == std::string::npos) {
        throw std::runtime_error("the model's chat template leaves out earlier answers: give 'prompt' or 'tokens'");
    }
    prompt.tokens = tokenize(text.substr(at + ANSWER.size()));
    if (!prompt.tokens.empty() && llama_vocab_is_eog(vocab_, prompt.tokens[0])) {
        prompt.answer_end = prompt.tokens[0];
        prompt.tokens.erase(prompt.tokens.begin());
    }
    return prompt;
}

}  // namespace inflight
