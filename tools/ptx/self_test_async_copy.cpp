// cp.async: data is there after the wait of its own thread, and not before.

#include "self_test.hpp"

namespace ptx_test {
namespace {

// Every lane copies `size` bytes, of which it reads `read`; then `between`; then it reads what its neighbour has
// copied.
std::string neighbour(u32 size, u32 read, const std::string& between) {
    std::string by = size == 16 ? "cg" : "ca";
    return R"(
	mul.wide.u32 %rd1, %r0, 16;
	add.s64 %rd2, %rd0, %rd1;
	mov.u64 %rd3, skc_shared;
	cvt.u32.u64 %r1, %rd3;
	shl.b32 %r2, %r0, 4;
	add.s32 %r3, %r1, %r2;
	mov.u32 %r4, )" +
           std::to_string(read) + ";\n\tcp.async." + by + ".shared.global [%r3], [%rd2], " + std::to_string(size) +
           ", %r4;\n\tcp.async.commit_group;\n\t" + between + R"(
	xor.b32 %r5, %r2, 16;
	cvt.u64.u32 %rd4, %r5;
	add.s64 %rd5, %rd3, %rd4;
	ld.shared.u32 %r6, [%rd5];
	st.global.u32 [%rd2+512], %r6;
	cp.async.wait_group 0;
)";
}

// Whether every lane has got its neighbour's word, or zeros.
bool arrived(const std::string& body, bool zeros, std::string& error) {
    std::vector<u8> memory(1024);
    for (u32 k = 0; k < 32; ++k) {
        u32 word = 1000 + k;
        std::memcpy(&memory[16 * k], &word, 4);
    }
    error = run_body(body, memory);
    bool all = true;
    for (u32 k = 0; k < 32; ++k) {
        u32 word;
        std::memcpy(&word, &memory[512 + 16 * k], 4);
        all = all && word == (zeros ? 0 : 1000 + (k ^ 1));
    }
    return all;
}

TEST(AsyncCopy, OfEverySize) {
    std::string error;
    for (u32 size : {4, 8, 16}) {
        EXPECT_TRUE(arrived(neighbour(size, size, "cp.async.wait_group 0;\n\tbar.warp.sync -1;"), false, error));
        EXPECT_EQ(error, "");
        EXPECT_TRUE(arrived(neighbour(size, 0, "cp.async.wait_group 0;\n\tbar.warp.sync -1;"), true, error));
        EXPECT_EQ(error, "");
    }
}

TEST(AsyncCopy, IsNotThereBeforeTheWait) {
    std::string error;
    EXPECT_FALSE(arrived(neighbour(16, 16, "bar.warp.sync -1;"), false, error));
    EXPECT_NE(error.find("shared read while a cp.async to it is on its way"), std::string::npos) << error;
    // One group may still be on its way: it is this one.
    EXPECT_FALSE(arrived(neighbour(4, 4, "cp.async.wait_group 1;\n\tbar.warp.sync -1;"), false, error));
}

TEST(AsyncCopy, OfAnotherThreadNeedsABarrierToo) {
    std::string error;
    arrived(neighbour(16, 16, "cp.async.wait_group 0;"), false, error);
    EXPECT_NE(error.find("shared read after write"), std::string::npos) << error;
}

TEST(AsyncCopy, AddressesAreChecked) {
    std::vector<u8> memory(1024);
    std::string head = "mov.u64 %rd3, skc_shared;\ncvt.u32.u64 %r1, %rd3;\nmov.u32 %r4, 8;\n";
    EXPECT_NE(run_body(head + "add.s64 %rd1, %rd0, 4;\ncp.async.ca.shared.global [%r1], [%rd1], 8, %r4;", memory)
                  .find("not aligned to 8"),
              std::string::npos);
    EXPECT_NE(run_body(head + "add.u32 %r1, %r1, 4;\ncp.async.ca.shared.global [%r1], [%rd0], 8, %r4;", memory)
                  .find("misaligned"),
              std::string::npos);
    EXPECT_NE(run_body(head + "cp.async.ca.shared.global [%r1], [%rd0], 4, %r4;", memory).find("above cp-size"),
              std::string::npos);
    EXPECT_NE(run_body(head + "setp.eq.u32 %p1, %r0, 0;\n@%p1 cp.async.ca.shared.global [%r1], [%rd0], 8, %r4;", memory)
                  .find("ended with a cp.async on its way"),
              std::string::npos);
}

}  // namespace
}  // namespace ptx_test
