// Stacks for the threads of a grid, and the switch from one to another.
#pragma once

#include <cstddef>
#include <vector>

#include "device_thread.hpp"

namespace skc_shim {

// Saves the caller's registers on its stack and its stack pointer in `*from`, then continues on the stack at `to`.
extern "C" void skc_shim_switch(void** from, void* to);

// Device threads with stacks, kept for later launches.
class Fibers {
public:
    Fibers() = default;
    Fibers(const Fibers&) = delete;
    Fibers& operator=(const Fibers&) = delete;
    ~Fibers();

    // Thread `i`, created if it does not exist. A new thread begins in `start`.
    DeviceThread* at(size_t i, void (*start)());
    // Makes every thread begin in `start` again: for use after a launch that was abandoned.
    void reset(void (*start)());

private:
    void grow(size_t n);
    static void prepare(DeviceThread* thread, void (*start)());

    struct Region {
        void* address;
        size_t bytes;
    };
    std::vector<Region> regions_;
    std::vector<DeviceThread*> threads_;
    size_t prepared_ = 0;
};

// The stack of the caller of run_grid. AddressSanitizer is notified when execution leaves it and returns to it, but not
// of switches between device threads: notifications take four times as long, and only serve to describe stack
// addresses.
struct HostStack {
    void* stack_pointer = nullptr;
    const void* bottom = nullptr;
    size_t bytes = 0;
    bool entering = false;
};

// From the host to a device thread; returns when a thread calls `leave_to`.
void enter(HostStack& host, DeviceThread* to);
// To be called first in a thread that has been switched to.
void entered(HostStack& host);
// From a device thread to the host.
void leave_to(HostStack& host, DeviceThread* from);

}  // namespace skc_shim
