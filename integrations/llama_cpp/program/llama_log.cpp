#include "llama_log.hpp"

#include "command_line.hpp"

#include <llama.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace {

/** Enough for any reason; a run may log without an end. */
constexpr std::size_t MAX_KEPT = 1U << 16;

/** Threads of ggml may log at the same time. */
std::mutex mutex;
std::string kept;

void keep(ggml_log_level level, const char *text, void *) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (level == GGML_LOG_LEVEL_ERROR && kept.size() < MAX_KEPT) {
        kept += text;
    }
}

/** ggml aborts after this callback. The message begins with the path of llama.cpp's source. */
void end_process(const char *message) {
    const std::string text = message;
    const auto slash = text.substr(0, text.find(' ')).rfind('/');
    programs::fail("llama.cpp cannot run this model: " + text.substr(slash == std::string::npos ? 0 : slash + 1));
    std::fflush(stdout);
    // No destructors: other threads may still compute.
    std::_Exit(programs::ERROR_CODE);
}

}  // namespace

void log_errors_only() {
    llama_log_set(
        [](ggml_log_level level, const char *text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                std::fputs(text, stderr);
            }
        },
        nullptr);
}

void keep_errors() {
    llama_log_set(keep, nullptr);
    ggml_set_abort_callback(end_process);
}

std::string first_kept_error() {
    const std::lock_guard<std::mutex> lock(mutex);
    return kept.substr(0, kept.find('\n'));
}

void print_kept_errors() {
    const std::lock_guard<std::mutex> lock(mutex);
    std::fputs(kept.c_str(), stderr);
}
