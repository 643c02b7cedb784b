// Chat templates, applied one round at a time.
#ifndef LLAMA_STREAM_TEMPLATE_HPP
#define LLAMA_STREAM_TEMPLATE_HPP

#include "jinja.hpp"

#include <memory>
#include <string>
#include <utility>
#include <vector>

/**
 * The text between two answers of a conversation. A template formats a whole conversation, at a cost that grows with
 * every round; the text between an answer and the next one depends on the last round only.
 */
class ChatTemplate {
public:
    /**
     * `text`: the template; empty = none, each prompt is a line of text. Without `jinja`, and where that fails, it is
     * one of llama.cpp's list of known templates: some refuse system messages, which the list merges into the prompt.
     *
     * @throws UserError for a template that cannot be used
     */
    ChatTemplate(std::string text, std::string system, std::shared_ptr<const JinjaTemplate> jinja = nullptr)
        : template_(std::move(text)), jinja_(std::move(jinja)) {
        state_.system = std::move(system);
        choose();
    }
    /** The text that the model must process before it answers `prompt`. @throws UserError */
    std::string next(const std::string &prompt);
    /**
     * The bytes of the text that next() has returned for the first prompt that belong to the system message: they come
     * before all of the prompt's. 0 without a system message.
     */
    std::size_t system_bytes(const std::string &text, const std::string &prompt) const;
    /** Ends the round with the answer of the model. */
    void answered(const std::string &answer) { state_.answer = answer; }
    /** Whether there is no template. */
    bool raw() const { return template_.empty(); }

    /** What the text before the next answer depends on. */
    struct State {
        std::string system;
        /** The last round. */
        std::string prompt, answer;
        /** There was none. */
        bool first = true;
    };
    const State &state() const { return state_; }
    /** Goes on with another conversation. */
    void resume(State state) { state_ = std::move(state); }

private:
    /** The template's text of the system message, the last round with `answer` if `with_last`, and `prompt`. */
    std::string apply(bool with_last, const std::string &prompt, bool with_system = true,
                      const std::string &answer = "") const;

    std::string format(const std::vector<ChatMessage> &messages) const;
    void choose();

    std::string template_;
    std::shared_ptr<const JinjaTemplate> jinja_;
    State state_;
};

#endif
