// What is not arithmetic: registers that stay, threads, code at the end of a page, and what must end the program.

#include "self_test.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

// All registers, and what lies below the stack's top.
struct Registers {
    uint8_t zmm[32][64];
    uint64_t k[8];
    uint64_t general[15];    // all but rsp
    uint64_t flags;
    uint64_t red_zone[16];
    uint32_t mxcsr;
};
static_assert(offsetof(Registers, general) == 2112 && offsetof(Registers, flags) == 2232 &&
              offsetof(Registers, red_zone) == 2240 && offsetof(Registers, mxcsr) == 2368);

extern "C" {
__attribute__((visibility("hidden"))) Registers self_test_before, self_test_after;
// Loads `before`, executes tilerelease, and stores `after`.
void self_test_release();
}

asm(R"(
.text
.globl self_test_release
.type self_test_release, @function
self_test_release:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    stmxcsr usual_mxcsr(%rip)
.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vmovdqu64 self_test_before + 64 * \n(%rip), %zmm\n
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq self_test_before + 2048 + 8 * \n(%rip), %k\n
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movq self_test_before + 2240 + 8 * \n(%rip), %rax
    movq %rax, -128 + 8 * \n(%rsp)
.endr
    ldmxcsr self_test_before + 2368(%rip)
    leaq -128(%rsp), %rsp
    pushq self_test_before + 2232(%rip)
    popfq
    leaq 128(%rsp), %rsp
    movq self_test_before + 2112(%rip), %rax
    movq self_test_before + 2120(%rip), %rcx
    movq self_test_before + 2128(%rip), %rdx
    movq self_test_before + 2136(%rip), %rbx
    movq self_test_before + 2144(%rip), %rbp
    movq self_test_before + 2152(%rip), %rsi
    movq self_test_before + 2160(%rip), %rdi
.irp n, 8, 9, 10, 11, 12, 13, 14, 15
    movq self_test_before + 2168 + 8 * (\n - 8)(%rip), %r\n
.endr
    tilerelease
    movq %rax, self_test_after + 2112(%rip)
    movq %rcx, self_test_after + 2120(%rip)
    movq %rdx, self_test_after + 2128(%rip)
    movq %rbx, self_test_after + 2136(%rip)
    movq %rbp, self_test_after + 2144(%rip)
    movq %rsi, self_test_after + 2152(%rip)
    movq %rdi, self_test_after + 2160(%rip)
.irp n, 8, 9, 10, 11, 12, 13, 14, 15
    movq %r\n, self_test_after + 2168 + 8 * (\n - 8)(%rip)
.endr
    leaq -128(%rsp), %rsp
    pushfq
    popq self_test_after + 2232(%rip)
    cld
    leaq 128(%rsp), %rsp
    stmxcsr self_test_after + 2368(%rip)
    ldmxcsr usual_mxcsr(%rip)
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movq -128 + 8 * \n(%rsp), %rax
    movq %rax, self_test_after + 2240 + 8 * \n(%rip)
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq %k\n, self_test_after + 2048 + 8 * \n(%rip)
.endr
.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vmovdqu64 %zmm\n, self_test_after + 64 * \n(%rip)
.endr
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    retq
.size self_test_release, .-self_test_release
.data
usual_mxcsr:
    .long 0
.text
)");

