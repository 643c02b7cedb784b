// What the driver has to know of device code. There are two kinds: the stand-in's shared objects (host_code.cpp), and
// PTX (tools/ptx/ptx_code.cpp). A driver is linked with one of them; all the rest of it is the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace skc_shim {

struct LaunchShape {
    unsigned grid[3];
    unsigned block[3];
    unsigned shared_bytes;
    bool programmatic;  // every thread must wait for the preceding kernel before anything else
    unsigned cluster[3] = {1, 1, 1};  // blocks of a cluster, by dimension: they divide the grid
};

class Kernel {
public:
    virtual ~Kernel() = default;
    // Runs a grid to its end. Returns the empty string, or what went wrong. The seed is that of the random orders.
    virtual std::string run(const LaunchShape& shape, const void* params, uint64_t seed) = 0;

    uint32_t param_bytes = 0;
    uint32_t max_threads = 0;  // of a block
};

class Code {
public:
    virtual ~Code() = default;
    // NULL if there is no such kernel. It is used no longer than the code is.
    virtual std::shared_ptr<Kernel> find(const std::string& name) = 0;
};

// From an image that check_image has accepted. NULL if it cannot be loaded, with a message on stderr.
std::shared_ptr<Code> load_code(const void* image, size_t bytes);

}  // namespace skc_shim
