// What happens when all lanes of a warp have met: shuffles, ballots, matrix loads, matrix products.
#pragma once

#include "lane.hpp"

namespace skc_shim {

const char* name_of(Meet meet);

// Does the work of 32 lanes that have met at `meet`. Returns NULL, or why it cannot.
const char* hold(Meet meet, Lane* const (&lanes)[32]);

}  // namespace skc_shim
