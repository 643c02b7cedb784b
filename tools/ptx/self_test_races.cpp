// The race detector: what is ordered passes, what is not is found whatever order the threads happen to run in.

#include "self_test.hpp"

namespace ptx_test {
namespace {

std::string run(const std::string& body, const Shape& shape) {
    std::vector<u8> memory(4096);
    return run_body(body, memory, shape);
}

// Under several seeds: a race does not depend on the order in which threads run.
void expect_race(const std::string& body, const std::string& kind, Shape shape) {
    for (shape.seed = 1; shape.seed <= 5; ++shape.seed) {
        std::string error = run(body, shape);
        EXPECT_NE(error.find("RACE"), std::string::npos) << body;
        EXPECT_NE(error.find(kind), std::string::npos) << error;
    }
}

void expect_ordered(const std::string& body, Shape shape) {
    for (shape.seed = 1; shape.seed <= 5; ++shape.seed) EXPECT_EQ(run(body, shape), "") << body;
}

const Shape kWarp{};
const Shape kBlock{128, 1, 4096, false, 1};
const Shape kBlocks{32, 4, 4096, false, 1};

// Every thread writes a word of shared memory and reads that of thread (t ^ mask).
std::string exchange(const std::string& between, u32 mask) {
    return R"(
	mov.u64 %rd1, skc_shared;
	mul.wide.u32 %rd2, %r0, 4;
	add.s64 %rd3, %rd1, %rd2;
	xor.b32 %r1, %r0, )" +
           std::to_string(mask) + R"(;
	mul.wide.u32 %rd4, %r1, 4;
	add.s64 %rd5, %rd1, %rd4;
	st.shared.u32 [%rd3], %r0;
	)" +
           between + "\n\tld.shared.u32 %r2, [%rd5];\n";
}

TEST(Races, InSharedMemory) {
    expect_ordered(exchange("bar.warp.sync -1;", 1), kWarp);
    expect_ordered(exchange("bar.sync 0;", 32), kBlock);
    expect_ordered(exchange("", 0), kBlock);
    expect_race(exchange("", 1), "shared read", kWarp);
    expect_race(exchange("shfl.sync.idx.b32 %r3, %r0, 0, 31, -1;", 1), "shared read", kWarp);  // orders no memory
    expect_race(exchange("bar.warp.sync -1;", 32), "shared", kBlock);
    expect_race(exchange("bar.sync 0;", 32) + "st.shared.u32 [%rd3], %r0;", "shared", kBlock);
}

TEST(Races, OfNeighbouringBytesAreNone) {
    expect_ordered("cvt.u64.u32 %rd1, %r0;\nadd.s64 %rd2, %rd0, %rd1;\nst.global.u8 [%rd2], %r0;", kWarp);
    expect_race("shr.u32 %r1, %r0, 1;\ncvt.u64.u32 %rd1, %r1;\nadd.s64 %rd2, %rd0, %rd1;\nst.global.u8 [%rd2], %r0;",
                "global write after write", kWarp);
}

// Block b writes word b; the last one to arrive at the counter reads all of them.
std::string last_block(const std::string& arrive) {
    return R"(
	mov.u32 %r1, %ctaid.x;
	mul.wide.u32 %rd1, %r1, 4;
	add.s64 %rd2, %rd0, %rd1;
	setp.ne.u32 %p1, %r0, 0;
	@%p1 bra END;
	st.global.u32 [%rd2+64], %r1;
	)" +
           arrive + R"(
	setp.ne.u32 %p1, %r2, 3;
	@%p1 bra END;
	ld.global.u32 %r3, [%rd0+64];
	ld.global.u32 %r3, [%rd0+68];
	ld.global.u32 %r3, [%rd0+72];
	ld.global.u32 %r3, [%rd0+76];
END:
)";
}

TEST(Races, BetweenBlocks) {
    expect_ordered(last_block("atom.acq_rel.gpu.inc.u32 %r2, [%rd0], 3;"), kBlocks);
    expect_race(last_block("atom.relaxed.gpu.inc.u32 %r2, [%rd0], 3;"), "global read after write", kBlocks);
}

