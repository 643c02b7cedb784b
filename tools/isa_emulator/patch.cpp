#include "patch.hpp"

#include <linux/membarrier.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "execute.hpp"

// A MAP_FIXED_NOREPLACE that an old header lacks.
#if !defined(MAP_FIXED_NOREPLACE)
#define MAP_FIXED_NOREPLACE 0x100000
#endif

using isa_emulator::Instruction;
using isa_emulator::State;

extern "C" {

// Instructions that follow directly upon each other: they share one save and restore of the registers.
struct Run {
    int n;
    Instruction instructions[1];
};

__attribute__((visibility("hidden"))) void isa_emulator_entry();

__attribute__((visibility("hidden"))) void isa_emulator_run(const Run* run, State* state) {
    for (int i = 0; i < run->n; ++i) isa_emulator::execute(run->instructions[i], *state);
}
}

namespace isa_emulator {

namespace {

constexpr int kMaxRun = 32;
constexpr size_t kRegionBytes = 1 << 20;
constexpr int64_t kReach = 0x7FF00000;
constexpr int kMaxRegions = 64;
// An opcode that is undefined in 64-bit mode, and one byte long.
constexpr uint8_t kUndefined = 0x06;
constexpr uint8_t kJump = 0xE9;
constexpr size_t kJumpBytes = 5;

// Stubs near the code that jumps to them: a jump reaches 2 GiB.
struct Region {
    uint8_t* start;
    size_t used;
};

Region regions[kMaxRegions];
int region_count;
std::atomic<int> places(0);

// Nothing here may allocate or take a lock of the C library's: it runs in a signal handler.
std::atomic_flag busy = ATOMIC_FLAG_INIT;

class Lock {
public:
    Lock() {
        while (busy.test_and_set(std::memory_order_acquire)) sched_yield();
    }
    ~Lock() {
        busy.clear(std::memory_order_release);
    }
};

[[noreturn]] void give_up(const char* what) {
    if (write(STDERR_FILENO, what, std::strlen(what)) < 0) {
        // Nothing left to tell it to.
    }
    std::abort();
}

bool near(const uint8_t* a, const uint8_t* b) {
    return std::llabs(a - b) < kReach;
}

uint8_t* map_near(uint8_t* address) {
    constexpr int64_t kStep = 4 << 20;
    uint8_t* page = reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(address) & ~(kRegionBytes - 1));
    for (int64_t distance = kStep; distance < kReach - kStep; distance += kStep) {
        for (int64_t offset : {distance, -distance}) {
            void* at = mmap(page + offset, kRegionBytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
            if (at == page + offset) return page + offset;
            // A kernel older than the flag may have put it elsewhere.
            if (at != MAP_FAILED) munmap(at, kRegionBytes);
        }
    }
    give_up("isa_emulator: no memory for code near the program\n");
}

// `bytes` of memory that the code at `address` can jump to. A region begins with the address of `isa_emulator_entry`.
uint8_t* allocate(uint8_t* address, size_t bytes, Region*& region) {
    for (int i = 0; i < region_count; ++i) {
        region = &regions[i];
        if (!near(region->start, address) || region->used + bytes > kRegionBytes) continue;
        uint8_t* place = region->start + region->used;
        region->used += bytes;
        return place;
    }
    if (region_count == kMaxRegions) give_up("isa_emulator: too many instructions to emulate\n");
    region = &regions[region_count++];
    *region = {map_near(address), 64};
    void (*entry)() = isa_emulator_entry;
    std::memcpy(region->start, &entry, sizeof entry);
    return allocate(address, bytes, region);
}

uint8_t* put(uint8_t* at, std::initializer_list<uint8_t> bytes) {
    for (uint8_t byte : bytes) *at++ = byte;
    return at;
}

// The distance from the end of these four bytes.
uint8_t* put_distance(uint8_t* at, const uint8_t* target) {
    int32_t distance = static_cast<int32_t>(target - (at + 4));
    std::memcpy(at, &distance, 4);
    return at + 4;
}

// Code that runs `instructions`, which end at `next`, and goes on there.
uint8_t* write_stub(const Instruction* instructions, int n, uint8_t* address, const uint8_t* next) {
    constexpr size_t kCode = 24;
    size_t bytes = kCode + sizeof(Run) + n * sizeof(Instruction);
    Region* region;
    uint8_t* stub = allocate(address, (bytes + 63) / 64 * 64, region);
    uint8_t* at = put(stub, {0x48, 0x8D, 0x64, 0x24, 0x80});           // lea rsp, [rsp - 128]: the red zone
    at = put_distance(put(at, {0xFF, 0x15}), region->start);           // call [entry]
    at = put(at, {0x48, 0x8D, 0xA4, 0x24, 0x80, 0x00, 0x00, 0x00});    // lea rsp, [rsp + 128]
    at = put_distance(put(at, {kJump}), next);
    Run* run = reinterpret_cast<Run*>(stub + kCode);
    run->n = n;
    std::memcpy(run->instructions, instructions, n * sizeof(Instruction));
    return stub;
}

// All threads of this process have seen what was written before, and fetch instructions anew.
void synchronize_threads() {
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0) {
        give_up("isa_emulator: membarrier failed\n");
    }
}

void protect(uint8_t* address, int protection) {
    uintptr_t page = sysconf(_SC_PAGESIZE);
    uintptr_t start = reinterpret_cast<uintptr_t>(address) & ~(page - 1);
    uintptr_t end = (reinterpret_cast<uintptr_t>(address) + kJumpBytes + page - 1) & ~(page - 1);
    if (mprotect(reinterpret_cast<void*>(start), end - start, protection) != 0) {
        give_up("isa_emulator: the program's code cannot be made writable\n");
    }
}

// Other threads may be about to execute these bytes. Until the jump is complete its first byte is an undefined
// instruction, so that they end up in the signal handler and wait for the lock.
void write_jump(uint8_t* address, const uint8_t* target) {
    uint8_t distance[4];
    int32_t value = static_cast<int32_t>(target - (address + kJumpBytes));
    std::memcpy(distance, &value, 4);
    auto* code = reinterpret_cast<volatile uint8_t*>(address);
    protect(address, PROT_READ | PROT_WRITE | PROT_EXEC);
    code[0] = kUndefined;
    synchronize_threads();
    for (int i = 0; i < 4; ++i) code[1 + i] = distance[i];
    synchronize_threads();
    code[0] = kJump;
    synchronize_threads();
    protect(address, PROT_READ | PROT_EXEC);
}

bool is_jump_to_stub(uint8_t* address) {
    if (*address != kJump) return false;
    int32_t distance;
    std::memcpy(&distance, address + 1, 4);
    const uint8_t* target = address + kJumpBytes + distance;
    for (int i = 0; i < region_count; ++i) {
        if (regions[i].start <= target && target < regions[i].start + kRegionBytes) return true;
    }
    return false;
}

}  // namespace

const char* prepare_patches() {
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0) {
        return "membarrier(2) with SYNC_CORE";
    }
    return nullptr;
}

bool patch(uint8_t* address) {
    Lock lock;
    if (is_jump_to_stub(address)) return true;
    Instruction instructions[kMaxRun];
    int n = 0;
    uint8_t* next = address;
    // Decoding ahead stops at the page's end: the next page may not be there. Instructions have 15 bytes at most.
    uintptr_t page_end = (reinterpret_cast<uintptr_t>(address) | 4095) + 1;
    while (n < kMaxRun) {
        bool readable = n == 0 || reinterpret_cast<uintptr_t>(next) + 15 <= page_end;
        if (!readable || !decode(next, reinterpret_cast<uint64_t>(next), instructions[n])) break;
        next += instructions[n].length;
        ++n;
    }
    if (n == 0) return false;
    write_jump(address, write_stub(instructions, n, address, next));
    ++places;
    return true;
}

int patched_places() {
    return places;
}

}  // namespace isa_emulator
