// A hash that tells files and models apart.
#ifndef SINKCACHE_PROGRAMS_HASH_HPP
#define SINKCACHE_PROGRAMS_HASH_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace programs {

using Digest = std::array<std::uint8_t, 32>;

/**
 * 256 bits over bytes, at the speed of memory. It finds damage and accidental mix-ups; it is no defence against someone
 * who searches for two inputs of one hash. Files hold its results, so it never changes.
 */
class Hash {
public:
    Hash &add(const void *bytes, std::size_t n);
    Hash &add(const std::string &text) { return add(text.data(), text.size()); }
    /** The hash of all that was added, however it was divided. More may be added after it. */
    Digest digest() const;

private:
    static constexpr std::size_t LANES = 4, BLOCK = LANES * sizeof(std::uint64_t);

    std::array<std::uint64_t, LANES> lanes_{0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0,
                                            0x082EFA98EC4E6C89};
    /** The bytes of an unfinished block. */
    std::array<std::uint8_t, BLOCK> rest_{};
    std::uint64_t length_ = 0;

    void block(const std::uint8_t *bytes);
};

/** The hash of a file's content. Throws std::runtime_error if it cannot be read. */
Digest hash_file(const std::string &path);

/** Lower-case hexadecimal digits of the first `bytes` bytes. */
std::string hex(const Digest &digest, std::size_t bytes = std::tuple_size<Digest>::value);

}  // namespace programs

#endif
