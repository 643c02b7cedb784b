// A hash that tells files and models apart.
#ifndef SINKCACHE_PROGRAMS_HASH_HPP
#define SINKCACHE_PROGRAMS_HASH_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace programs {

using Digest = std::array<std::uint8_t, 32>;

/**
 * XXH3 with 128 bits of two seeds: at the speed of memory, and the same on every machine. It finds damage and
 * accidental mix-ups; it is no defence against someone who searches for two inputs of one hash.
 */
class Hash {
public:
    Hash();
    Hash(const Hash &other);
    Hash &operator=(const Hash &) = delete;
    ~Hash();
    Hash &add(const void *bytes, std::size_t n);
    Hash &add(const std::string &text) { return add(text.data(), text.size()); }
    /** The hash of all that was added, however it was divided. More may be added after it. */
    Digest digest() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

/** The hash of a file's content. Throws std::runtime_error if it cannot be read. */
Digest hash_file(const std::string &path);

/** Lower-case hexadecimal digits of the first `bytes` bytes. */
std::string hex(const Digest &digest, std::size_t bytes = std::tuple_size<Digest>::value);

}  // namespace programs

#endif
