// PTX as the driver gets it: a header, then the text.
#include "image.hpp"

#include <cstring>

#include "ptx_image.hpp"

namespace skc_shim {
namespace {

struct Header {
    char magic[8];
    uint64_t bytes;
    uint64_t hash;
    uint64_t arch;
};
constexpr char kMagic[8] = {'S', 'K', 'C', 'P', 'T', 'X', '0', '1'};

}  // namespace

uint64_t hash_bytes(const void* bytes, size_t n, uint64_t seed) {
    auto* p = static_cast<const uint8_t*>(bytes);
    for (size_t i = 0; i < n; ++i) seed = (seed ^ p[i]) * 0x100000001b3ULL;
    return seed;
}

std::string make_image(std::string text, uint32_t arch) {
    Header header{{}, text.size(), hash_bytes(text.data(), text.size(), arch), arch};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    return std::string(reinterpret_cast<const char*>(&header), sizeof header) + text;
}

uint32_t check_image(const void* image, size_t* size) {
    Header header;
    std::memcpy(&header, image, sizeof header);
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.bytes > 1u << 28) return 0;
    const char* text = static_cast<const char*>(image) + sizeof header;
    *size = sizeof header + header.bytes;
    return header.hash == hash_bytes(text, header.bytes, header.arch) ? static_cast<uint32_t>(header.arch) : 0;
}

std::string ptx_text(const void* image, size_t bytes) {
    return {static_cast<const char*>(image) + sizeof(Header), bytes - sizeof(Header)};
}

}  // namespace skc_shim
