// The hash that files and models are told apart by.
#include "hash.hpp"

#include <gtest/gtest.h>

#include <set>
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

TEST(Hash, EveryBitChangesItAndHalfOfItsBits) {
    std::string bytes = counted(200);
    const Digest before = Hash().add(bytes).digest();
    std::size_t changed = 0;
    for (std::size_t bit = 0; bit < 8 * bytes.size(); bit++) {
        bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
        const Digest after = Hash().add(bytes).digest();
        EXPECT_NE(after, before) << bit;
        for (std::size_t i = 0; i < after.size(); i++) {
            changed += static_cast<std::size_t>(__builtin_popcount(static_cast<unsigned>(after[i] ^ before[i])));
        }
        bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    }
    const double share = static_cast<double>(changed) / static_cast<double>(8 * bytes.size() * 8 * before.size());
    EXPECT_NEAR(share, 0.5, 0.01);
}

TEST(Hash, TellsZerosOfDifferentLengthsApart) {
    std::set<std::string> seen;
    for (std::size_t n = 0; n < 300; n++) {
        seen.insert(hex(Hash().add(std::string(n, '\0')).digest(), 8));
    }
    EXPECT_EQ(seen.size(), 300u);
}

// Parked conversations and saved chats of earlier versions must be found.
TEST(Hash, NeverChanges) {
    EXPECT_EQ(hex(Hash().digest()), "47a61d22c90d968accdc41c6f4507455c231fbf405d9e0b80f21d71d2488fad9");
    EXPECT_EQ(hex(Hash().add(counted(100)).digest()),
              "e66626b5272b5578cb0efccc75d27feb2cf1c16df7af823604061347bec3154b");
    EXPECT_EQ(hex(Hash().add("sinkcache").digest(), 4), "eaa03700");
}

TEST(Hash, OfAFileIsThatOfItsContent) {
    EXPECT_NE(programs::hash_file(MODEL), Hash().digest());
    EXPECT_EQ(programs::hash_file(MODEL), programs::hash_file(MODEL));
    EXPECT_THROW(programs::hash_file("/nowhere/model.gguf"), std::runtime_error);
    EXPECT_THROW(programs::hash_file("/"), std::runtime_error);
}
