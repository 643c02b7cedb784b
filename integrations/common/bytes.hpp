// Numbers and texts as bytes of a file, little-endian.
#ifndef SINKCACHE_PROGRAMS_BYTES_HPP
#define SINKCACHE_PROGRAMS_BYTES_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace programs {

using Bytes = std::vector<std::uint8_t>;

class ByteWriter {
public:
    ByteWriter &u32(std::uint32_t x) { return number(x, 4); }
    ByteWriter &u64(std::uint64_t x) { return number(x, 8); }
    ByteWriter &raw(const void *bytes, std::size_t n) {
        const auto *from = static_cast<const std::uint8_t *>(bytes);
        bytes_.insert(bytes_.end(), from, from + n);
        return *this;
    }
    /** Its length, then its bytes. */
    ByteWriter &text(const std::string &s) { return u32(static_cast<std::uint32_t>(s.size())).raw(s.data(), s.size()); }
    /** The number of elements, then each as four bytes. */
    ByteWriter &list(const std::vector<std::int32_t> &elements) {
        u32(static_cast<std::uint32_t>(elements.size()));
        for (const std::int32_t x : elements) {
            u32(static_cast<std::uint32_t>(x));
        }
        return *this;
    }
    const Bytes &bytes() const { return bytes_; }
    Bytes take() { return std::move(bytes_); }

private:
    Bytes bytes_;

    ByteWriter &number(std::uint64_t x, unsigned n) {
        for (unsigned i = 0; i < n; i++) {
            bytes_.push_back(static_cast<std::uint8_t>(x >> (8 * i)));
        }
        return *this;
    }
};

/** Reads what a ByteWriter wrote. Past the end everything is zero or empty, and `complete` becomes false. */
class ByteReader {
public:
    /** The bytes must outlive the reader. */
    ByteReader(const std::uint8_t *bytes, std::size_t n) : at_(bytes), left_(n) {}
    explicit ByteReader(const Bytes &bytes) : ByteReader(bytes.data(), bytes.size()) {}

    std::uint32_t u32() { return static_cast<std::uint32_t>(number(4)); }
    std::uint64_t u64() { return number(8); }
    /** The next n bytes where they lie; NULL past the end. */
    const std::uint8_t *raw(std::size_t n) {
        complete_ = complete_ && n <= left_;
        if (!complete_) {
            return nullptr;
        }
        const std::uint8_t *bytes = at_;
        at_ += n;
        left_ -= n;
        return bytes;
    }
    std::string text() {
        const std::uint32_t n = u32();
        const std::uint8_t *bytes = raw(n);
        return bytes ? std::string(bytes, bytes + n) : std::string();
    }
    std::vector<std::int32_t> list() {
        const std::size_t n = u32();
        std::vector<std::int32_t> elements;
        // A damaged count must not allocate more than there is.
        complete_ = complete_ && n <= left_ / 4;
        for (std::size_t i = 0; complete_ && i < n; i++) {
            elements.push_back(static_cast<std::int32_t>(u32()));
        }
        return elements;
    }
    std::size_t left() const { return left_; }
    /** Nothing was read past the end. */
    bool complete() const { return complete_; }

private:
    const std::uint8_t *at_;
    std::size_t left_;
    bool complete_ = true;

    std::uint64_t number(unsigned n) {
        const std::uint8_t *bytes = raw(n);
        std::uint64_t x = 0;
        for (unsigned i = 0; bytes && i < n; i++) {
            x |= std::uint64_t{bytes[i]} << (8 * i);
        }
        return x;
    }
};

}  // namespace programs

#endif
