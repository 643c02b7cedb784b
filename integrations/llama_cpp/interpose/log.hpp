// Lines on stderr.
#ifndef SINKCACHE_INTERPOSE_LOG_HPP
#define SINKCACHE_INTERPOSE_LOG_HPP

#include <string>

namespace sinkcache {
namespace interpose {

/** What is printed: each level also prints those before it. */
enum class LogLevel {
    QUIET,
    /** What went wrong. */
    ERRORS,
    /** And what is served, and how. */
    INFO,
    /** And every edit. */
    DEBUG,
};

void set_log_level(LogLevel level);
LogLevel log_level();

/** Prints "sinkcache: " and the text if `level` is printed. Any thread. */
void log(LogLevel level, const std::string &text);

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_LOG_HPP
