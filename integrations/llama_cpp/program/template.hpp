// Chat templates, applied one round at a time.
#ifndef LLAMA_STREAM_TEMPLATE_HPP
#define LLAMA_STREAM_TEMPLATE_HPP

#include <string>
#include <utility>

/**
 * The text between two answers of a conversation. A template formats a whole conversation, at a cost that grows with
 * every round; the text between an answer and the next one depends on the last round only.
 */
class ChatTemplate {
public:
    /** `text`: the template; empty = none, each prompt is a line of text. */
    ChatTemplate(std::string text, std::string system) : template_(std::move(text)), system_(std::move(system)) {}
    /** The text that the model must process before it answers `prompt`. @throws UserError */
    std::string next(const std::string &prompt);
    /** Ends the round with the answer of the model. */
    void answered(const std::string &answer) { last_.answer = answer; }
    /** Whether there is no template. */
    bool raw() const { return template_.empty(); }

    /** What the text before the next answer depends on. */
    struct LastRound {
        std::string prompt, answer;
        /** There was none. */
        bool first = true;
    };
    const LastRound &last_round() const { return last_; }
    /** Goes on with a conversation whose last round this was. */
    void resume(LastRound last) { last_ = std::move(last); }

private:
    /** The template's text of the system message, the last round if `with_last`, and `prompt`. */
    std::string apply(bool with_last, const std::string &prompt) const;

    std::string template_;
    std::string system_;
    LastRound last_;
};

#endif
