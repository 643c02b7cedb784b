// The text in an image that check_image has accepted.
#pragma once

#include <cstddef>
#include <string>

namespace skc_shim {

std::string ptx_text(const void* image, size_t bytes);

}  // namespace skc_shim
