// The stand-in NVRTC.

#include "self_test.hpp"

namespace {

TEST(Compiler, reports_errors) {
    Compilation bad = compile("SKC_KERNEL(32, test, Nothing) {}");
    EXPECT_EQ(bad.code, 6);
    EXPECT_NE(bad.log.find("Nothing"), std::string::npos) << bad.log;
    EXPECT_EQ(compile(kAdd, {"--gpu-architecture=sm_70"}).code, 5);
    EXPECT_EQ(compile(kAdd, {"--gpu-architecture=sm_90", "--no-such-option"}).code, 5);
    Compilation ptx = compile(kAdd, {"--gpu-architecture=compute_90"});
    EXPECT_EQ(ptx.code, 0);
    EXPECT_EQ(ptx.cubin.size(), 0u);
    Compilation macros = compile("#if A != 3 || B != 1\n#error macros\n#endif\n",
                                 {"--gpu-architecture=sm_90", "-DA=3", "--define-macro=B"});
    EXPECT_EQ(macros.code, 0) << macros.log;
}

}  // namespace
