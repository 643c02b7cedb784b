#include "command_line.hpp"

#include <cstdio>
#include <iostream>

namespace programs {
namespace {

/** Longest line of an error: texts of libraries may hold whole values. */
constexpr std::size_t LINE_BYTES = 1000;

}  // namespace

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
