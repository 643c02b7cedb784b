// cp.async of one lane: PTX ISA 9.0, 9.7.9.25.3, "non-bulk copy".
#pragma once

#include <cstdint>
#include <vector>

namespace skc_shim {

// A copy happens at some time between its issue and the wait for its group. So its destination is garbage from the
// issue on, and its source is read early or late.
struct Copies {
    struct Copy {
        uint8_t* to;
        const uint8_t* from;  // NULL: `bytes` holds what is to be written
        uint32_t group;
        uint8_t bytes[16];
    };

    std::vector<Copy> copies;
    uint32_t group = 0;  // that the next copy belongs to

    void issue(uint8_t* to, const uint8_t* from, bool valid, bool early);
    void commit() { ++group; }
    // Completes all groups but the `pending` latest ones.
    void wait(uint32_t pending);
    void clear();
};

}  // namespace skc_shim
