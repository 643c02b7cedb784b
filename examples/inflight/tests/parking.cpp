// Where conversations rest: memory before the folder, what drops out of them, and ranks that agree.
#include "parking_support.hpp"

#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <sys/resource.h>
#include <thread>

namespace {

using namespace test;

TEST_F(ParkingTest, MemoryMovesToTheFolderAndTheOldestIsDropped) {
    const std::uint64_t file = ParkFolder::file_bytes(name(0), 1000);
    Parking parking(config(3000, 2 * file), group);
    for (std::size_t i = 0; i < 7; i++) {
        EXPECT_TRUE(parking.put(name(i), content(name(i)), false));
        EXPECT_FALSE(parking.on_disk(name(i)));
    }
    const ParkingCounters &n = parking.counters();
    EXPECT_EQ(n.in_memory, 3u);
    EXPECT_EQ(n.memory_bytes, 3000u);
    EXPECT_EQ(n.on_disk, 2u);
    EXPECT_EQ(n.disk_bytes, 2 * file);
    EXPECT_EQ(n.parked, 7u);
    EXPECT_EQ(n.written, 4u);
    EXPECT_EQ(n.dropped, 2u);
    for (std::size_t i = 0; i < 7; i++) {
        EXPECT_EQ(parking.contains(name(i)), i >= 2) << i;
    }
    EXPECT_TRUE(parking.on_disk(name(2)));
    EXPECT_TRUE(parking.on_disk(name(3)));
    // A copy stays, what is taken does not.
    for (const std::size_t i : {3, 5}) {
        EXPECT_EQ(copy(parking, name(i)), content(name(i)));
        EXPECT_EQ(take(parking, name(i)), content(name(i)));
        EXPECT_EQ(take(parking, name(i)), std::nullopt);
    }
    EXPECT_EQ(n.memory_hits, 2u);
    EXPECT_EQ(n.disk_hits, 2u);
    EXPECT_EQ(n.misses, 2u);
    EXPECT_EQ(n.in_memory, 2u);
    EXPECT_EQ(n.on_disk, 1u);
    // Larger than memory: to the folder at once. Larger than both: nowhere, and an earlier state is gone.
    Parking small(config(100), group);
    EXPECT_FALSE(small.put("a", content("a"), true));
    EXPECT_FALSE(small.put("a", std::nullopt, true));
    EXPECT_FALSE(parking.put(name(6), content(name(6), 1, 10'000), false));
    EXPECT_FALSE(parking.contains(name(6)));
    EXPECT_TRUE(parking.put(name(2), content(name(2), 1, 1500), false));
    EXPECT_EQ(take(parking, name(2)), content(name(2), 1, 1500));
}

TEST_F(ParkingTest, WhatIsWantedIsNotDropped) {
    const std::uint64_t file = ParkFolder::file_bytes(name(0), 1000);
    Parking parking(config(2000, 2 * file), group);
    EXPECT_TRUE(parking.put(name(0), content(name(0)), true));
    for (std::size_t i = 1; i < 9; i++) {
        EXPECT_TRUE(parking.put(name(i), content(name(i)), i == 1 || i == 8));
    }
    EXPECT_TRUE(parking.contains(name(0)));
    EXPECT_TRUE(parking.contains(name(1)));
    parking.set_wanted(name(7), true);
    // Four are wanted: there is no room for a fifth, and none of them is lost.
    EXPECT_FALSE(parking.put(name(9), content(name(9)), true));
    EXPECT_EQ(parking.counters().in_memory + parking.counters().on_disk, 4u);
    parking.set_wanted(name(0), false);
    EXPECT_TRUE(parking.put(name(9), content(name(9)), true));
    EXPECT_FALSE(parking.contains(name(0)));
    for (const std::size_t i : {1, 7, 8, 9}) {
        EXPECT_EQ(take(parking, name(i)), content(name(i))) << i;
    }
}

TEST_F(ParkingTest, ARestartFindsWhatIsInTheFolder) {
    {
        Parking parking(config(2000, 100'000), group);
        for (std::size_t i = 0; i < 6; i++) {
            EXPECT_TRUE(parking.put(name(i), content(name(i)), true));
        }
        EXPECT_EQ(take(parking, name(1)), content(name(1)));
    }
    {
        Parking parking(config(2000, 100'000), group);
        EXPECT_EQ(parking.counters().on_disk, 3u);
        for (std::size_t i = 0; i < 6; i++) {
            EXPECT_EQ(parking.contains(name(i)), i == 0 || i == 2 || i == 3) << i;
        }
        // What is in memory goes to the folder before the end.
        EXPECT_TRUE(parking.put(name(5), content(name(5), 5), true));
        parking.move_to_disk();
        EXPECT_EQ(parking.counters().in_memory, 0u);
        EXPECT_EQ(parking.counters().memory_bytes, 0u);
    }
    // With less disk the newest stay.
    Parking parking(config(0, 2 * ParkFolder::file_bytes(name(0), 1000)), group);
    EXPECT_EQ(parking.counters().on_disk, 2u);
    EXPECT_EQ(take(parking, name(3)), content(name(3)));
    EXPECT_EQ(take(parking, name(5)), content(name(5), 5));
    // New files are newer than all before.
    EXPECT_TRUE(parking.put("new", content("new"), false));
    EXPECT_GT(parking.counters().disk_bytes, 0u);
}

TEST_F(ParkingTest, ADamagedFileIsAMissOnceAndGone) {
    Parking parking(config(0, 100'000), group);
    ASSERT_TRUE(parking.put("a", content("a"), false));
    ASSERT_TRUE(parking.put("b", content("b"), false));
    for (const auto &entry : fs::directory_iterator(folder)) {
        if (entry.path().extension() == ".parked") {
            fs::resize_file(entry.path(), 500);
        }
    }
    EXPECT_EQ(copy(parking, "a"), std::nullopt);
    EXPECT_FALSE(parking.contains("a"));
    EXPECT_EQ(take(parking, "b"), std::nullopt);
    EXPECT_FALSE(parking.contains("b"));
    EXPECT_EQ(parking.counters().damaged, 2u);
    EXPECT_EQ(parking.counters().misses, 2u);
    EXPECT_EQ(parking.counters().disk_bytes, 0u);
    EXPECT_TRUE(parking.put("a", content("a", 1), false));
    EXPECT_EQ(take(parking, "a"), content("a", 1));
}

// A reader that has no room, a process without memory or files: the content stays, in memory and on disk.
TEST_F(ParkingTest, WhatIsNotDamagedStaysWhenItCannotBeRead) {
    Parking parking(config(1000, 100'000), group);
    ASSERT_TRUE(parking.put("on disk", content("on disk"), false));
    ASSERT_TRUE(parking.put("in memory", content("in memory"), false));
    const Reader no_room = [](const Bytes &) -> bool { throw std::runtime_error("no room"); };
    const Reader no_memory = [](const Bytes &) -> bool { throw std::bad_alloc(); };
    for (const std::string name : {"on disk", "in memory"}) {
        ASSERT_EQ(parking.on_disk(name), name == "on disk");
        for (const bool takes : {true, false}) {
            for (const auto &[read, reason] : {std::pair(no_room, "no room"), {no_memory, "out of memory"}}) {
                const Fetched fetched = takes ? parking.take(name, read) : parking.copy(name, read);
                EXPECT_EQ(fetched.how, Fetched::refused);
                EXPECT_EQ(fetched.reason, reason);
            }
        }
    }
    EXPECT_EQ(parking.counters().misses, 8u);
    // No descriptor is left to open the file with.
    rlimit files{};
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
    const rlimit none{0, files.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    const Fetched fetched = parking.take("on disk", [](const Bytes &) { return true; });
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
    EXPECT_EQ(fetched.how, Fetched::refused);
    EXPECT_NE(fetched.reason.find("cannot be opened: Too many open files"), std::string::npos) << fetched.reason;
    EXPECT_EQ(parking.counters().misses, 9u);
    EXPECT_EQ(parking.counters().damaged + parking.counters().memory_hits + parking.counters().disk_hits, 0u);
    for (const std::string name : {"on disk", "in memory"}) {
        EXPECT_EQ(take(parking, name), content(name));
    }
    // One that its reader finds damaged is gone.
    ASSERT_TRUE(parking.put("in memory", content("in memory"), false));
    EXPECT_EQ(parking.copy("in memory", [](const Bytes &) { return false; }).how, Fetched::lost);
    EXPECT_FALSE(parking.contains("in memory"));
}

/** Against a plain list: no step loses what it should not, or finds what was dropped. */
TEST_F(ParkingTest, RandomStepsGiveWhatWasPut) {
    std::mt19937 random(5);
    for (int round = 0; round < 6; round++) {
        fs::remove_all(folder);
        const std::uint64_t memory = random() % 6000, disk = random() % 3 == 0 ? 0 : 1 + random() % 9000;
        auto parking = std::make_unique<Parking>(config(memory, disk), group);
        std::map<std::string, Bytes> put;
        for (std::uint64_t step = 0; step < 300; step++) {
            const std::string n = name(random() % 12);
            const unsigned what = random() % 10;
            if (what < 5) {
                put[n] = content(n, step, random() % 3000);
                if (!parking->put(n, put[n], what == 0)) {
                    EXPECT_FALSE(parking->contains(n));
                }
            } else if (what < 7) {
                const bool there = parking->contains(n);
                const auto got = take(*parking, n);
                ASSERT_EQ(got.has_value(), there);
                ASSERT_TRUE(!got || *got == put.at(n));
                EXPECT_FALSE(parking->contains(n));
            } else if (what == 7) {
                const auto got = copy(*parking, n);
                ASSERT_EQ(got.has_value(), parking->contains(n));
                ASSERT_TRUE(!got || *got == put.at(n));
            } else if (what == 8) {
                parking->set_wanted(n, random() % 2 == 0);
            } else if (random() % 10 == 0) {
                parking.reset();
                parking = std::make_unique<Parking>(config(memory, disk), group);
                EXPECT_EQ(parking->counters().damaged, 0u);
            }
            ASSERT_LE(parking->counters().memory_bytes, memory);
            ASSERT_LE(parking->counters().disk_bytes, disk);
        }
    }
}

// --- several ranks ---

/** Ranks that are threads of this process. */
class Threads {
public:
    explicit Threads(std::size_t n) : n_(n) {}

    class Rank : public Group {
    public:
        Rank(Threads &threads, std::size_t rank) : threads_(threads), rank_(rank) {}
        std::size_t rank() const override { return rank_; }
        std::size_t size() const override { return threads_.n_; }
        bool all(bool here) override {
            std::vector<Token> ignored;
            return threads_.meet(here, rank_, ignored);
        }
        void broadcast(std::vector<Token> &tokens) override { threads_.meet(true, rank_, tokens); }

    private:
        Threads &threads_;
        std::size_t rank_;
    };

private:
    std::size_t n_, arrived_ = 0;
    std::uint64_t meeting_ = 0;
    bool all_ = true, last_all_ = true;
    std::vector<Token> tokens_, last_tokens_;
    std::mutex mutex_;
    std::condition_variable met_;

    bool meet(bool here, std::size_t rank, std::vector<Token> &tokens) {
        std::unique_lock<std::mutex> lock(mutex_);
        all_ = all_ && here;
        if (rank == 0) {
            tokens_ = tokens;
        }
        const std::uint64_t meeting = meeting_;
        if (++arrived_ == n_) {
            arrived_ = 0;
            meeting_++;
            last_all_ = std::exchange(all_, true);
            last_tokens_ = tokens_;
            met_.notify_all();
        }
        met_.wait(lock, [&] { return meeting_ != meeting; });
        tokens = last_tokens_;
        return last_all_;
    }
};

TEST_F(ParkingTest, WhatFailsOnOneRankIsAMissOnAll) {
    constexpr std::size_t RANKS = 3;
    fs::create_directory(folder);
    // What each rank saw, which must be what rank 0 saw.
    std::vector<std::vector<std::string>> seen(RANKS);
    const auto on_ranks = [&](auto body) {
        Threads threads(RANKS);
        std::vector<std::thread> running;
        for (std::size_t r = 0; r < RANKS; r++) {
            running.emplace_back([&, r] {
                Threads::Rank rank(threads, r);
                ParkingConfig c = config(2500, 8000);
                c.folder += "/" + std::to_string(r);
                Parking parking(c, rank);
                body(parking, r);
                for (std::size_t i = 0; i < 12; i++) {
                    seen[r].push_back(name(i) + (parking.contains(name(i)) ? " is there" : " is not there"));
                }
            });
        }
        for (std::thread &t : running) {
            t.join();
        }
        for (std::size_t r = 1; r < RANKS; r++) {
            EXPECT_EQ(seen[r], seen[0]) << r;
        }
    };
    const auto shard = [](std::size_t i, std::size_t r) { return content(name(i), r); };
    on_ranks([&](Parking &parking, std::size_t r) {
        for (std::size_t i = 0; i < 9; i++) {
            EXPECT_TRUE(parking.put(name(i), shard(i, r), false));
        }
        // One rank has no memory to save it.
        EXPECT_FALSE(parking.put(name(9), r == 2 ? std::nullopt : std::optional<Bytes>(shard(9, r)), false));
        parking.move_to_disk();
        EXPECT_EQ(parking.counters().on_disk, 7u);
        EXPECT_EQ(take(parking, name(2)), shard(2, r));
        // One rank has no memory to load it.
        const Reader without_memory = [&](const Bytes &) { return r != 1 ? true : throw std::bad_alloc(); };
        const Fetched refused = parking.take(name(4), without_memory);
        EXPECT_EQ(refused.how, Fetched::refused);
        EXPECT_EQ(refused.reason, r == 1 ? "out of memory" : "another rank could not load it");
        EXPECT_EQ(take(parking, name(4)), shard(4, r));
        EXPECT_TRUE(parking.put(name(4), shard(4, r), false));
        parking.move_to_disk();
        // One rank loses a file while it runs, and one cannot write another.
        if (r == 1) {
            ParkFolder(folder / "scratch", TAG);
            fs::remove(folder / "1" / ParkFolder(folder / "scratch", TAG).file_name(name(3)));
            fs::create_directory(folder / "1" / ParkFolder(folder / "scratch", TAG).file_name(name(10)));
        }
        EXPECT_EQ(take(parking, name(3)), std::nullopt);
        EXPECT_EQ(parking.counters().misses, 2u);
        EXPECT_TRUE(parking.put(name(10), shard(10, r), true));
        parking.move_to_disk();
        EXPECT_EQ(parking.counters().write_failures, 1u);
        EXPECT_EQ(parking.counters().in_memory, 1u);
    });
    // A rank starts without a file, another with one of its own.
    fs::path lost = folder / "2" / ParkFolder(folder / "scratch", TAG).file_name(name(4));
    EXPECT_TRUE(fs::remove(lost));
    {
        ParkFolder own(folder / "1", TAG);
        EXPECT_TRUE(own.write(name(11), 99, content(name(11))));
    }
    on_ranks([&](Parking &parking, std::size_t r) {
        EXPECT_EQ(parking.counters().on_disk, 4u);
        EXPECT_FALSE(parking.contains(name(4)));
        EXPECT_FALSE(parking.contains(name(11)));
        EXPECT_EQ(take(parking, name(5)), shard(5, r));
        EXPECT_EQ(take(parking, name(8)), shard(8, r));
    });
    EXPECT_FALSE(fs::exists(folder / "0" / lost.filename()));
}

}  // namespace
