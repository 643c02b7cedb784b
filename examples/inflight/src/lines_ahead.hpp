// Lines of a stream that pauses, such as a pipe.
#pragma once

#include "text_line.hpp"

#include <fstream>
#include <memory>
#include <optional>

namespace inflight {

/**
 * Reads lines in a thread of its own, so that who takes them need not wait where there is none yet. At most 1,024
 * lines, or 64 MiB and one line, are read ahead.
 */
class LinesAhead {
public:
    explicit LinesAhead(std::ifstream file);
    /** The thread may be waiting for the stream: it is left to end by itself, or with the process. */
    ~LinesAhead();
    LinesAhead(const LinesAhead &) = delete;
    LinesAhead &operator=(const LinesAhead &) = delete;

    /**
     * The next line; none at the end, and unless `wait` where the stream has none yet. Throws std::runtime_error if the
     * stream cannot be read.
     */
    std::optional<TextLine> next(bool wait);
    /** Whether next() has found the end. */
    bool ended() const { return ended_; }

private:
    struct Shared;

    static void read(const std::shared_ptr<Shared> &shared);

    std::shared_ptr<Shared> shared_;
    bool ended_ = false;
};

}  // namespace inflight
