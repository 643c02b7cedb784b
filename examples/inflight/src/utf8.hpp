// Text that arrives in pieces which may end inside a character.
#pragma once

#include <cstddef>
#include <string>

namespace inflight {

/** How many of the bytes are left when a character that has begun at their end, and is not whole, is taken off. */
std::size_t whole_characters(const std::string &bytes);

/** Passes text on in whole characters. Bytes that no character begins with are passed on as they are. */
class Utf8Stream {
public:
    /** What is whole with these bytes, and has not been returned before. */
    std::string push(const std::string &bytes) {
        held_ += bytes;
        const std::size_t whole = whole_characters(held_);
        std::string text = held_.substr(0, whole);
        held_.erase(0, whole);
        return text;
    }

private:
    std::string held_;
};

}  // namespace inflight
