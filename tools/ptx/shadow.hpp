// Shadow memory of allocations, for the race detector.
#pragma once

#include <vector>

#include "warp.hpp"

namespace ptx {

// Gives each range its cells, if races are looked for.
void attach_shadows(std::vector<Range>& ranges);

}  // namespace ptx
