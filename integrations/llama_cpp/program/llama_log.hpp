// llama.cpp's log.
#ifndef LLAMA_STREAM_LLAMA_LOG_HPP
#define LLAMA_STREAM_LLAMA_LOG_HPP

#include <llama.h>

#include <cstdio>

/** Makes llama.cpp log errors only, to stderr. */
inline void log_errors_only() {
    llama_log_set(
        [](ggml_log_level level, const char *text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                std::fputs(text, stderr);
            }
        },
        nullptr);
}

#endif
