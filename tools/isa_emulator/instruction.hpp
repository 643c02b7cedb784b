// The instructions that are emulated, and how they are read from machine code.

#pragma once

#include <cstddef>
#include <cstdint>

namespace isa_emulator {

enum class Op : uint8_t {
    LdTileCfg,
    StTileCfg,
    TileRelease,
    TileZero,
    TileLoad,
    TileStore,
    TdpBf16Ps,
    // The three operand orders of a fused multiply-add of fp16, as in the mnemonics.
    Fmadd132Ph,
    Fmadd213Ph,
    Fmadd231Ph,
};

constexpr uint8_t kNoRegister = 0xFF;
constexpr uint8_t kRip = 0xFE;

// A memory operand: base + index * scale + displacement. For tiles, index * scale is the distance between rows.
struct Memory {
    int64_t displacement;
    uint8_t base;
    uint8_t index;
    uint8_t scale;
};

struct Instruction {
    Op op;
    // Bytes of machine code.
    uint8_t length;
    // ModRM.reg, (E)VEX.vvvv and ModRM.rm: numbers of tile or vector registers.
    uint8_t reg, vvvv, rm;
    // `memory` stands for `rm`.
    bool has_memory;
    // The rest is for fp16: mask register (0: none), zeroing instead of merging, one element for all, bytes of a
    // vector, and the rounding mode (-1: that of MXCSR).
    uint8_t mask;
    bool zeroing, broadcast;
    uint8_t vector_bytes;
    int8_t rounding;
    Memory memory;
};

// Decodes the instruction at `code`; false if it is none of the above. `address` is where it will run.
bool decode(const uint8_t* code, uint64_t address, Instruction& instruction);

}  // namespace isa_emulator
