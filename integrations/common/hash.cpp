#include "hash.hpp"

#include "command_line.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <vector>

namespace programs {
namespace {

/** Odd, so that a product with one loses nothing. */
constexpr std::uint64_t MULTIPLIERS[] = {0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0xABC98388FB8FAC03,
                                         0x8CB92BA72F3D8DD7};

std::uint64_t rotated(std::uint64_t x, unsigned by) { return x << by | x >> (64 - by); }

/** A bijection in which every bit of the input reaches every bit of the result. */
std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
}

std::uint64_t little_endian(const std::uint8_t *bytes) {
    std::uint64_t x = 0;
    for (unsigned i = 0; i < 8; i++) {
        x |= std::uint64_t{bytes[i]} << (8 * i);
    }
    return x;
}

}  // namespace

/** The lanes depend on no other until the end, so that their multiplications overlap. */
void Hash::block(const std::uint8_t *bytes) {
    for (std::size_t i = 0; i < LANES; i++) {
        lanes_[i] = rotated((lanes_[i] ^ little_endian(bytes + 8 * i)) * MULTIPLIERS[i], 29);
    }
}

Hash &Hash::add(const void *data, std::size_t n) {
    if (n == 0) {
        return *this;
    }
    const auto *bytes = static_cast<const std::uint8_t *>(data);
    std::size_t filled = length_ % BLOCK;
    length_ += n;
    if (filled > 0) {
        const std::size_t taken = std::min(n, BLOCK - filled);
        std::memcpy(rest_.data() + filled, bytes, taken);
        bytes += taken;
        n -= taken;
        filled += taken;
        if (filled < BLOCK) {
            return *this;
        }
        block(rest_.data());
    }
    for (; n >= BLOCK; bytes += BLOCK, n -= BLOCK) {
        block(bytes);
    }
    std::memcpy(rest_.data(), bytes, n);
    return *this;
}

Digest Hash::digest() const {
    Hash last = *this;
    std::fill(last.rest_.begin() + static_cast<std::ptrdiff_t>(length_ % BLOCK), last.rest_.end(), std::uint8_t{0});
    last.block(last.rest_.data());
    // The length tells zeros at the end from the padding.
    std::uint64_t all = mixed(length_);
    for (const std::uint64_t lane : last.lanes_) {
        all = mixed(all ^ lane);
    }
    Digest digest{};
    for (std::size_t i = 0; i < LANES; i++) {
        const std::uint64_t word = mixed(all + mixed(last.lanes_[i] + i));
        for (unsigned b = 0; b < 8; b++) {
            digest[8 * i + b] = static_cast<std::uint8_t>(word >> (8 * b));
        }
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
