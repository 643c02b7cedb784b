// A line on the terminal that says how far a run is. (Debian has no C++ library for it.)
#ifndef LLAMA_STREAM_PROGRESS_HPP
#define LLAMA_STREAM_PROGRESS_HPP

#include "measure.hpp"

#include <cstdint>
#include <optional>

/** Silent where stderr is no terminal; cleared at its end. */
class Progress {
public:
    explicit Progress(std::uint64_t total);
    ~Progress();
    Progress(const Progress &) = delete;
    Progress &operator=(const Progress &) = delete;
    void at(std::uint64_t done, std::optional<double> perplexity);

private:
    std::uint64_t total_;
    bool terminal_;
    double shown_ms_ = -1e9;
    Stopwatch watch_;
};

#endif
