#include "storage_types.hpp"

#include <sinkcache.h>

#include <map>

namespace programs {
namespace {

std::optional<std::uint32_t> storage_type(const std::string &name) {
    static const std::map<std::string, std::uint32_t> types = {{"f32", SKC_DTYPE_F32},
                                                               {"f16", SKC_DTYPE_F16},
                                                               {"bf16", SKC_DTYPE_BF16},
                                                               {"q8", SKC_DTYPE_Q8},
                                                               {"q4", SKC_DTYPE_Q4}};
    const auto found = types.find(name);
    return found == types.end() ? std::nullopt : std::optional<std::uint32_t>(found->second);
}

}  // namespace

const char STORAGE_TYPES_ALLOWED[] = "f32, f16, bf16, q8, q4, or two of them as K/V, such as q8/q4";

std::optional<StorageTypes> storage_types(const std::string &text) {
    const std::size_t slash = text.find('/');
    const auto k = storage_type(text.substr(0, slash));
    const auto v = slash == std::string::npos ? k : storage_type(text.substr(slash + 1));
    return k && v ? std::optional<StorageTypes>(StorageTypes{*k, *v}) : std::nullopt;
}

}  // namespace programs