namespace {

using Bytes = std::vector<uint8_t>;

// vfmadd231ph zmm0, zmm1, zmm2; and the same by the first instruction only as long as a jump: tilerelease.
const Bytes kFmadd = {0x62, 0xF6, 0x75, 0x48, 0xB8, 0xC2};
const Bytes kRelease = {0xC4, 0xE2, 0x78, 0x49, 0xC0};
const uint8_t kReturn = 0xC3;

uint8_t* executable_pages(size_t n) {
    void* pages = mmap(nullptr, n * 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? nullptr : static_cast<uint8_t*>(pages);
}

uint8_t* write_function(uint8_t* at, const Bytes& code) {
    std::memcpy(at, code.data(), code.size());
    at[code.size()] = kReturn;
    return at + code.size() + 1;
}

// Calls code with zmm0 = 1, zmm1 = 2, zmm2 = 3 everywhere, in fp16; zmm0's first element.
uint16_t call_fmadd(uint8_t* code) {
    uint32_t result;
    asm volatile(
        "vpbroadcastw %2, %%zmm0\n\tvpbroadcastw %3, %%zmm1\n\tvpbroadcastw %4, %%zmm2\n\t"
        "leaq -128(%%rsp), %%rsp\n\tcall *%1\n\tleaq 128(%%rsp), %%rsp\n\t"
        "vmovd %%xmm0, %0"
        : "=r"(result)
        : "r"(code), "r"(0x3C00), "r"(0x4000), "r"(0x4200)
        : "xmm0", "xmm1", "xmm2", "memory");
    return result;
}

TEST(System, RegistersStay) {
    NEEDS_EMULATOR();
    std::mt19937_64 random(5);
    for (int round = 0; round < 3; ++round) {
        Registers& before = self_test_before;
        for (size_t at = 0; at < offsetof(Registers, mxcsr); at += 8) {
            uint64_t bits = random();
            std::memcpy(reinterpret_cast<char*>(&before) + at, &bits, 8);
        }
        // Carry, parity, adjust, zero, sign, direction, overflow; and the two bits that are always set.
        before.flags = (random() & 0xCD5) | 0x202;
        before.mxcsr = 0x1F80 | (random() & 0xE07F);
        self_test_release();
        const Registers& after = self_test_after;
        for (int i = 0; i < 32; ++i) EXPECT_EQ(std::memcmp(before.zmm[i], after.zmm[i], 64), 0) << "zmm" << i;
        for (int i = 0; i < 8; ++i) EXPECT_EQ(before.k[i], after.k[i]) << "k" << i;
        for (int i = 0; i < 15; ++i) EXPECT_EQ(before.general[i], after.general[i]) << "general " << i;
        for (int i = 0; i < 16; ++i) EXPECT_EQ(before.red_zone[i], after.red_zone[i]) << "red zone " << i;
        EXPECT_EQ(before.flags, after.flags);
        EXPECT_EQ(before.mxcsr, after.mxcsr);
    }
}

// Threads come to instructions that none has seen before, all at the same time.
TEST(System, ThreadsMeetAtNewCode) {
    NEEDS_EMULATOR();
    constexpr int kFunctions = 400, kThreads = 6;
    uint8_t* at = executable_pages(8);
    ASSERT_NE(at, nullptr);
    std::vector<uint8_t*> functions;
    std::mt19937 random(6);
    for (int i = 0; i < kFunctions; ++i) {
        at += random() % 30;
        functions.push_back(at);
        Bytes code;
        for (unsigned n = 1 + random() % 3; n > 0; --n) code.insert(code.end(), kRelease.begin(), kRelease.end());
        code.insert(code.end(), kFmadd.begin(), kFmadd.end());
        at = write_function(at, code);
    }
    std::atomic<int> arrived(0), wrong(0);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < kFunctions; ++i) {
                ++arrived;
                while (arrived < (i + 1) * kThreads) std::this_thread::yield();
                if (call_fmadd(functions[i]) != 0x4700) ++wrong;
            }
        });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
}

// Each thread has tiles of its own.
TEST(System, TilesBelongToThreads) {
    NEEDS_EMULATOR();
    auto stored_palette = [] {
        uint8_t config[64];
        asm volatile("sttilecfg (%0)" : : "r"(config) : "memory");
        return config[0];
    };
    bool native = self_test::processor_has_amx();
    if (native) GTEST_SKIP() << "skipped: the processor has tiles of its own";
    uint8_t config[64] = {1};
    config[16] = 64;
    config[48] = 16;
    asm volatile("ldtilecfg (%0)" : : "r"(config) : "memory");
    EXPECT_EQ(stored_palette(), 1);
    std::thread([&] { EXPECT_EQ(stored_palette(), 0); }).join();
    asm volatile("tilerelease");
    EXPECT_EQ(stored_palette(), 0);
}

