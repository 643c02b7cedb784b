// What has run in this process, written at its end: SKC_PTX_OUT.
#pragma once

#include <memory>

#include "module.hpp"

namespace ptx {

// Includes a module.
void count(const std::shared_ptr<Module>& module);

}  // namespace ptx
