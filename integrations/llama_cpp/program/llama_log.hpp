// llama.cpp's log and its assertions.
#ifndef LLAMA_STREAM_LLAMA_LOG_HPP
#define LLAMA_STREAM_LLAMA_LOG_HPP

#include <string>

/** Makes llama.cpp log errors only, to stderr. */
void log_errors_only();

/**
 * Keeps llama.cpp's errors, so that an error of the program is one line, and makes a failed assertion of llama.cpp or
 * ggml such an error: it ends the process with the exit code of an error instead of SIGABRT.
 */
void keep_errors();
/** The first error that was kept: later ones say what failed because of it. Empty if there is none. */
std::string first_kept_error();
/** Prints what was kept. For a program that ends well in spite of it. */
void print_kept_errors();

#endif
