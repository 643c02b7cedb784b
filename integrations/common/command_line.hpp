// The command line and the errors of a program: one line on stderr, exit code 2.
#ifndef SINKCACHE_PROGRAMS_COMMAND_LINE_HPP
#define SINKCACHE_PROGRAMS_COMMAND_LINE_HPP

#include "one_line.hpp"

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

namespace programs {

/** Exit code of every error. */
constexpr int ERROR_CODE = 2;

/** Prints "error: " and the text in one line on stderr. Returns ERROR_CODE. */
int fail(const std::string &what);

/** Flushes standard output. Returns 0, or what fail() returns if some of it was lost: a full disk, a closed pipe. */
int finish_output();

/** Reads the command line. The program's exit code if it ends here: after --help, or with an invalid argument. */
std::optional<int> parse(CLI::App &app, int argc, char **argv);

}  // namespace programs

#endif
