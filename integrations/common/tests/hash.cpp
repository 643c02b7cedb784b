// The hash that files and models are told apart by.
#include "hash.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

namespace {

using programs::Digest;
using programs::Hash;
using programs::hex;

std::string counted(std::size_t n) {
    std::string bytes;
    for (std::size_t i = 0; i < n; i++) {
        bytes += static_cast<char>(i * 37 + i / 251);
    }
    return bytes;
}

}  // namespace

TEST(Hash, DoesNotDependOnHowItsInputIsDivided) {
    const std::string bytes = counted(1000);
    for (std::size_t n = 0; n < 140; n++) {
        const Digest whole = Hash().add(bytes.data(), n).digest();
        for (std::size_t cut = 0; cut <= n; cut++) {
            const Digest parts = Hash().add(bytes.data(), cut).add(bytes.data() + cut, n - cut).digest();
            EXPECT_EQ(parts, whole) << n << " " << cut;
        }
    }
    Hash growing;
    for (std::size_t n = 0; n < bytes.size(); n++) {
        ASSERT_EQ(growing.digest(), Hash().add(bytes.data(), n).digest()) << n;
        growing.add(bytes.data() + n, 1);
    }
}

// Parked conversations and saved chats of earlier versions must be found. The first half is what xxh128sum prints.
TEST(Hash, NeverChanges) {
    EXPECT_EQ(hex(Hash().digest()), "99aa06d3014798d86001c324468d497fd9265cc53bb2b9ae6131b78f753823cd");
    EXPECT_EQ(hex(Hash().add(counted(100)).digest()),
              "3cf8d44c9d8993f88832c51ce4ad3fed3ffe1e49038f82d90bfe17375db2247d");
    EXPECT_EQ(hex(Hash().add("sinkcache").digest(), 4), "a61d3fdf");
}

TEST(Hash, OfAFileIsThatOfItsContent) {
    EXPECT_NE(programs::hash_file(MODEL), Hash().digest());
    EXPECT_EQ(programs::hash_file(MODEL), programs::hash_file(MODEL));
    EXPECT_THROW(programs::hash_file("/nowhere/model.gguf"), std::runtime_error);
    EXPECT_THROW(programs::hash_file("/"), std::runtime_error);
}
