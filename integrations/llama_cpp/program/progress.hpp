// A progress line on the terminal.
#ifndef LLAMA_STREAM_PROGRESS_HPP
#define LLAMA_STREAM_PROGRESS_HPP

#include "measure.hpp"

#include <cstdint>
#include <optional>

/** Prints nothing unless stderr is a terminal; removes its line when destroyed. */
class Progress {
public:
    explicit Progress(std::uint64_t total);
    ~Progress();
    Progress(const Progress &) = delete;
    Progress &operator=(const Progress &) = delete;
    /** Shows the progress, at most ten times a second. */
    void update(std::uint64_t done, std::optional<double> perplexity);

private:
    std::uint64_t total_;
    bool terminal_;
    /** When the line was printed last. */
    double shown_ms_ = -1e9;
    Stopwatch watch_;
};

#endif
