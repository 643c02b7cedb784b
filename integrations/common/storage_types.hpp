// How programs name the types that K and V are stored in.
#ifndef SINKCACHE_PROGRAMS_STORAGE_TYPES_HPP
#define SINKCACHE_PROGRAMS_STORAGE_TYPES_HPP

#include <cstdint>
#include <optional>
#include <string>

namespace programs {

/** Each is one of SKC_DTYPE_. */
struct StorageTypes {
    std::uint32_t k, v;
};

/** What storage_types() reads, for help and errors. */
extern const char STORAGE_TYPES_ALLOWED[];

/** Of one name for both, or of two as `K/V`. Nothing for any other text. */
std::optional<StorageTypes> storage_types(const std::string &text);

}  // namespace programs

#endif
