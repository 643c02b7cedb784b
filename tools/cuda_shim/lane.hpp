// What device code and the runtime that runs it on the CPU agree on: the state of one thread of a block.
//
// Device code is compiled on its own, into a shared object that links against nothing: it finds its lane from its stack
// pointer, and the runtime's functions in the lane.
#pragma once

#include <cstddef>
#include <cstdint>

namespace skc_shim {

// Kinds of meeting points of a warp.
enum class Meet : uint32_t {
    none,
    block_sync,
    warp_sync,
    shuffle,
    ballot,
    load_matrix_x2,
    load_matrix_x2_trans,
    load_matrix_x4,
    load_matrix_x4_trans,
    transpose_matrix,
    mma_f16,
    mma_bf16,
};

struct Lane;
struct Warp;
struct Engine;

// The runtime's functions, for device code.
struct Runtime {
    // Waits until all lanes of the warp (of the block for block_sync) have come to the same kind of meeting point.
    void (*meet)(Lane*, Meet, int line);
    // A place where other threads may get ahead.
    void (*pause)(Lane*);
    void (*copy_async16)(Lane*, void* shared, const void* global, bool valid);
    void (*copy_async_commit)(Lane*);
    void (*copy_async_wait)(Lane*, uint32_t pending);
    // The kernel before this one has ended: griddepcontrol.wait.
    void (*begin)(Lane*);
    // Ends the launch with an error. Does not return.
    void (*fail)(Lane*, const char* reason);
};

// Operands of the meeting points.
struct Operands {
    uint64_t value;     // shuffle, ballot: what this lane gives, then what it gets
    uint32_t source;    // shuffle: the lane it reads
    const void* row;    // load_matrix: the row this lane points to
    uint16_t read[8];   // load_matrix: what was there when this lane came
    uint32_t* r;        // load_matrix, transpose_matrix: registers written
    const uint32_t* a;  // mma
    const uint32_t* b;
    float* c;
};

struct Lane {
    const Runtime* runtime;
    Warp* warp;
    uint32_t thread;
    uint32_t lane;
    uint32_t block[3];
    uint32_t grid[3];
    uint8_t* shared;
    uint32_t shared_bytes;
    int line;  // of the meeting point it waits at
    Meet meet;
    bool begun;  // or not bound to
    Operands operands;
    void* stack_pointer;  // while it does not run
    Engine* engine;
    struct Copies* copies;
};

// A lane's stack is an aligned block of this size, with its `Lane` near the upper end. Where exactly depends on the
// block's number: at equal offsets all lanes would fall into the same cache sets.
constexpr uintptr_t kStackShift = 18;
constexpr uintptr_t kStackBytes = uintptr_t{1} << kStackShift;
constexpr uintptr_t kColours = 64;
constexpr uintptr_t kColourBytes = 17 * 64;

inline uintptr_t lane_address(uintptr_t inside) {
    uintptr_t number = inside >> kStackShift;
    return ((number + 1) << kStackShift) - (number % kColours + 1) * kColourBytes;
}

static_assert(sizeof(Lane) <= 512, "the rest of a colour is slack between lane and stack");

// The lane that executes the caller.
inline __attribute__((always_inline)) Lane* this_lane() {
    return reinterpret_cast<Lane*>(lane_address(reinterpret_cast<uintptr_t>(__builtin_frame_address(0))));
}

}  // namespace skc_shim
