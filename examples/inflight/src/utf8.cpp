#include "utf8.hpp"

#include <algorithm>

namespace inflight {
namespace {

/** Bytes of a character by its first one; 0 = none begins with it. */
std::size_t length_of(unsigned char first) {
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xc2 || first >= 0xf5) {
        return 0;
    }
    return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

bool continues(unsigned char byte) { return (byte & 0xc0) == 0x80; }

}  // namespace

std::size_t whole_characters(const std::string &bytes) {
    const std::size_t n = bytes.size();
    for (std::size_t back = 1; back <= std::min<std::size_t>(n, 3); back++) {
        const auto byte = static_cast<unsigned char>(bytes[n - back]);
        if (!continues(byte)) {
            return length_of(byte) > back ? n - back : n;
        }
    }
    return n;
}

}  // namespace inflight
