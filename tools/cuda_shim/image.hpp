// What the stand-in NVRTC returns as a cubin: a shared object, followed by a trailer with its length, its architecture
// and a hash, so that a damaged image is rejected and not run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace skc_shim {

std::string make_image(std::string shared_object, uint32_t arch);

// Compute capability times ten of an image, or 0 if it is damaged. `size` gets the length of the shared object. As for
// a real cubin, the caller does not know the length of the image: it follows from the ELF header.
uint32_t check_image(const void* image, size_t* size);

// Like FNV-1a, but a word at a time. Detects accidental damage only.
uint64_t hash_bytes(const void* bytes, size_t n, uint64_t seed);

}  // namespace skc_shim
