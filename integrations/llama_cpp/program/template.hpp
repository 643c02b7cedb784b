// What a chat template puts around a prompt, without the rounds before.
#ifndef LLAMA_STREAM_TEMPLATE_HPP
#define LLAMA_STREAM_TEMPLATE_HPP

#include <string>

/**
 * The text between two answers. A template is made to print a whole conversation, which would cost more at every round; what
 * lies between an answer and the next one depends on the last round alone.
 */
class ChatTemplate {
public:
    /** `text`: the template, empty = prompts as they are, a line each. */
    ChatTemplate(std::string text, std::string system) : template_(std::move(text)), system_(std::move(system)) {}
    /** What the model has to read before it answers `prompt`. @throws UserError */
    std::string next(const std::string &prompt);
    /** Ends the round: what the model has answered. */
    void answered(const std::string &answer) { answer_ = answer; }
    bool raw() const { return template_.empty(); }

private:
    std::string apply(bool with_last, const std::string &prompt) const;

    std::string template_;
    std::string system_;
    std::string prompt_;
    std::string answer_;
    bool first_ = true;
};

#endif
