#include "hash.hpp"

#include "one_line.hpp"

#include <algorithm>
#include <fstream>
#include <new>
#include <stdexcept>
#include <vector>

// The header alone: nothing is linked.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace programs {

/** One hash for each half of the digest: the seed is its place. */
struct Hash::State {
    XXH3_state_t halves[2];
};

Hash::Hash() : state_(new State()) {
    for (unsigned seed = 0; seed < 2; seed++) {
        XXH3_128bits_reset_withSeed(&state_->halves[seed], seed);
    }
}

Hash::Hash(const Hash &other) : state_(new State(*other.state_)) {}

Hash::~Hash() = default;

Hash &Hash::add(const void *bytes, std::size_t n) {
    for (XXH3_state_t &half : state_->halves) {
        XXH3_128bits_update(&half, bytes, n);
    }
    return *this;
}

Digest Hash::digest() const {
    Digest digest{};
    auto to = digest.begin();
    for (const XXH3_state_t &half : state_->halves) {
        XXH128_canonical_t bytes;
        XXH128_canonicalFromHash(&bytes, XXH3_128bits_digest(&half));
        to = std::copy(std::begin(bytes.digest), std::end(bytes.digest), to);
    }
    return digest;
}

Digest hash_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> buffer(std::size_t{1} << 20);
    Hash hash;
    while (file) {
        file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
        hash.add(buffer.data(), static_cast<std::size_t>(file.gcount()));
    }
    if (!file.eof() || file.bad()) {
        throw std::runtime_error("file " + in_quotes(path) + " cannot be read");
    }
    return hash.digest();
}

std::string hex(const Digest &digest, std::size_t bytes) {
    static const char DIGITS[] = "0123456789abcdef";
    std::string text;
    for (std::size_t i = 0; i < std::min(bytes, digest.size()); i++) {
        text += DIGITS[digest[i] >> 4];
        text += DIGITS[digest[i] & 15];
    }
    return text;
}

}  // namespace programs
