// Machine code that is replaced where it stands.

#pragma once

#include <cstdint>

namespace isa_emulator {

// What is needed before the first `patch`; NULL, or what is missing.
const char* prepare_patches();

// Replaces the instruction at `address` by a jump to code that emulates it and those directly behind it, in every
// thread. False if it is not one that is emulated. What has been replaced already stays so, and that is true as well.
bool patch(uint8_t* address);

// How many jumps there are.
int patched_places();

}  // namespace isa_emulator
