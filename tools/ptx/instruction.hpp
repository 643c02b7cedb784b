// One instruction, from its text.
#pragma once

#include "symbols.hpp"

namespace ptx {

struct ParsedInstruction {
    Instruction instruction;
    std::string label;  // of a branch
};

// Throws with what it does not know: anything but what NVRTC makes of the kernels is an error, not a guess.
ParsedInstruction parse_instruction(const std::string& text, Symbols& symbols);

}  // namespace ptx
