// What device code and the runtime that runs it on the CPU agree on: the state of one thread of a block.
//
// Device code is compiled alone, into a shared object that links against nothing. It finds the state of its thread from
// the stack pointer, and the runtime's functions in that state.
#pragma once

#include <cstddef>
#include <cstdint>

namespace skc_shim {

// Instructions that all threads of a warp (for block_sync: of a block, for cluster_sync: of a cluster) execute
// together.
enum class SyncOp : uint32_t {
    none,
    block_sync,
    cluster_sync,
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

struct DeviceThread;
struct Warp;
class Scheduler;

// The runtime's functions, for device code.
struct Runtime {
    // Waits until all threads of the warp (of the block for block_sync, of the cluster for cluster_sync) have come to
    // the same instruction, and executes it. `line` is the caller's source line, for error messages.
    void (*sync)(DeviceThread*, SyncOp, int line);
    // Lets other threads run, sometimes.
    void (*yield)(DeviceThread*);
    void (*copy_async)(DeviceThread*, void* shared, const void* global, uint32_t bytes, bool valid);
    void (*copy_async_commit)(DeviceThread*);
    void (*copy_async_wait)(DeviceThread*, uint32_t pending);
    // Memory of `bytes` bytes at an offset in the shared memory of a block of the cluster.
    const void* (*cluster_memory)(DeviceThread*, uint32_t rank, uint32_t offset, uint32_t bytes);
    // griddepcontrol.wait: the preceding kernel has ended.
    void (*wait_for_preceding_kernel)(DeviceThread*);
    // Ends the launch with an error. Does not return.
    void (*fail)(DeviceThread*, const char* reason);
};

// Operands of a SyncOp, in and out.
struct Operands {
    uint64_t value;     // shuffle, ballot: this lane's input, then its result
    uint32_t source;    // shuffle: the lane that this one reads
    const void* row;    // load_matrix: address of the row that this lane provides
    uint16_t read[8];   // load_matrix: contents of that row when the lane arrived
    uint32_t* r;        // load_matrix, transpose_matrix: the registers to write
    const uint32_t* a;  // mma: fragments of A, B and C
    const uint32_t* b;
    float* c;
};

struct DeviceThread {
    const Runtime* runtime;
    Warp* warp;
    uint32_t index;  // threadIdx.x
    uint32_t lane;   // index % 32
    uint32_t block[3];
    uint32_t grid[3];
    uint32_t cluster_size;  // blocks; 1 in a launch without clusters
    uint8_t* shared;
    uint32_t shared_bytes;
    int line;  // of the SyncOp that it waits at
    SyncOp op;
    bool after_wait;  // wait_for_preceding_kernel was called, or is not required
    Operands operands;
    void* stack_pointer;  // while it is not running
    Scheduler* scheduler;
    struct AsyncCopies* copies;
};

// A thread's stack is an aligned block of this size with its `DeviceThread` near the upper end. Its exact place depends
// on the stack's number: at equal offsets all threads would use the same cache sets.
constexpr uintptr_t kStackShift = 18;
constexpr uintptr_t kStackBytes = uintptr_t{1} << kStackShift;
constexpr uintptr_t kOffsets = 64;
constexpr uintptr_t kOffsetBytes = 17 * 64;

// Address of the DeviceThread whose stack `inside` points into.
inline uintptr_t device_thread_address(uintptr_t inside) {
    uintptr_t number = inside >> kStackShift;
    return ((number + 1) << kStackShift) - (number % kOffsets + 1) * kOffsetBytes;
}

static_assert(sizeof(DeviceThread) <= 512,
              "the rest of an offset separates the state from the stack of the same thread");

// The thread that executes the caller.
inline __attribute__((always_inline)) DeviceThread* current_thread() {
    return reinterpret_cast<DeviceThread*>(
        device_thread_address(reinterpret_cast<uintptr_t>(__builtin_frame_address(0))));
}

}  // namespace skc_shim
