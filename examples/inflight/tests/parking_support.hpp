// What the tests of parking share: contents that show whose they are, and a folder for a test.
#pragma once

#include "park_folder.hpp"
#include "parking.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <unistd.h>

namespace test {

using namespace inflight;
namespace fs = std::filesystem;

inline const programs::Digest TAG = programs::Hash().add("a model").digest();

/** Content that shows whose it is, and of which time. */
inline Bytes content(const std::string &name, std::uint64_t version = 0, std::size_t n = 1000) {
    std::mt19937_64 random(std::hash<std::string>()(name) + version);
    Bytes bytes(n);
    for (auto &b : bytes) {
        b = static_cast<std::uint8_t>(random());
    }
    return bytes;
}

inline std::string name(std::size_t i) { return "conversation " + std::to_string(i); }

/** A content that is taken out; nothing if it is lost or refused. */
inline std::optional<Bytes> take(Parking &parking, const std::string &name) {
    std::optional<Bytes> content;
    const auto read = [&](const Bytes &bytes) { return content = bytes, true; };
    return parking.take(name, read).how == Fetched::read ? content : std::nullopt;
}

/** The same for one that stays. */
inline std::optional<Bytes> copy(Parking &parking, const std::string &name) {
    std::optional<Bytes> content;
    const auto read = [&](const Bytes &bytes) { return content = bytes, true; };
    return parking.copy(name, read).how == Fetched::read ? content : std::nullopt;
}

class ParkingTest : public testing::Test {
protected:
    const fs::path folder = fs::path(testing::TempDir()) / ("parked-" + std::to_string(getpid()));
    Group group;

    void SetUp() override { fs::remove_all(folder); }
    void TearDown() override { fs::remove_all(folder); }

    ParkingConfig config(std::uint64_t memory, std::uint64_t disk = 0) const {
        return {memory, disk > 0 ? folder.string() : "", disk, TAG};
    }
};

}  // namespace test
