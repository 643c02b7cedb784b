// What the fake NVRTC hands out as a cubin: a shared object, followed by a seal that says how long it is, for which
// architecture, and what its bytes add up to. A damaged image must be refused, not run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace skc_shim {

std::string seal_image(std::string shared_object, uint32_t arch);

// Compute capability times ten of an image, or 0 if it is none. `size` gets the length of the shared object. The length of
// the image is not known: as for a real cubin, its header says where it ends.
uint32_t check_image(const void* image, size_t* size);

// In the manner of FNV-1a, a word at a time. Against accidents only.
uint64_t hash_bytes(const void* bytes, size_t n, uint64_t seed);

}  // namespace skc_shim
