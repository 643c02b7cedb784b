#include "command_line.hpp"

#include <cstdio>
#include <iostream>

namespace programs {
namespace {

/** Longest line of an error: texts of libraries may hold whole values. */
constexpr std::size_t LINE_BYTES = 1000;

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

int fail(const std::string &what) {
    std::fprintf(stderr, "error: %s\n", one_line(what, LINE_BYTES).c_str());
    return ERROR_CODE;
}

int finish_output() {
    std::cout.flush();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout) {
        return fail("the output could not be written");
    }
    return 0;
}

std::optional<int> parse(CLI::App &app, int argc, char **argv) {
    try {
        app.parse(argc, argv);
        return std::nullopt;
    } catch (const CLI::Success &help) {
        return app.exit(help);
    } catch (const CLI::ParseError &error) {
        return fail(error.what());
    }
}

}  // namespace programs
