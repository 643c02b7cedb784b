// Chat templates in Jinja, by llama.cpp's own interpreter where this build has it.
#ifndef LLAMA_STREAM_JINJA_HPP
#define LLAMA_STREAM_JINJA_HPP

#include <memory>
#include <string>
#include <vector>

struct ChatMessage {
    std::string role, content;
};

/** The texts of a vocabulary's tokens for the beginning and the end of a text. */
struct EdgeTokens {
    std::string bos, eos;
    /** Whether tokenization adds the first. */
    bool adds_bos = false;
};

class JinjaTemplate {
public:
    /** NULL if this build has no interpreter. */
    static std::shared_ptr<const JinjaTemplate> make(const std::string &text, const EdgeTokens &tokens);

    virtual ~JinjaTemplate() = default;
    /** The text of a conversation, up to where an answer begins. @throws UserError with the template's reason */
    virtual std::string apply(const std::vector<ChatMessage> &messages) const = 0;
};

#endif
