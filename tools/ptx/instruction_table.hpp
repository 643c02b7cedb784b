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

// Handlers that depend on the form of the instruction: NULL if it is not known.
Handler load_handler(const Instruction& i);
Handler store_handler();
Handler atomic_handler(const std::string& operation);
Handler move_handler(u32 bytes);
// mov {a, b}, c, or mov c, {a, b}: a is the low half.
Handler halves_handler(bool split, u32 bytes);
struct Conversion {
    std::string to, from, rounding;
    bool saturate = false;
    bool exact = false;  // the registers are as wide as the types
};
Handler convert_handler(const Conversion& conversion);

// Whether there is a special register of that name; `mode` is what special() knows it by.
bool special_register(const std::string& name, u8& mode);

void special(Warp& w, const Instruction& i, u32 mask);  // mov from a special register
void shuffle(Warp& w, const Instruction& i, u32 mask);  // mode: 0 up, 1 down, 2 bfly, 3 idx
void vote(Warp& w, const Instruction& i, u32 mask);     // mode: 0 any, 1 all, 2 uni
void warp_barrier(Warp& w, const Instruction& i, u32 mask);
void load_matrix(Warp& w, const Instruction& i, u32 mask);
void move_matrix(Warp& w, const Instruction& i, u32 mask);
void multiply(Warp& w, const Instruction& i, u32 mask);
void copies_issue(Warp& w, const Instruction& i, u32 mask);
void copies_commit(Warp& w, const Instruction& i, u32 mask);
void copies_wait(Warp& w, const Instruction& i, u32 mask);
void fence(Warp& w, const Instruction& i, u32 mask);
void map_to_rank(Warp& w, const Instruction& i, u32 mask);
void grid_wait(Warp& w, const Instruction& i, u32 mask);
void grid_launch(Warp& w, const Instruction& i, u32 mask);
void nothing(Warp& w, const Instruction& i, u32 mask);

float half_to_float(u16 h);
u16 float_to_half(float x);
u16 float_to_bf16(float x);
// x * y + z, rounded once to bf16.
u16 fma_bf16(u16 x, u16 y, u16 z);

}  // namespace ptx
