#include "settings.hpp"

#include "errors.hpp"
#include "one_line.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

namespace sinkcache {
namespace interpose {
namespace {

constexpr const char *PREFIX = "SINKCACHE_LLAMA_";
constexpr const char *NAMES[] = {"SINK",        "WINDOW",      "KV",  "LENGTH", "MAX_REWIND",
                                 "CHECKPOINTS", "GPU",         "UNSUPPORTED", "LOG", "LIB"};

/** A variable's value; NULL if it is not set or empty. */
const char *value_of(const std::string &name) {
    const char *value = std::getenv(name.c_str());
    return value && *value ? value : nullptr;
}

[[noreturn]] void refuse(const std::string &name, const char *value, const std::string &allowed) {
    llama_cpp::invalid_config(name + " is " + programs::in_quotes(value) + ": allowed are " + allowed);
}

std::optional<std::uint32_t> number(const char *short_name, std::uint32_t least, std::uint32_t most) {
    const std::string name = PREFIX + std::string(short_name);
    const char *value = value_of(name);
    if (!value) {
        return std::nullopt;
    }
    // Digits alone: strtoull also takes blanks and a sign.
    bool valid = true;
    for (const char *c = value; *c; ++c) {
        valid = valid && *c >= '0' && *c <= '9';
    }
    errno = 0;
    const unsigned long long n = std::strtoull(value, nullptr, 10);
    if (!valid || errno != 0 || n < least || n > most) {
        refuse(name, value, std::to_string(least) + " to " + std::to_string(most));
    }
    return static_cast<std::uint32_t>(n);
}

template <class T>
T choice(const char *short_name, T otherwise, const std::vector<std::pair<const char *, T>> &choices) {
    const std::string name = PREFIX + std::string(short_name);
    const char *value = value_of(name);
    if (!value) {
        return otherwise;
    }
    std::string allowed;
    for (const auto &[text, chosen] : choices) {
        if (std::string(value) == text) {
            return chosen;
        }
        allowed += (allowed.empty() ? "" : ", ") + std::string(text);
    }
    refuse(name, value, allowed);
}

/** A misspelt name would leave a default in force without a word. */
void check_names() {
    const std::string prefix = PREFIX;
    for (char **variable = environ; variable && *variable; ++variable) {
        const std::string text = *variable;
        const std::string name = text.substr(0, text.find('='));
        if (name.compare(0, prefix.size(), prefix) != 0) {
            continue;
        }
        const auto is = [&](const char *known) { return name == prefix + known; };
        // sinkcache_llama.py and scripts, which run in the same environment, have one each.
        if (is("LIBRARY") || is("DIR") || std::any_of(std::begin(NAMES), std::end(NAMES), is)) {
            continue;
        }
        std::string allowed;
        for (const char *known : NAMES) {
            allowed += (allowed.empty() ? "" : ", ") + std::string(known);
        }
        llama_cpp::invalid_config(name + " is not a setting: allowed are " + allowed + ", each behind " + prefix);
    }
}

}  // namespace

Settings read_settings() {
    check_names();
    Settings s;
    s.log = choice("LOG", s.log,
                   {{"quiet", LogLevel::QUIET},
                    {"errors", LogLevel::ERRORS},
                    {"info", LogLevel::INFO},
                    {"debug", LogLevel::DEBUG}});
    s.n_sink = number("SINK", 0, 1U << 20).value_or(s.n_sink);
    s.window = number("WINDOW", 1, 1U << 28);
    // Positions have 31 bits.
    s.length = number("LENGTH", 1, 1U << 30);
    s.max_rewind = number("MAX_REWIND", 0, 1U << 20).value_or(s.max_rewind);
    if (const char *value = value_of("SINKCACHE_LLAMA_KV")) {
        s.kv = programs::storage_types(value);
        if (!s.kv) {
            refuse("SINKCACHE_LLAMA_KV", value, programs::STORAGE_TYPES_ALLOWED);
        }
    }
    s.checkpoints = choice("CHECKPOINTS", s.checkpoints, {{"off", false}, {"on", true}});
    s.gpu = choice("GPU", s.gpu, {{"auto", true}, {"off", false}});
    s.unsupported = choice("UNSUPPORTED", s.unsupported, {{"fail", Unsupported::FAIL}, {"stock", Unsupported::STOCK}});
    return s;
}

}  // namespace interpose
}  // namespace sinkcache
