#include "template.hpp"

#include "engine.hpp"

#include <llama.h>

#include <vector>

std::string ChatTemplate::apply(bool with_last, const std::string &prompt) const {
    std::vector<llama_chat_message> messages;
    if (!system_.empty()) {
        messages.push_back({"system", system_.c_str()});
    }
    if (with_last) {
        messages.push_back({"user", last_.prompt.c_str()});
        messages.push_back({"assistant", last_.answer.c_str()});
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
        text = (last_.first && !system_.empty() ? system_ + "\n" : last_.first ? "" : "\n") + prompt + "\n";
    } else if (last_.first) {
        text = apply(false, prompt);
    } else {
        // Format the last round and the prompt, and return what follows the last answer. Templates may trim messages,
        // so search for the answer without leading and trailing white space.
        const std::string both = apply(true, prompt);
        const std::string before = apply(false, last_.prompt);
        const std::string &answer = last_.answer;
        const auto from = answer.find_first_not_of(" \n\t\r");
        const std::string trimmed =
            from == std::string::npos ? "" : answer.substr(from, answer.find_last_not_of(" \n\t\r") - from + 1);
        const auto at =
            both.compare(0, before.size(), before) == 0 ? both.find(trimmed, before.size()) : std::string::npos;
        text = at == std::string::npos ? apply(false, prompt) : both.substr(at + trimmed.size());
    }
    last_.prompt = prompt;
    last_.answer.clear();
    last_.first = false;
    return text;
}
