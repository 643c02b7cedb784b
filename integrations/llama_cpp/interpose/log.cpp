#include "log.hpp"

#include <atomic>
#include <cstdio>

namespace sinkcache {
namespace interpose {
namespace {

std::atomic<LogLevel> current{LogLevel::INFO};

}  // namespace

void set_log_level(LogLevel level) { current = level; }
LogLevel log_level() { return current; }

void log(LogLevel level, const std::string &text) {
    if (level <= current) {
        std::fprintf(stderr, "sinkcache: %s\n", text.c_str());
    }
}

}  // namespace interpose
}  // namespace sinkcache
