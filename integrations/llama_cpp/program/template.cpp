#include "template.hpp"

#include "engine.hpp"

#include <llama.h>

#include <vector>

namespace {

std::string trimmed(const std::string &text) {
    const auto from = text.find_first_not_of(" \n\t\r");
    return from == std::string::npos ? "" : text.substr(from, text.find_last_not_of(" \n\t\r") - from + 1);
}

}  // namespace

std::string ChatTemplate::apply(bool with_last, const std::string &prompt, bool with_system) const {
    std::vector<llama_chat_message> messages;
    if (with_system && !state_.system.empty()) {
        messages.push_back({"system", state_.system.c_str()});
    }
    if (with_last) {
        messages.push_back({"user", state_.prompt.c_str()});
        messages.push_back({"assistant", state_.answer.c_str()});
    }
    messages.push_back({"user", prompt.c_str()});
    std::string text(1024, '\0');
    for (;;) {
        const std::int32_t n = llama_chat_apply_template(template_.c_str(), messages.data(), messages.size(), true,
                                                         text.data(), static_cast<std::int32_t>(text.size()));
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

std::string ChatTemplate::next(const std::string &prompt) {
    std::string text;
    if (raw()) {
        const std::string before = !state_.first ? "\n" : state_.system.empty() ? "" : state_.system + "\n";
        text = before + prompt + "\n";
    } else if (state_.first) {
        text = apply(false, prompt);
    } else {
        // Format the last round and the prompt, and return what follows the last answer. Templates may trim messages,
        // so search for the answer without leading and trailing white space.
        const std::string both = apply(true, prompt);
        const std::string before = apply(false, state_.prompt);
        const std::string answer = trimmed(state_.answer);
        const auto at =
            both.compare(0, before.size(), before) == 0 ? both.find(answer, before.size()) : std::string::npos;
        text = at == std::string::npos ? apply(false, prompt) : both.substr(at + answer.size());
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
