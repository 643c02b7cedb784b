// A PTX module as the interpreter keeps it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;

struct Warp;
struct Instruction;
// Executes an instruction for the lanes of a mask.
using Handler = void (*)(Warp&, const Instruction&, u32 mask);

// What the scheduler has to know of an instruction.
enum class Flow : u8 {
    plain,
    branch,       // to `target`, for the lanes that the guard lets through
    exit,         // the lanes end
    collective,   // all lanes of the member mask must be here: shfl, vote, bar.warp.sync; without a mask all lanes
    cta_barrier,  // bar.sync
    cluster_arrive,  // barrier.cluster.arrive
    cluster_wait,    // barrier.cluster.wait
};

enum class Space : u8 { generic, global, shared, param };

enum class Ordering : u8 { weak, relaxed, acq_rel };

// Places of operands that several instructions have.
constexpr u32 kAddress = 17;
constexpr u32 kMemberMask = 17;

struct Instruction {
    Handler run = nullptr;
    Flow flow = Flow::plain;
    bool leader = false;   // some branch leads here
    bool negated = false;  // @!%p
    i32 guard = -1;        // index of a predicate
    u32 target = 0;

    Space space = Space::generic;
    Ordering ordering = Ordering::weak;
    u8 count = 0;              // elements of a vector operand
    u8 bytes = 0;              // of an element in memory
    bool sign = false;         // sign extension of a load
    bool wide_address = true;  // the address is in a 64-bit register
    i64 offset = 0;            // of an address

    u8 mode = 0;  // which special register, which shfl or vote
    bool negated_source = false;
    bool transposed = false;
    bool bf16 = false;
    bool cluster = false;  // shared memory of any block of the cluster
    bool has_member_mask = false;

    u32 operands[18] = {};  // byte offsets into the register file, or indices of predicates
    u8 width[18] = {};      // bytes of those registers

    u32 line = 0;  // of the PTX
    u16 file = 0;  // .loc
    u32 file_line = 0;
    std::string text;
    mutable u64 hits = 0;  // warp instructions executed
};

struct Constant {
    u32 at;
    u8 bytes;
    u64 value;
};

struct Kernel {
    std::string name;
    std::string label;  // of the variant
    std::vector<Instruction> code;
    u32 register_bytes = 0;
    u32 n_predicates = 0;
    std::vector<Constant> constants;
    u32 param_bytes = 0;
    u32 max_threads = 1024;
    u32 cell_bytes = 4;  // the smallest access to memory: what the race detector tells apart
    u64 launches = 0, warp_instructions = 0, lane_instructions = 0;
};

struct Module {
    std::map<u32, std::string> files;
    std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

// Where the dynamic shared memory begins in the shared window: not at zero, as on devices that keep 1 KiB for
// themselves.
constexpr u32 kSharedBase = 1024;
// Addresses in the shared memory of the cluster: those of the block's own window, or of a block's, with its rank plus
// one above them.
constexpr u32 kRankShift = 24;

// Throws std::runtime_error with what it does not know.
std::unique_ptr<Module> parse(const std::string& text);

}  // namespace ptx
