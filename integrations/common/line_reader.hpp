// Lines of a text that a user gives: a file, or standard input.
#ifndef SINKCACHE_PROGRAMS_LINE_READER_HPP
#define SINKCACHE_PROGRAMS_LINE_READER_HPP

#include <cstddef>
#include <istream>
#include <string>

namespace programs {

/** Reads lines with LF or CRLF at their ends, and skips a byte order mark before the first. */
class LineReader {
public:
    /** Longest line in bytes. Longer ones are cut: a device has no end. */
    static constexpr std::size_t MAX_BYTES = std::size_t(1) << 26;

    /** The stream must outlive the reader. */
    explicit LineReader(std::istream &in, std::size_t max_bytes = MAX_BYTES) : in_(in), max_bytes_(max_bytes) {}

    /** Reads the next line; false at the end. Throws std::runtime_error for what cannot be read or has no lines. */
    bool next();
    /** The line without its end. */
    const std::string &text() const { return text_; }
    /** Its number; the first is 1. */
    std::size_t number() const { return number_; }
    /** Whether it was longer than max_bytes. The rest of it is skipped. */
    bool cut() const { return cut_; }
    std::size_t max_bytes() const { return max_bytes_; }

private:
    std::istream &in_;
    std::size_t max_bytes_;
    std::string text_;
    std::size_t number_ = 0;
    bool cut_ = false;
};

}  // namespace programs

#endif
