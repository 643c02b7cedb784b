// What a warp does together: a product of matrices that goes the documented way (rows in shared memory, ldmatrix, mma,
// accumulators stored by their documented rows and columns), movmatrix, shuffles, votes.

#include "instruction_table.hpp"
#include "random.hpp"
#include "self_test.hpp"

namespace ptx_test {
namespace {

// A: 16 rows of 16 halves. B as [n][k]: 8 rows of 16. The product goes to 1024: 16 x 8 floats. The first matrix of B
// goes to 2048, transposed by movmatrix, and to 2304, transposed by ldmatrix.
const char* const kProduct = R"(
	mov.u64 %rd1, %rd0;
	mov.u32 %r1, %r0;
	mul.wide.u32 %rd2, %r1, 16;
	add.s64 %rd3, %rd1, %rd2;
	mov.u64 %rd4, skc_shared;
	add.s64 %rd5, %rd4, %rd2;
	ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd3];
	st.shared.v4.u32 [%rd5], {%r2, %r3, %r4, %r5};
	ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd3+512];
	st.shared.v4.u32 [%rd5+512], {%r2, %r3, %r4, %r5};
	bar.sync 0;
	and.b32 %r6, %r1, 15;
	shr.u32 %r7, %r1, 4;
	shl.b32 %r8, %r6, 5;
	shl.b32 %r9, %r7, 4;
	cvt.u32.u64 %r10, %rd4;
	add.s32 %r11, %r10, %r8;
	add.s32 %r11, %r11, %r9;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r12, %r13, %r14, %r15}, [%r11];
	and.b32 %r16, %r1, 7;
	shr.u32 %r17, %r1, 3;
	and.b32 %r17, %r17, 1;
	shl.b32 %r18, %r16, 5;
	shl.b32 %r19, %r17, 4;
	add.s32 %r20, %r10, %r18;
	add.s32 %r20, %r20, %r19;
	add.s32 %r20, %r20, 512;
	ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r21, %r22}, [%r20];
	mov.f32 %f1, 0f00000000;
	mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32 {%f2, %f3, %f4, %f5},
		{%r12, %r13, %r14, %r15}, {%r21, %r22}, {%f1, %f1, %f1, %f1};
	shr.u32 %r23, %r1, 2;
	and.b32 %r24, %r1, 3;
	shl.b32 %r25, %r23, 5;
	shl.b32 %r26, %r24, 3;
	add.s32 %r27, %r25, %r26;
	cvt.u64.u32 %rd6, %r27;
	add.s64 %rd7, %rd1, %rd6;
	st.global.v2.f32 [%rd7+1024], {%f2, %f3};
	st.global.v2.f32 [%rd7+1280], {%f4, %f5};
	movmatrix.sync.aligned.m8n8.trans.b16 %r28, %r21;
	ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r29, %r30}, [%r20];
	shl.b32 %r31, %r1, 2;
	cvt.u64.u32 %rd8, %r31;
	add.s64 %rd9, %rd1, %rd8;
	st.global.u32 [%rd9+2048], %r28;
	st.global.u32 [%rd9+2304], %r29;
)";

class Product : public testing::TestWithParam<bool> {};

std::string product(bool bf16) {
    std::string body = kProduct, type = bf16 ? "bf16" : "f16";
    body.replace(body.find(".T.T."), 5, "." + type + "." + type + ".");
    return body;
}

TEST_P(Product, OfMatrices) {
    bool bf16 = GetParam();
    std::vector<u8> memory(4096);
    auto* halves = reinterpret_cast<u16*>(memory.data());
    float a[16][16], b[16][8];
    skc_shim::Random random(7);
    auto draw = [&](u16* to) {
        float x = static_cast<float>(static_cast<int>(random.below(127)) - 63) / 8.0f;
        *to = bf16 ? ptx::float_to_bf16(x) : ptx::float_to_half(x);
        return x;
    };
    for (u32 m = 0; m < 16; ++m) {
        for (u32 k = 0; k < 16; ++k) a[m][k] = draw(halves + 16 * m + k);
    }
    for (u32 n = 0; n < 8; ++n) {
        for (u32 k = 0; k < 16; ++k) b[k][n] = draw(halves + 256 + 16 * n + k);
    }
    ASSERT_EQ(run_body(product(bf16), memory), "");
    auto* d = reinterpret_cast<float*>(memory.data() + 1024);
    for (u32 m = 0; m < 16; ++m) {
        for (u32 n = 0; n < 8; ++n) {
            float sum = 0;  // exact
            for (u32 k = 0; k < 16; ++k) sum += a[m][k] * b[k][n];
            EXPECT_EQ(d[8 * m + n], sum) << m << " " << n;
        }
    }
    EXPECT_EQ(std::memcmp(memory.data() + 2048, memory.data() + 2304, 128), 0);
    // Lane 5 has rows 2 and 3 of column 1 of what is B[n][k] there.
    u32 lane5;
    std::memcpy(&lane5, memory.data() + 2048 + 4 * 5, 4);
    EXPECT_EQ(lane5, static_cast<u32>(halves[256 + 16 * 3 + 1]) << 16 | halves[256 + 16 * 2 + 1]);
}

