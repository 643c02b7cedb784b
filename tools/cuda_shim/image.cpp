#include "image.hpp"

#include <elf.h>

#include <cstring>

namespace skc_shim {
namespace {

struct Trailer {
    char magic[8];
    uint64_t size;
    uint64_t hash;
    uint64_t arch;
};
constexpr char kMagic[8] = {'S', 'K', 'C', 'S', 'H', 'I', 'M', '1'};

}  // namespace

uint64_t hash_bytes(const void* bytes, size_t n, uint64_t seed) {
    auto* p = static_cast<const uint8_t*>(bytes);
    auto mix = [&seed](uint64_t word) {
        seed = (seed ^ word) * 0x100000001b3ULL;
        seed ^= seed >> 32;
    };
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        std::memcpy(&word, p, 8);
        mix(word);
    }
    for (; n > 0; --n, ++p) mix(*p);
    return seed;
}

std::string make_image(std::string object, uint32_t arch) {
    Trailer trailer{{}, object.size(), hash_bytes(object.data(), object.size(), arch), arch};
    std::memcpy(trailer.magic, kMagic, sizeof kMagic);
    return object.append(reinterpret_cast<const char*>(&trailer), sizeof trailer);
}

uint32_t check_image(const void* image, size_t* size) {
    Elf64_Ehdr header;
    std::memcpy(&header, image, sizeof header);
    // Linkers put the table of section headers last.
    uint64_t end = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_shoff > 1u << 30) return 0;
    Trailer trailer;
    std::memcpy(&trailer, static_cast<const char*>(image) + end, sizeof trailer);
    bool intact = std::memcmp(trailer.magic, kMagic, sizeof kMagic) == 0 && trailer.size == end &&
                  trailer.hash == hash_bytes(image, end, trailer.arch);
    *size = end;
    return intact ? static_cast<uint32_t>(trailer.arch) : 0;
}

}  // namespace skc_shim
