// Loads, stores and atomics: what is checked at every access, and what is not known.

#include <stdexcept>

#include "self_test.hpp"

namespace ptx_test {
namespace {

void expect_error(const std::string& body, const std::string& what, std::vector<u8> memory = std::vector<u8>(256)) {
    std::string error = run_body(body, memory);
    EXPECT_NE(error.find(what), std::string::npos) << body << ": " << error;
}

TEST(Memory, AccessesAreChecked) {
    expect_error("ld.global.u32 %r1, [%rd0+256];", "in no allocation");
    expect_error("ld.global.v2.u32 {%r1, %r2}, [%rd0+252];", "misaligned");
    expect_error("ld.global.u32 %r1, [%rd0+2];", "misaligned");
    expect_error("mov.u64 %rd1, skc_shared;\nst.shared.u32 [%rd1+4096], %r0;",
                 "shared access of 4 bytes at offset 4096");
    expect_error("mov.u64 %rd1, skc_shared;\nst.shared.u32 [%rd1+1], %r0;", "misaligned");
    expect_error("mov.u64 %rd1, 0;\nld.shared.u32 %r1, [%rd1];", "shared access");
    expect_error("ld.param.u64 %rd1, [k_param_0+8];", "outside the parameters");
}

TEST(Memory, ElementsAreExtended) {
    std::vector<u8> memory(256, 0x80);
    EXPECT_EQ(run_body(R"(
	ld.global.s8 %r1, [%rd0];
	ld.global.u16 %r2, [%rd0];
	setp.ne.u32 %p1, %r0, 0;
	@%p1 bra END;
	st.global.v2.u32 [%rd0+8], {%r1, %r2};
	st.global.u8 [%rd0+17], %r0;
END:
)",
                       memory),
              "");
    u32 words[4];
    std::memcpy(words, &memory[8], 16);
    EXPECT_EQ(words[0], 0xffffff80u);
    EXPECT_EQ(words[1], 0x8080u);
    EXPECT_EQ(words[2], 0x80800080u);
}

TEST(Memory, Atomics) {
    std::vector<u8> memory(256);
    // A counter that wraps after 9, from four warps of two blocks.
    Shape shape;
    shape.threads = 128;
    shape.blocks = 2;
    EXPECT_EQ(run_body("atom.acq_rel.gpu.inc.u32 %r1, [%rd0], 9;", memory, shape), "");
    u32 count;
    std::memcpy(&count, memory.data(), 4);
    EXPECT_EQ(count, 256 % 10u);
    // Each gets what another has put there: all but one of the values, and the first.
    memory.assign(256, 0);
    EXPECT_EQ(run_body(R"(
	add.u32 %r1, %r0, 1;
	atom.acq_rel.gpu.exch.b32 %r2, [%rd0], %r1;
	mul.wide.u32 %rd1, %r2, 4;
	add.s64 %rd2, %rd0, %rd1;
	st.global.u32 [%rd2+4], %r1;
)",
                       memory),
              "");
    u32 words[40];
    std::memcpy(words, memory.data(), sizeof words);
    u32 sum = words[0];
    for (u32 at = 0; at <= 32; ++at) sum += at == words[0] ? 0 : at;
    EXPECT_EQ(sum, 32 * 33 / 2u);
    for (u32 at = 0; at <= 32; ++at) EXPECT_EQ(words[1 + at] == 0, at == words[0]);
}

TEST(Memory, UnknownInstructionsAreErrors) {
    std::vector<u8> memory(64);
    for (const char* body :
         {"add.sat.s32 %r1, %r2, %r3;", "fence.acq_rel.gpu;", "atom.acq_rel.gpu.cas.b32 %r1, [%rd0], %r2;",
          "cp.async.cg.shared.global [%r1], [%rd0], 8, %r2;", "ld.volatile.global.u32 %r1, [%rd0];",
          "cvt.rmi.f32.f32 %f1, %f2;", "add.u32 %r1, %r2, %rd1;", "bar.sync 1;"}) {
        EXPECT_THROW(run_body(body, memory), std::runtime_error) << body;
    }
}

}  // namespace
}  // namespace ptx_test