// Lane t of block b writes word t of b; in the last block to arrive lane t reads what lanes t ^ 1 of all have written.
std::string last_warp(const std::string& before_release, const std::string& after_acquire) {
    return R"(
	mov.u32 %r1, %ctaid.x;
	mul.wide.u32 %rd1, %r1, 128;
	add.s64 %rd2, %rd0, %rd1;
	mul.wide.u32 %rd3, %r0, 4;
	add.s64 %rd2, %rd2, %rd3;
	xor.b32 %r4, %r0, 1;
	mul.wide.u32 %rd4, %r4, 4;
	add.s64 %rd5, %rd0, %rd4;
	st.global.u32 [%rd2+64], %r1;
	)" +
           before_release + R"(
	mov.u32 %r2, 0;
	setp.ne.u32 %p1, %r0, 0;
	@%p1 bra ARRIVED;
	atom.acq_rel.gpu.inc.u32 %r2, [%rd0], 3;
ARRIVED:
	shfl.sync.idx.b32 %r2, %r2, 0, 31, -1;
	setp.ne.u32 %p1, %r2, 3;
	@%p1 bra END;
	)" +
           after_acquire + R"(
	ld.global.u32 %r3, [%rd5+64];
	ld.global.u32 %r3, [%rd5+192];
	ld.global.u32 %r3, [%rd5+320];
	ld.global.u32 %r3, [%rd5+448];
END:
)";
}

TEST(Races, BetweenWarpsOfBlocks) {
    const std::string barrier = "bar.warp.sync -1;";
    expect_ordered(last_warp(barrier, barrier), kBlocks);
    expect_race(last_warp("", barrier), "global read after write", kBlocks);
    expect_race(last_warp(barrier, ""), "global read after write", kBlocks);
}

// Blocks add to a word, one after the other: the lock is taken by an exchange.
std::string locked(const std::string& unlock) {
    return R"(
	setp.ne.u32 %p1, %r0, 0;
	@%p1 bra END;
LOCK:
	atom.acq_rel.gpu.exch.b32 %r1, [%rd0], 1;
	setp.ne.u32 %p2, %r1, 0;
	@%p2 bra LOCK;
	ld.global.u32 %r2, [%rd0+64];
	add.u32 %r2, %r2, 1;
	st.global.u32 [%rd0+64], %r2;
	)" +
           unlock + "\nEND:\n";
}

TEST(Races, UnderALock) {
    expect_ordered(locked("atom.acq_rel.gpu.exch.b32 %r1, [%rd0], 0;"), kBlocks);
    expect_race(locked("atom.relaxed.gpu.exch.b32 %r1, [%rd0], 0;"), "global", kBlocks);
    std::vector<u8> memory(4096);
    EXPECT_EQ(run_body(locked("atom.acq_rel.gpu.exch.b32 %r1, [%rd0], 0;"), memory, kBlocks), "");
    EXPECT_EQ(memory[64], 4);
}

// Block 0 writes a word and then a flag; the others wait for the flag and read the word.
std::string message(const std::string& after_write, const std::string& before_read) {
    return R"(
	setp.ne.u32 %p1, %r0, 0;
	@%p1 bra END;
	mov.u32 %r1, %ctaid.x;
	setp.ne.u32 %p1, %r1, 0;
	@%p1 bra WAIT;
	st.global.u32 [%rd0+64], %r1;
	)" +
           after_write + R"(
	st.relaxed.sys.u32 [%rd0], 1;
	bra END;
WAIT:
	ld.relaxed.sys.u32 %r2, [%rd0];
	setp.eq.u32 %p1, %r2, 0;
	@%p1 bra WAIT;
	)" +
           before_read + "\n\tld.global.u32 %r3, [%rd0+64];\nEND:\n";
}

TEST(Races, FencesAndRelaxedAccesses) {
    // All blocks must run at the same time: those that wait do so for block 0, which begins after them in some orders.
    Shape two{32, 2, 4096, false, 1};
    for (two.seed = 1; two.seed <= 5; ++two.seed) {
        EXPECT_EQ(run(message("fence.sc.sys;", "fence.sc.sys;"), two), "");
        EXPECT_NE(run(message("", "fence.sc.sys;"), two).find("global read after write"), std::string::npos);
        EXPECT_NE(run(message("fence.sc.sys;", ""), two).find("global read after write"), std::string::npos);
    }
}

TEST(Races, ProgrammaticLaunchesWaitFirst) {
    Shape programmatic{32, 1, 4096, true, 1};
    std::string store = "mul.wide.u32 %rd1, %r0, 4;\nadd.s64 %rd2, %rd0, %rd1;\nst.global.u32 [%rd2], %r0;";
    expect_ordered("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;\n" + store, programmatic);
    expect_race(store + "\ngriddepcontrol.wait;", "before griddepcontrol.wait", programmatic);
    expect_race("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n" + store, "before griddepcontrol.wait",
                programmatic);
}

}  // namespace
}  // namespace ptx_test