TEST(System, CodeAtTheEndOfAPage) {
    NEEDS_EMULATOR();
    uint8_t* pages = executable_pages(3);
    ASSERT_NE(pages, nullptr);
    ASSERT_EQ(mprotect(pages + 2 * 4096, 4096, PROT_NONE), 0);
    // Across two pages, and right before one that is not there.
    uint8_t* across = pages + 4096 - 3;
    uint8_t* last = pages + 2 * 4096 - kFmadd.size() - 1;
    // Both are written first: code that has been replaced is no longer writable.
    for (uint8_t* at : {across, last}) write_function(at, kFmadd);
    for (uint8_t* at : {across, last}) {
        EXPECT_EQ(call_fmadd(at), 0x4700);
        EXPECT_EQ(call_fmadd(at), 0x4700);
    }
}

TEST(System, ReplacesWhatItKnowsOnly) {
    NEEDS_EMULATOR();
    uint8_t* code = executable_pages(2);
    ASSERT_NE(code, nullptr);
    write_function(code, kFmadd);
    EXPECT_TRUE(isa_emulator_replace(code));
    EXPECT_TRUE(isa_emulator_replace(code)) << "again";
    EXPECT_EQ(call_fmadd(code), 0x4700);
    // vfmadd231pd, vaddph, vfmadd231ph of W = 1, tileloadd without SIB, tdpbssd.
    for (const Bytes& other : {Bytes{0x62, 0xF2, 0xF5, 0x48, 0xB8, 0xC2}, Bytes{0x62, 0xF5, 0x74, 0x48, 0x58, 0xC2},
                               Bytes{0x62, 0xF6, 0xF5, 0x48, 0xB8, 0xC2}, Bytes{0xC4, 0xE2, 0x7B, 0x4B, 0x00},
                               Bytes{0xC4, 0xE2, 0x4B, 0x5E, 0xD5}}) {
        write_function(code + 4096, other);
        EXPECT_FALSE(isa_emulator_replace(code + 4096));
    }
}

using SystemDeath = ::testing::Test;

TEST(SystemDeath, UnknownInstructions) {
    NEEDS_EMULATOR();
    EXPECT_EXIT(asm volatile("ud2"), ::testing::KilledBySignal(SIGILL), "not an instruction that is emulated.* 0f 0b ");
}

// What a processor answers with a fault.
TEST(SystemDeath, Misuse) {
    NEEDS_EMULATOR();
    if (self_test::processor_has_amx()) GTEST_SKIP() << "skipped: the processor answers by itself";
    static uint8_t config[64], tile[1024];
    auto load = [](uint8_t palette, uint8_t row_bytes, uint8_t rows) {
        config[0] = palette;
        for (int i = 0; i < 3; ++i) {
            config[16 + 2 * i] = row_bytes;
            config[48 + i] = rows;
        }
        asm volatile("ldtilecfg (%0)" : : "r"(config) : "memory");
    };
    EXPECT_DEATH(asm volatile("tilezero %tmm0"), "tiles are not configured");
    EXPECT_DEATH(asm volatile("tileloadd (%0, %1, 1), %%tmm0" : : "r"(tile), "r"(64L)), "tiles are not configured");
    EXPECT_DEATH(load(2, 64, 16), "palette");
    EXPECT_DEATH(load(1, 65, 16), "too large");
    EXPECT_DEATH(load(1, 64, 17), "too large");
    EXPECT_DEATH(load(1, 64, 0), "not both");
    EXPECT_DEATH(
        {
            load(1, 64, 16);
            asm volatile("tilezero %tmm3");
        },
        "a tile is not configured");
    EXPECT_DEATH(
        {
            load(1, 64, 8);
            asm volatile("tdpbf16ps %tmm2, %tmm1, %tmm0");
        },
        "do not match");
    EXPECT_DEATH(
        {
            load(1, 64, 16);
            // tdpbf16ps tmm0, tmm1, tmm1, which assemblers refuse.
            asm volatile(".byte 0xC4, 0xE2, 0x72, 0x5C, 0xC1");
        },
        "same tile");
}

}  // namespace
