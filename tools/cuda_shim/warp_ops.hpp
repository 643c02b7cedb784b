// Execution of the instructions that a warp executes together: shuffles, ballots, matrix loads, matrix products.
#pragma once

#include "device_thread.hpp"

namespace skc_shim {

const char* name_of(SyncOp op);

// What a lane does when it arrives at `op`, before the others have. Returns NULL, or an error message.
//
// ldmatrix does not order memory: each lane reads its row on arrival, so that rows which other lanes have not written
// yet, for lack of a barrier, are read too early.
const char* arrive(SyncOp op, DeviceThread& thread);

// Executes `op` for the 32 lanes of a warp, which have all arrived.
void execute(SyncOp op, DeviceThread* const (&lanes)[32]);

}  // namespace skc_shim
