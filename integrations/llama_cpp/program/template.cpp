#include "template.hpp"

#include "engine.hpp"

#include <llama.h>

#include <vector>

std::string ChatTemplate::apply(bool with_last, const std::string &prompt) const {
    std::vector<llama_chat_message> messages;
    if (!state_.system.empty()) {
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
        const std::string &answer = state_.answer;
        const auto from = answer.find_first_not_of(" \n\t\r");
        const std::string trimmed =
            from == std::string::npos ? "" : answer.substr(from, answer.find_last_not_of(" \n\t\r") - from + 1);
        const auto at =
            both.compare(0, before.size(), before) == 0 ? both.find(trimmed, before.size()) : std::string::npos;
        text = at == std::string::npos ? apply(false, prompt) : both.substr(at + trimmed.size());
    }
    state_.prompt = prompt;
    state_.answer.clear();
    state_.first = false;
    return text;
}
