#include "template.hpp"

#include "engine.hpp"

#include <llama.h>

#include <vector>

namespace {

std::string trimmed(const std::string &text) {
    const auto from = text.find_first_not_of(" \n\t\r");
    return from == std::string::npos ? "" : text.substr(from, text.find_last_not_of(" \n\t\r") - from + 1);
}

/**
 * Stands for an answer. Templates trim answers, and drop the thoughts in them: what follows an answer is found behind a
 * text that they leave alone.
 */
const std::string ANSWER = "sinkcache-answer-5d1f0c9b";

/** By llama.cpp's list of known templates. */
std::string format_known(const std::string &known, const std::vector<ChatMessage> &messages) {
    std::vector<llama_chat_message> list;
    for (const ChatMessage &message : messages) {
        list.push_back({message.role.c_str(), message.content.c_str()});
    }
    std::string text(1024, '\0');
    for (;;) {
        const std::int32_t n = llama_chat_apply_template(known.c_str(), list.data(), list.size(), true, text.data(),
                                                         static_cast<std::int32_t>(text.size()));
        if (n < 0) {
            throw UserError("llama.cpp does not know the model's chat template: --raw runs without one");
        }
        if (static_cast<std::size_t>(n) <= text.size()) {
            text.resize(static_cast<std::size_t>(n));
            return text;
        }
        text.resize(static_cast<std::size_t>(n));
    }
}

}  // namespace

std::string ChatTemplate::format(const std::vector<ChatMessage> &messages) const {
    return jinja_ ? jinja_->apply(messages) : format_known(template_, messages);
}

/** Tries the template on two rounds, so that what is wrong with it shows before the first. */
void ChatTemplate::choose() {
    if (raw()) {
        return;
    }
    const std::string prompt = "prompt";
    std::vector<ChatMessage> messages;
    if (!state_.system.empty()) {
        messages.push_back({"system", state_.system});
    }
    for (const char *role : {"user", "assistant", "user"}) {
        messages.push_back({role, prompt});
    }
    std::string text;
    try {
        text = format(messages);
    } catch (const UserError &) {
        const std::shared_ptr<const JinjaTemplate> failed = std::move(jinja_);
        jinja_ = nullptr;
        try {
            text = failed ? format_known(template_, messages) : "";
        } catch (const UserError &) {
        }
        if (text.empty()) {
            throw;
        }
    }
    if (text.find(prompt) == std::string::npos) {
        throw UserError("the model's chat template does not contain the prompt: --raw runs without one");
    }
}

std::string ChatTemplate::apply(bool with_last, const std::string &prompt, bool with_system,
                                const std::string &answer) const {
    std::vector<ChatMessage> messages;
    if (with_system && !state_.system.empty()) {
        messages.push_back({"system", state_.system});
    }
    if (with_last) {
        messages.push_back({"user", state_.prompt});
        messages.push_back({"assistant", answer});
    }
    messages.push_back({"user", prompt});
    return format(messages);
}

std::string ChatTemplate::next(const std::string &prompt) {
    std::string text;
    if (raw()) {
        const std::string before = !state_.first ? "\n" : state_.system.empty() ? "" : state_.system + "\n";
        text = before + prompt + "\n";
    } else if (state_.first) {
        text = apply(false, prompt);
    } else {
        std::string answer = ANSWER;
        while ((state_.system + "\n" + state_.prompt + "\n" + prompt).find(answer) != std::string::npos) {
            answer += "-0";
        }
        const std::string both = apply(true, prompt, true, answer);
        const auto at = both.find(answer);
        // A template that does not write answers. The system message has been read already.
        text = at == std::string::npos ? apply(false, prompt, false) : both.substr(at + answer.size());
    }
    state_.prompt = prompt;
    state_.answer.clear();
    state_.first = false;
    return text;
}

std::size_t ChatTemplate::system_bytes(const std::string &text, const std::string &prompt) const {
    if (state_.system.empty()) {
        return 0;
    }
    // Most templates put the system message, with its markers, in front of what they write without one.
    const std::string rest = raw() ? prompt + "\n" : apply(false, prompt, false);
    if (text.size() > rest.size() && text.compare(text.size() - rest.size(), rest.size(), rest) == 0) {
        return text.size() - rest.size();
    }
    const std::string system = trimmed(state_.system);
    const std::size_t at = text.find(system);
    return at == std::string::npos ? 0 : at + system.size();
}
