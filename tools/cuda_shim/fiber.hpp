// Stacks for lanes, and the switch from one to another.
#pragma once

#include <cstddef>
#include <vector>

#include "lane.hpp"

namespace skc_shim {

// Saves the caller's registers on its stack and its stack pointer in `*from`, and goes on where `to` was saved.
extern "C" void skc_shim_switch(void** from, void* to);

// Lanes with stacks, kept for later launches.
class Fibers {
public:
    Fibers() = default;
    Fibers(const Fibers&) = delete;
    Fibers& operator=(const Fibers&) = delete;
    ~Fibers();

    // Lane `i`; made if need be. A new lane begins in `start`.
    Lane* at(size_t i, void (*start)());
    // Makes every lane begin anew: after a launch that was abandoned half way.
    void reset(void (*start)());

private:
    void grow(size_t n);
    static void prepare(Lane* lane, void (*start)());

    struct Region {
        void* address;
        size_t bytes;
    };
    std::vector<Region> regions_;
    std::vector<Lane*> lanes_;
    size_t prepared_ = 0;
};

// The stack that a grid is run from. AddressSanitizer is told when it is left and when it is back. It is not told of
// switches between lanes: that would take four times as long, and it would only use it to describe stack addresses.
struct HostStack {
    void* stack_pointer = nullptr;
    const void* bottom = nullptr;
    size_t bytes = 0;
    bool entering = false;
};

// From the host to a lane; returns when a lane has called `leave_to`.
void enter(HostStack& host, Lane* to);
// First thing in a lane that has been switched to.
void entered(HostStack& host);
// From a lane to the host.
void leave_to(HostStack& host, Lane* from);

}  // namespace skc_shim
