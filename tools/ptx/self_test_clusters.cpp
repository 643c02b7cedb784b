// Clusters of blocks: barrier.cluster, mapa and loads from other blocks' shared memory, and what the race detector
// makes of them.

#include <stdexcept>

#include "self_test.hpp"

namespace ptx_test {
namespace {

const Shape kClusters{64, 8, 4096, false, 1, 4};
const std::string kBarrier = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n";

// Every thread of block b writes 100 b + its index to shared memory, reads what thread t ^ 32 of the next block of the
// cluster has written, and stores it to word t of its block in the buffer.
std::string read_next(const std::string& before, const std::string& after) {
    return R"(
	mov.u32 %r1, %ctaid.x;
	mul.lo.u32 %r2, %r1, 100;
	add.u32 %r2, %r2, %r0;
	mov.u32 %r3, skc_shared;
	shl.b32 %r4, %r0, 2;
	add.u32 %r5, %r3, %r4;
	st.shared.u32 [%r5], %r2;
	)" + before +
           R"(
	mov.u32 %r6, %cluster_ctarank;
	mov.u32 %r7, %cluster_nctarank;
	add.u32 %r6, %r6, 1;
	sub.u32 %r8, %r7, 1;
	and.b32 %r6, %r6, %r8;
	xor.b32 %r9, %r4, 128;
	add.u32 %r9, %r3, %r9;
	mapa.shared::cluster.u32 %r10, %r9, %r6;
	ld.shared::cluster.u32 %r11, [%r10];
	)" + after +
           R"(
	mul.wide.u32 %rd1, %r1, 256;
	add.s64 %rd2, %rd0, %rd1;
	mul.wide.u32 %rd3, %r0, 4;
	add.s64 %rd2, %rd2, %rd3;
	st.global.u32 [%rd2], %r11;
)";
}

// Whatever order the threads run in.
void expect_error(const std::string& body, const std::string& what, Shape shape = kClusters) {
    for (shape.seed = 1; shape.seed <= 8; ++shape.seed) {
        std::vector<u8> memory(4096);
        std::string error = run_body(body, memory, shape);
        EXPECT_NE(error.find(what), std::string::npos) << error;
    }
}

TEST(Clusters, ReadEachOthersSharedMemory) {
    for (u32 size : {1, 2, 4, 8}) {
        Shape shape = kClusters;
        shape.cluster = size;
        for (shape.seed = 1; shape.seed <= 8; ++shape.seed) {
            std::vector<u8> memory(4096);
            ASSERT_EQ(run_body(read_next(kBarrier, kBarrier), memory, shape), "") << size;
            for (u32 block = 0; block < 8; ++block) {
                u32 next = block / size * size + (block + 1) % size;
                for (u32 t = 0; t < 64; ++t) {
                    u32 word;
                    std::memcpy(&word, &memory[256 * block + 4 * t], 4);
                    ASSERT_EQ(word, 100 * next + (t ^ 32)) << "block " << block << " of clusters of " << size;
                }
            }
        }
    }
}

TEST(Clusters, AReadBeforeTheBarrierIsARace) {
    expect_error(read_next("", kBarrier), "another block");
    expect_error(read_next("bar.sync 0;\n", kBarrier), "another block");
}

TEST(Clusters, ABlockMayNotEndWhileItIsRead) {
    expect_error(read_next(kBarrier, ""), "ended");
}

TEST(Clusters, AWriteAfterAnothersReadNeedsABarrier) {
    expect_error(read_next(kBarrier, "st.shared.u32 [%r5], %r2;\n" + kBarrier), "another block of the cluster");
    std::vector<u8> memory(4096);
    EXPECT_EQ(run_body(read_next(kBarrier, kBarrier + "st.shared.u32 [%r5], %r2;\n"), memory, kClusters), "");
}

// Block 0 of each cluster writes a word of the buffer that the others read.
std::string message(const std::string& between) {
    return R"(
	mov.u32 %r1, %cluster_ctarank;
	or.b32 %r2, %r1, %r0;
	mov.u32 %r3, %ctaid.x;
	shr.u32 %r4, %r3, 2;
	mul.wide.u32 %rd1, %r4, 4;
	add.s64 %rd2, %rd0, %rd1;
	setp.ne.u32 %p1, %r2, 0;
	@%p1 bra WRITTEN;
	st.global.u32 [%rd2], %r3;
WRITTEN:
	)" + between +
           "\n\tld.global.u32 %r5, [%rd2];\n";
}

TEST(Clusters, TheBarrierOrdersDeviceMemory) {
    std::vector<u8> memory(4096);
    EXPECT_EQ(run_body(message(kBarrier), memory, kClusters), "");
    expect_error(message("bar.sync 0;\n"), "global");
}

TEST(Clusters, WrongUsesAreErrors) {
    // An address of the block's own window, as other instructions have it, is no other block's.
    expect_error(read_next(kBarrier, "ld.shared.u32 %r12, [%r10];\n" + kBarrier), "shared access");
    expect_error(read_next(kBarrier, "mapa.shared::cluster.u32 %r12, %r9, 4;\n" + kBarrier), "has no block 4");
    expect_error("barrier.cluster.wait.acquire.aligned;", "do not alternate");
    expect_error("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.arrive.release.aligned;",
                 "do not alternate");
    expect_error("barrier.cluster.arrive.release.aligned;\nld.global.u32 %r1, [%rd0];\n"
                 "barrier.cluster.wait.acquire.aligned;",
                 "is not done");
    // One block does not come.
    expect_error("mov.u32 %r1, %cluster_ctarank;\nsetp.eq.u32 %p1, %r1, 2;\n@%p1 bra END;\n" + kBarrier + "END:\n",
                 "have ended");
    // One warp waits for its block only.
    expect_error("setp.lt.u32 %p1, %r0, 32;\n@%p1 bra BLOCK;\n" + kBarrier + "bra END;\nBLOCK:\nbar.sync 0;\nEND:\n",
                 "for ever");
    std::vector<u8> memory(64);
    for (const char* unknown : {"barrier.cluster.arrive;", "barrier.cluster.wait.aligned;",
                                "st.shared::cluster.u32 [%r1], %r0;", "mapa.u64 %rd1, %rd0, 0;"}) {
        EXPECT_THROW(run_body(unknown, memory), std::runtime_error) << unknown;
    }
}

}  // namespace
}  // namespace ptx_test
