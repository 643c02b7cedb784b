// What happens when all lanes of a warp have met: shuffles, ballots, matrix loads, matrix products.
#pragma once

#include "lane.hpp"

namespace skc_shim {

const char* name_of(Meet meet);

// What a lane does on its own as it comes to a meeting. Returns NULL, or why it cannot.
//
// ldmatrix orders no memory: each lane reads its row when it comes, so that what the others have not written yet, for want
// of a barrier, is missing from it.
const char* arrive(Meet meet, Lane& lane);

// Does the work of 32 lanes that have met at `meet`.
void hold(Meet meet, Lane* const (&lanes)[32]);

}  // namespace skc_shim
