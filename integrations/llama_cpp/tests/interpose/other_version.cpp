// A host whose llama.cpp has other structs: it is told so, and gets llama.cpp's own context, if it wants to, with all
// that it has passed.
#include "fake_llama.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace {

/** As a host of that version. */
void *create(void *model) {
    FakeParams params = llama_context_default_params();
    EXPECT_EQ(params.n_ctx, 512U) << "llama.cpp's own function";
    params.n_ctx = 77;
    for (std::size_t i = 0; i < sizeof params.rest; ++i) {
        params.rest[i] = static_cast<unsigned char>(i);
    }
    return llama_init_from_model(model, params);
}

}  // namespace

TEST(OtherVersion, IsRefusedOrLeftAlone) {
    int model = 0;
    testing::internal::CaptureStderr();
    EXPECT_EQ(create(&model), nullptr);
    const std::string text = testing::internal::GetCapturedStderr();
    EXPECT_NE(text.find("libfake_llama.so is not the llama.cpp that this library was built for: its "
                        "llama_context_params has 168 bytes, not 160; SINKCACHE_LLAMA_UNSUPPORTED=stock"),
              std::string::npos)
        << text;

    setenv("SINKCACHE_LLAMA_UNSUPPORTED", "stock", 1);
    testing::internal::CaptureStderr();
    EXPECT_EQ(create(&model), &model);
    const std::string left = testing::internal::GetCapturedStderr();
    EXPECT_NE(left.find("168 bytes, not 160; llama.cpp goes on with its own cache"), std::string::npos) << left;
}
