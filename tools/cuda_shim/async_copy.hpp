// cp.async of one thread: PTX ISA 9.0, 9.7.9.25.3, "non-bulk copy".
#pragma once

#include <cstdint>
#include <vector>

namespace skc_shim {

// A copy may happen at any time between its issue and the wait for its group. Here the destination is poisoned at the
// issue and written at the wait; the source is read at one of the two.
struct AsyncCopies {
    struct Copy {
        uint8_t* to;
        const uint8_t* from;  // NULL: `bytes` holds what is to be written
        uint32_t group;
        uint32_t n;  // bytes: 4, 8 or 16
        uint8_t bytes[16];
    };

    std::vector<Copy> copies;
    uint32_t group = 0;  // of the next copy

    // Zeros are written if the copy is not `valid`. `early`: the source is read now.
    void issue(uint8_t* to, const uint8_t* from, uint32_t n, bool valid, bool early);
    void commit() { ++group; }
    // Completes all groups but the `pending` latest ones.
    void wait(uint32_t pending);
    void clear();
};

}  // namespace skc_shim
