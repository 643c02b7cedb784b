// Names of the types that K and V are stored in.
#include "storage_types.hpp"

#include <gtest/gtest.h>
#include <sinkcache.h>

using programs::storage_types;

TEST(StorageTypes, AreOneNameOrTwo) {
    const auto is = [](const char *text, std::uint32_t k, std::uint32_t v) {
        const auto types = storage_types(text);
        return types && types->k == k && types->v == v;
    };
    EXPECT_TRUE(is("f32", SKC_DTYPE_F32, SKC_DTYPE_F32));
    EXPECT_TRUE(is("bf16", SKC_DTYPE_BF16, SKC_DTYPE_BF16));
    EXPECT_TRUE(is("q8/q4", SKC_DTYPE_Q8, SKC_DTYPE_Q4));
    EXPECT_TRUE(is("f16/q8", SKC_DTYPE_F16, SKC_DTYPE_Q8));
}

TEST(StorageTypes, OfAnythingElseAreNone) {
    for (const char *text : {"", "/", "q8/", "/q8", "q8/q4/q4", "Q8", "q8 ", "q8_0", "f8"}) {
        EXPECT_FALSE(storage_types(text)) << text;
    }
}
