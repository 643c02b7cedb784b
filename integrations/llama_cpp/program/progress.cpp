#include "progress.hpp"

#include <cstdio>
#include <string>

#ifdef __unix__
#include <unistd.h>
#endif

Progress::Progress(std::uint64_t total) : total_(total) {
#ifdef __unix__
    terminal_ = isatty(STDERR_FILENO) != 0;
#else
    terminal_ = false;
#endif
}

Progress::~Progress() {
    if (terminal_) {
        std::fprintf(stderr, "\r\033[K");
    }
}

void Progress::update(std::uint64_t done, std::optional<double> perplexity) {
    const double ms = watch_.ms();
    if (!terminal_ || ms - shown_ms_ < 100) {
        return;
    }
    shown_ms_ = ms;
    const double fraction = double(done) / double(total_);
    const auto filled = static_cast<std::size_t>(fraction * 30);
    const double left = fraction > 0 ? ms / fraction * (1 - fraction) / 1e3 : 0;
    std::fprintf(stderr, "\r[%s%s] %3.0f %%  %.0f tokens/s  perplexity %.3f  %.0f s left\033[K",
                 std::string(filled, '#').c_str(), std::string(30 - filled, ' ').c_str(), fraction * 100,
                 double(done) / ms * 1e3, perplexity.value_or(0), left);
}
