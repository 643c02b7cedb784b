// For the interpreter's own tests: runs a body of PTX over a buffer.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "warp.hpp"

namespace ptx_test {

using ptx::u16;
using ptx::u32;
using ptx::u64;
using ptx::u8;

struct Shape {
    u32 threads = 32, blocks = 1, shared_bytes = 4096;
    bool programmatic = false;
    u64 seed = 1;
    u32 cluster = 1;  // blocks
};

// A kernel whose parameter is the address of the buffer. The body may use %p, %h (16 bits), %r, %f (32) and %rd (64),
// and finds the address in %rd0 and its thread's index in %r0. Returns what went wrong; a race is an error too.
std::string run_body(const std::string& body, std::vector<u8>& memory, const Shape& shape = {});

// What `code` makes of operands %r1, %r2, %r3 in %r4, one set of operands a lane.
std::vector<u32> run_lanes(const std::string& code, const std::vector<std::array<u32, 3>>& operands);
// The same for %rd1, %rd2, %rd3 and %rd4.
std::vector<u64> run_wide_lanes(const std::string& code, const std::vector<std::array<u64, 3>>& operands);

inline u32 bits(float x) {
    u32 b;
    std::memcpy(&b, &x, 4);
    return b;
}

}  // namespace ptx_test
