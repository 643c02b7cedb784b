// Decoding, by "Instruction Format" of Intel's Software Developer's Manual, volume 2, chapter 2.

#include "instruction.hpp"

#include <cstring>

namespace isa_emulator {

namespace {

constexpr uint8_t kVex3 = 0xC4;
constexpr uint8_t kEvex = 0x62;
constexpr uint8_t kMap0F38 = 2;
constexpr uint8_t kMap6 = 6;

// The implied prefix of a VEX or EVEX instruction.
enum Prefix : uint8_t { kNone = 0, k66 = 1, kF3 = 2, kF2 = 3 };

uint8_t bit(uint8_t byte, int n) {
    return byte >> n & 1;
}

struct ModRm {
    uint8_t mod, reg, rm;

    explicit ModRm(uint8_t byte) : mod(byte >> 6), reg(byte >> 3 & 7), rm(byte & 7) {}
};

// Reads ModRM's memory operand, which starts with ModRM at `at`; the number of its bytes. `x` and `b` extend index and
// base. A displacement of one byte counts in units of `unit` bytes.
size_t read_memory(const uint8_t* at, uint8_t x, uint8_t b, int64_t unit, Memory& memory) {
    const uint8_t* start = at;
    ModRm modrm(*at++);
    bool no_base = modrm.mod == 0 && modrm.rm == 5;
    memory = {0, static_cast<uint8_t>(b << 3 | modrm.rm), kNoRegister, 1};
    if (no_base) memory.base = kRip;
    if (modrm.rm == 4) {
        uint8_t sib = *at++;
        memory.base = b << 3 | (sib & 7);
        uint8_t index = x << 3 | (sib >> 3 & 7);
        // 4 without X is the encoding of "no index"; with X it is r12.
        if (index != 4) memory.index = index;
        memory.scale = 1 << (sib >> 6);
        no_base = modrm.mod == 0 && (sib & 7) == 5;
        if (no_base) memory.base = kNoRegister;
    }
    if (modrm.mod == 1) {
        memory.displacement = static_cast<int8_t>(*at++) * unit;
    } else if (modrm.mod == 2 || no_base) {
        int32_t displacement;
        std::memcpy(&displacement, at, 4);
        memory.displacement = displacement;
        at += 4;
    }
    return at - start;
}

bool decode_tile(const uint8_t* code, Instruction& out) {
    uint8_t p0 = code[1], p1 = code[2], opcode = code[3];
    ModRm modrm(code[4]);
    uint8_t r = !bit(p0, 7), x = !bit(p0, 6), b = !bit(p0, 5);
    uint8_t vvvv = ~p1 >> 3 & 15, prefix = p1 & 3;
    bool wide = bit(p1, 7), long_vector = bit(p1, 2), in_memory = modrm.mod != 3;
    if ((p0 & 31) != kMap0F38 || wide || long_vector || r) return false;
    out.reg = modrm.reg;
    out.has_memory = in_memory;
    if (in_memory) {
        out.length = 4 + read_memory(code + 4, x, b, 1, out.memory);
    } else {
        out.rm = modrm.rm;
        out.length = 5;
    }
    if (opcode == 0x5C) {
        // Tiles are 0 to 7: the fourth bit of their numbers must be clear.
        if (prefix != kF3 || in_memory || vvvv > 7 || b) return false;
        out.op = Op::TdpBf16Ps;
        out.vvvv = vvvv;
        return true;
    }
    if (vvvv != 0) return false;
    if (opcode == 0x49) {
        if (in_memory) {
            if (modrm.reg != 0 || (prefix != kNone && prefix != k66)) return false;
            out.op = prefix == kNone ? Op::LdTileCfg : Op::StTileCfg;
            return true;
        }
        if (modrm.rm != 0 || b) return false;
        if (prefix == kNone && modrm.reg == 0) {
            out.op = Op::TileRelease;
            return true;
        }
        out.op = Op::TileZero;
        return prefix == kF2;
    }
    if (opcode == 0x4B) {
        // With or without a hint for the cache. The memory operand must have a SIB byte.
        out.op = prefix == kF3 ? Op::TileStore : Op::TileLoad;
        return prefix != kNone && in_memory && modrm.rm == 4;
    }
    return false;
}

bool decode_fp16(const uint8_t* code, Instruction& out) {
    uint8_t p0 = code[1], p1 = code[2], p2 = code[3], opcode = code[4];
    ModRm modrm(code[5]);
    uint8_t r = !bit(p0, 7), x = !bit(p0, 6), b = !bit(p0, 5), r_high = !bit(p0, 4);
    uint8_t vvvv = (~p1 >> 3 & 15) | !bit(p2, 3) << 4;
    uint8_t length = p2 >> 5 & 3;
    bool embedded = bit(p2, 4);
    // W must be 0, the bit after it 1, and the prefix 66.
    if ((p0 & 15) != kMap6 || (p1 & 0x87) != (4 | k66)) return false;
    switch (opcode) {
        case 0x98: out.op = Op::Fmadd132Ph; break;
        case 0xA8: out.op = Op::Fmadd213Ph; break;
        case 0xB8: out.op = Op::Fmadd231Ph; break;
        default: return false;
    }
    out.reg = r_high << 4 | r << 3 | modrm.reg;
    out.vvvv = vvvv;
    out.mask = p2 & 7;
    out.zeroing = bit(p2, 7);
    if (out.zeroing && out.mask == 0) return false;
    out.has_memory = modrm.mod != 3;
    out.rounding = -1;
    if (out.has_memory) {
        if (length == 3) return false;
        out.vector_bytes = 16 << length;
        out.broadcast = embedded;
        out.length = 5 + read_memory(code + 5, x, b, embedded ? 2 : out.vector_bytes, out.memory);
        return true;
    }
    out.rm = x << 4 | b << 3 | modrm.rm;
    out.length = 6;
    if (embedded) {
        // The bits of the vector's length are the rounding mode, and the length is 512.
        out.rounding = length;
        length = 2;
    }
    out.vector_bytes = 16 << length;
    return length != 3;
}

}  // namespace

bool decode(const uint8_t* code, uint64_t address, Instruction& instruction) {
    instruction = {};
    bool known = false;
    if (code[0] == kVex3) known = decode_tile(code, instruction);
    if (code[0] == kEvex) known = decode_fp16(code, instruction);
    if (!known) return false;
    Memory& memory = instruction.memory;
    if (instruction.has_memory && memory.base == kRip) {
        memory.base = kNoRegister;
        memory.displacement += static_cast<int64_t>(address) + instruction.length;
    }
    return true;
}

}  // namespace isa_emulator
