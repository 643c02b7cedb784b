// A line of a file of requests.
#pragma once

#include <cstddef>
#include <string>

namespace inflight {

/** A line as programs::LineReader reads it. */
struct TextLine {
    std::string text;
    /** The first is 1. */
    std::size_t number = 0;
    /** Whether it was longer than LineReader::MAX_BYTES. */
    bool cut = false;
};

}  // namespace inflight
