#include "one_line.hpp"

#include <cstdio>

namespace programs {
namespace {

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

}  // namespace

std::string one_line(const std::string &text, std::size_t most) {
    std::size_t end = text.size();
    if (end > most) {
        end = most;
        while (end > 0 && most - end < 4 && continues_character(text[end])) {
            end--;
        }
    }
    std::string line;
    const auto escape = [&line](unsigned char byte) {
        char escaped[8];
        std::snprintf(escaped, sizeof escaped, "\\x%02X", byte);
        line += escaped;
    };
    for (std::size_t i = 0; i < end; i++) {
        const auto byte = static_cast<unsigned char>(text[i]);
        const auto next = i + 1 < end ? static_cast<unsigned char>(text[i + 1]) : 0U;
        if (byte < 0x20 || byte == 0x7F) {
            escape(byte);
        } else if (byte == 0xC2 && next >= 0x80 && next <= 0x9F) {
            // U+0080 to U+009F are control characters, too.
            escape(byte);
            escape(static_cast<unsigned char>(next));
            i++;
        } else {
            line += text[i];
        }
    }
    return end < text.size() ? line + "..." : line;
}

std::string in_quotes(const std::string &text) { return "'" + one_line(text) + "'"; }

}  // namespace programs
