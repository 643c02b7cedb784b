#include "line_reader.hpp"

#include <stdexcept>
#include <streambuf>

namespace programs {
namespace {

/** After so many bytes beyond max_bytes the stream is taken for one without lines. */
constexpr std::size_t MAX_SKIPPED = std::size_t(1) << 30;

}  // namespace

bool LineReader::next() {
    text_.clear();
    cut_ = false;
    std::streambuf &buffer = *in_.rdbuf();
    bool any = false;
    std::size_t skipped = 0;
    try {
        for (int c; (c = buffer.sbumpc()) != std::char_traits<char>::eof();) {
            any = true;
            if (c == '\n') {
                break;
            }
            if (text_.size() < max_bytes_) {
                text_ += static_cast<char>(c);
            } else {
                cut_ = true;
                if (skipped++ == MAX_SKIPPED) {
                    throw std::runtime_error("line " + std::to_string(number_ + 1) + " does not end");
                }
            }
        }
    } catch (const std::ios_base::failure &error) {
        // A directory, for example: it can be opened, but not read.
        throw std::runtime_error(std::string("cannot be read: ") + error.what());
    }
    if (!any) {
        return false;
    }
    if (number_++ == 0 && text_.rfind("\xEF\xBB\xBF", 0) == 0) {
        text_.erase(0, 3);
    }
    if (!cut_ && !text_.empty() && text_.back() == '\r') {
        text_.pop_back();
    }
    return true;
}

}  // namespace programs
