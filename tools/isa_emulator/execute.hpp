// What the emulated instructions do, on registers that `entry.S` has saved.

#pragma once

#include "instruction.hpp"

namespace isa_emulator {

// `entry.S` fills this in and reads it back: the offsets are written down there.
struct alignas(64) State {
    uint8_t zmm[32][64];
    uint64_t k[8];
    uint32_t mxcsr;
    uint32_t unused;
    // rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15. They are read, never written.
    const uint64_t* general;
};

void execute(const Instruction& instruction, State& state);

}  // namespace isa_emulator
