// Runs the blocks of a launch on the calling thread.
#pragma once

#include <cstdint>
#include <string>

namespace skc_shim {

struct Launch {
    void (*kernel)(const void* params);
    const void* params;
    uint32_t grid[3];
    uint32_t threads;  // of a block: a multiple of 32
    uint32_t shared_bytes;
    uint64_t seed;              // of the random order of threads
    bool programmatic = false;  // every thread must wait for the preceding kernel before anything else
    uint32_t cluster[3] = {1, 1, 1};  // blocks of a cluster, by dimension: they divide the grid
};

// Runs a grid to its end. Returns the empty string, or an error message (a divergent barrier, a misaligned copy...).
// After an error the blocks are abandoned where they were.
std::string run_grid(const Launch& launch);

}  // namespace skc_shim