// make ptx runs the self test with both settings.
TEST(WarpOps, ProductsAreRoundedAsSet) {
    std::vector<u8> memory(4096);
    auto* halves = reinterpret_cast<u16*>(memory.data());
    // 2^24 and seven quarters. Aligned to the largest and cut off at 24 bits, a quarter is nothing.
    for (u32 k = 0; k < 8; ++k) halves[k] = halves[256 + k] = ptx::float_to_half(k == 0 ? 4096.0f : 0.5f);
    ASSERT_EQ(run_body(product(false), memory), "");
    float sum;
    std::memcpy(&sum, memory.data() + 1024, 4);
    EXPECT_EQ(sum, ptx::Options::get().mma == 1 ? 16777216.0f : 16777218.0f);
}

INSTANTIATE_TEST_SUITE_P(Types, Product, testing::Bool());

std::vector<std::array<u32, 3>> lanes() {
    std::vector<std::array<u32, 3>> all;
    for (u32 l = 0; l < 32; ++l) all.push_back({100 + l, l, 0});
    return all;
}

TEST(WarpOps, Shuffles) {
    auto xored = run_lanes("shfl.sync.bfly.b32 %r4, %r1, 5, 31, -1;", lanes());
    auto indexed = run_lanes("shfl.sync.idx.b32 %r4, %r1, 3, 31, -1;", lanes());
    auto up = run_lanes("shfl.sync.up.b32 %r4|%p1, %r1, 2, 0, -1;\n@!%p1 mov.u32 %r4, 0;", lanes());
    auto down = run_lanes("shfl.sync.down.b32 %r4, %r1, 1, 0x181f, -1;", lanes());
    for (u32 l = 0; l < 32; ++l) {
        EXPECT_EQ(xored[l], 100 + (l ^ 5));
        EXPECT_EQ(indexed[l], 103u);
        EXPECT_EQ(up[l], l < 2 ? 0 : 98 + l);
        EXPECT_EQ(down[l], l % 8 == 7 ? 100 + l : 101 + l);  // in segments of eight lanes
    }
}

TEST(WarpOps, Votes) {
    auto any =
        run_lanes("setp.eq.u32 %p1, %r2, 9;\nvote.sync.any.pred %p2, %p1, -1;\nselp.u32 %r4, 1, 0, %p2;", lanes());
    auto all =
        run_lanes("setp.ne.u32 %p1, %r2, 9;\nvote.sync.all.pred %p2, %p1, -1;\nselp.u32 %r4, 1, 0, %p2;", lanes());
    for (u32 l = 0; l < 32; ++l) {
        EXPECT_EQ(any[l], 1u);
        EXPECT_EQ(all[l], 0u);
    }
}

TEST(WarpOps, LanesThatNeverMeetAreAnError) {
    std::vector<u8> memory(64);
    std::string error = run_body(R"(
	setp.lt.u32 %p1, %r0, 16;
	@%p1 bra A;
	bar.warp.sync -1;
	bra B;
A:
	shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;
B:
)",
                                 memory);
    EXPECT_NE(error.find("lanes wait at different places"), std::string::npos) << error;
    error = run_body("setp.lt.u32 %p1, %r0, 16;\n@%p1 bar.sync 0;", memory);
    EXPECT_NE(error.find("under a guard"), std::string::npos) << error;
}

}  // namespace
}  // namespace ptx_test
