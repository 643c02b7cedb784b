// The runtime's functions that device code calls.
#pragma once

#include "device_thread.hpp"

namespace skc_shim {

extern const Runtime kRuntime;

// In a programmatic launch the preceding kernel may still be running: ends the launch with an error if this thread has
// not waited for it. `what` is what it was about to do.
void require_wait(DeviceThread* self, const char* what);

}  // namespace skc_shim
