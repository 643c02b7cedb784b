// The table of instructions: name with types -> handler and what its operands are.
#pragma once

#include <string>
#include <unordered_map>

#include "module.hpp"

namespace ptx {

// Operands: p predicate, h 16, w 32, l 64 bits.
struct Entry {
    Handler run;
    const char* operands;
};
const std::unordered_map<std::string, Entry>& table();

Handler load_handler(const Instruction& i);
Handler store_handler();
Handler atomic_handler(const std::string& operation);  // inc, add, ...; u32
Handler convert_handler(const std::string& to, const std::string& from, const std::string& rounding, bool sat, bool ftz,
                        bool exact);
Handler move_handler(u32 bytes);
void special(Warp& w, const Instruction& i, u32 mask);  // mov from a special register; mode says which
void split64(Warp& w, const Instruction& i, u32 mask);  // mov.b64 {a, b}, c
void join64(Warp& w, const Instruction& i, u32 mask);   // mov.b64 c, {a, b}
void shuffle(Warp& w, const Instruction& i, u32 mask);  // mode & 3: 0 up, 1 down, 2 bfly, 3 idx
void vote(Warp& w, const Instruction& i, u32 mask);     // mode & 3: 0 any, 1 all, 2 uni
void warp_barrier(Warp& w, const Instruction& i, u32 mask);
void load_matrix(Warp& w, const Instruction& i, u32 mask);  // mode 1: transposed
void move_matrix(Warp& w, const Instruction& i, u32 mask);
void multiply(Warp& w, const Instruction& i, u32 mask);  // mode 1: bf16
void fence(Warp& w, const Instruction& i, u32 mask);
void grid_wait(Warp& w, const Instruction& i, u32 mask);
void grid_launch(Warp& w, const Instruction& i, u32 mask);
void nothing(Warp& w, const Instruction& i, u32 mask);

float half_to_float(u16 h);
u16 float_to_half(float x);
u16 float_to_bf16(float x);
// x * y + z, rounded once to bf16.
u16 fma_bf16(u16 x, u16 y, u16 z);

}  // namespace ptx
