// Where conversations rest: memory and a folder, what drops out of them, and what the folder survives.
#include "park_folder.hpp"
#include "parking.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fcntl.h>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace {

using namespace inflight;
namespace fs = std::filesystem;

const programs::Digest TAG = programs::Hash().add("a model").digest();
const programs::Digest OTHER_TAG = programs::Hash().add("another model").digest();

/** Content that shows whose it is, and of which time. */
Bytes content(const std::string &name, std::uint64_t version = 0, std::size_t n = 1000) {
    std::mt19937_64 random(std::hash<std::string>()(name) + version);
    Bytes bytes(n);
    for (auto &b : bytes) {
        b = static_cast<std::uint8_t>(random());
    }
    return bytes;
}

std::string name(std::size_t i) { return "conversation " + std::to_string(i); }

unsigned mode(const fs::path &path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 ? info.st_mode & 07777 : 0;
}

/** Exit codes of processes of tests. */
constexpr int UNCAUGHT = 98, CANNOT_MOUNT = 99;

/** A process that runs `body` and ends with its result. */
template <class Body>
pid_t child(const Body &body) {
    const pid_t pid = fork();
    if (pid == 0) {
        int code = UNCAUGHT;
        try {
            code = body();
        } catch (const std::exception &error) {
            std::fprintf(stderr, "%s\n", error.what());
        }
        _exit(code);
    }
    return pid;
}

int exit_code(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/** Mounts a disk of 64 KiB that only this process sees; without root in a namespace of users of its own. */
bool mount_small_disk(const fs::path &at) {
    if (unshare(CLONE_NEWNS) != 0) {
        const std::string user = std::to_string(geteuid()), of_group = std::to_string(getegid());
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
            return false;
        }
        std::ofstream("/proc/self/uid_map") << user << " " << user << " 1";
        std::ofstream("/proc/self/setgroups") << "deny";
        std::ofstream("/proc/self/gid_map") << of_group << " " << of_group << " 1";
    }
    return mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           mount("small", at.c_str(), "tmpfs", 0, "size=64k,mode=0700") == 0;
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
    ParkFolder files(const programs::Digest &tag = TAG) const { return ParkFolder(folder, tag); }
    fs::path path_of(const ParkFolder &f, const std::string &n) const { return folder / f.file_name(n); }
    std::string error_of_opening() const {
        try {
            files();
        } catch (const std::runtime_error &error) {
            return error.what();
        }
        return "";
    }
};

// --- the folder ---

TEST_F(ParkingTest, FilesComeBackAndAreNobodyElsesToRead) {
    const mode_t before = umask(0);
    {
        ParkFolder f = files();
        EXPECT_TRUE(f.write("a", 1, content("a")));
        EXPECT_TRUE(f.write("b/../c", 2, Bytes()));
        EXPECT_EQ(f.read("a", 1), content("a"));
        EXPECT_EQ(f.read("b/../c", 2), Bytes());
        EXPECT_EQ(f.read("c", 1), std::nullopt);
        EXPECT_EQ(fs::file_size(path_of(f, "a")), ParkFolder::file_bytes("a", 1000));
        EXPECT_EQ(mode(folder), 0700u);
        for (const auto &entry : fs::directory_iterator(folder)) {
            EXPECT_EQ(mode(entry), 0600u) << entry;
        }
        // Replaced as a whole.
        EXPECT_TRUE(f.write("a", 3, content("a", 3, 10)));
        EXPECT_EQ(f.read("a", 1), std::nullopt);
        EXPECT_EQ(f.read("a", 3), content("a", 3, 10));
    }
    umask(before);
    ParkFolder again = files();
    ASSERT_EQ(again.found().size(), 2u);
    EXPECT_EQ(again.found()[0].name, "b/../c");
    EXPECT_EQ(again.found()[1].name, "a");
    EXPECT_EQ(again.found()[1].stamp, 3u);
    EXPECT_EQ(again.found()[1].bytes, ParkFolder::file_bytes("a", 10));
    again.remove("a");
    again.remove("a");
    EXPECT_EQ(again.read("a", 3), std::nullopt);
}

TEST_F(ParkingTest, EveryDamageOfAFileIsAMiss) {
    fs::path path;
    std::string whole;
    {
        ParkFolder f = files();
        ASSERT_TRUE(f.write("a", 7, content("a", 0, 100)));
        path = path_of(f, "a");
        std::ifstream in(path, std::ios::binary);
        whole.assign(std::istreambuf_iterator<char>(in), {});
        ASSERT_EQ(whole.size(), ParkFolder::file_bytes("a", 100));
        const auto misses = [&](const std::string &bytes, const std::string &what) {
            std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
            EXPECT_EQ(f.read("a", 7), std::nullopt) << what;
        };
        for (std::size_t n = 0; n < whole.size(); n++) {
            misses(whole.substr(0, n), "cut to " + std::to_string(n));
            std::string flipped = whole;
            flipped[n] = static_cast<char>(flipped[n] ^ 1 << n % 8);
            misses(flipped, "byte " + std::to_string(n) + " flipped");
        }
        misses(whole + "x", "longer");
        std::ofstream(path, std::ios::binary | std::ios::trunc) << whole;
        EXPECT_EQ(f.read("a", 7), content("a", 0, 100));
    }
    // Found damaged at a start: removed, so that it takes no room.
    for (const std::string &bytes : {std::string(), whole.substr(0, 60), whole.substr(0, whole.size() - 1),
                                     whole + "x", std::string(60, '\xFF'), std::string(100'000, '\xFF')}) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
        ParkFolder f = files();
        EXPECT_TRUE(f.found().empty());
        EXPECT_EQ(f.n_damaged(), 1u);
        EXPECT_FALSE(fs::exists(path));
        std::ofstream(path, std::ios::binary).close();
        fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
    }
}

TEST_F(ParkingTest, AFileUnderTheNameOfAnotherIsAMiss) {
    ParkFolder f = files();
    ASSERT_TRUE(f.write("a", 1, content("a")));
    ASSERT_TRUE(f.write("b", 1, content("b")));
    fs::rename(path_of(f, "a"), path_of(f, "b"));
    EXPECT_EQ(f.read("b", 1), std::nullopt);
}

TEST_F(ParkingTest, ForeignFilesAreLeftAlone) {
    fs::path other, open_to_others;
    {
        ParkFolder f = files(OTHER_TAG);
        ASSERT_TRUE(f.write("a", 1, content("a")));
        other = path_of(f, "a");
        std::ofstream(folder / "notes.txt") << "mine";
        fs::create_directory(folder / "folder");
    }
    {
        ParkFolder f = files();
        EXPECT_TRUE(f.found().empty());
        EXPECT_EQ(f.read("a", 1), std::nullopt);
        // Of the right name, but no file, or one that others may write.
        ASSERT_EQ(mkfifo(path_of(f, "pipe").c_str(), 0600), 0);
        fs::create_symlink(other, path_of(f, "link"));
        fs::create_directory(path_of(f, "folder"));
        ASSERT_TRUE(f.write("open", 2, content("open")));
        open_to_others = path_of(f, "open");
        fs::permissions(open_to_others, fs::perms::group_read, fs::perm_options::add);
        for (const char *n : {"pipe", "link", "folder", "open"}) {
            EXPECT_EQ(f.read(n, 2), std::nullopt) << n;
        }
        EXPECT_FALSE(f.write("folder", 2, content("folder")));
        EXPECT_TRUE(f.write("pipe", 2, content("pipe")));
        EXPECT_EQ(f.read("pipe", 2), content("pipe"));
        EXPECT_TRUE(f.write("link", 2, content("link")));
        EXPECT_EQ(f.read("link", 2), content("link"));
    }
    ParkFolder f = files();
    EXPECT_EQ(f.found().size(), 2u);
    EXPECT_EQ(f.n_damaged(), 0u);
    for (const fs::path &path : {folder / "notes.txt", other, open_to_others}) {
        EXPECT_TRUE(fs::is_regular_file(path)) << path;
    }
}

TEST_F(ParkingTest, TemporaryFilesOfAKilledProcessAreRemoved) {
    fs::path path;
    {
        ParkFolder f = files();
        ASSERT_TRUE(f.write("a", 1, content("a")));
        path = path_of(f, "a");
    }
    const std::string left = programs::Folder::temporary(path);
    std::ofstream(left) << "half of a conver";
    std::ofstream(folder / "foreign.tmp") << "foreign";
    ParkFolder f = files();
    EXPECT_FALSE(fs::exists(left));
    EXPECT_TRUE(fs::exists(folder / "foreign.tmp"));
    EXPECT_EQ(f.read("a", 1), content("a"));
}

TEST_F(ParkingTest, AFolderThatOthersMayUseIsRejected) {
    fs::create_directory(folder);
    fs::permissions(folder, fs::perms(0750));
    EXPECT_EQ(error_of_opening(),
              "folder '" + folder.string() + "' has mode 0750: only its owner may use it, mode 0700");
    fs::permissions(folder, fs::perms(0700));
    EXPECT_EQ(error_of_opening(), "");
    fs::remove_all(folder);
    std::ofstream(folder) << "a file";
    EXPECT_NE(error_of_opening().find("cannot be opened"), std::string::npos);
    fs::remove(folder);
    EXPECT_THROW(ParkFolder((folder / "no" / "parent").string(), TAG), std::runtime_error);
}

TEST_F(ParkingTest, TwoProcessesCannotUseOneFolder) {
    {
        ParkFolder f = files();
        const std::string in_use = "folder '" + folder.string() + "' is in use by another process";
        EXPECT_EQ(error_of_opening(), in_use);
        EXPECT_EQ(exit_code(child([&] { return error_of_opening() == in_use ? 0 : 1; })), 0);
        // Also with another model: they would share its disk.
        EXPECT_THROW(files(OTHER_TAG), std::runtime_error);
    }
    EXPECT_EQ(error_of_opening(), "");
}

/** In a process of its own that can write no more than 600 bytes to a file. */
TEST_F(ParkingTest, ALimitOfFileSizesIsAMissAndLeavesNothing) {
    const pid_t limited = child([&] {
        std::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{600, 600};
        setrlimit(RLIMIT_FSIZE, &limit);
        ParkFolder f = files();
        if (!f.write("small", 1, content("small", 0, 100)) || f.write("large", 2, content("large"))) {
            return 1;
        }
        // A state of before must not come back.
        return f.write("small", 3, content("small")) || f.read("small", 1) || f.read("small", 3) ? 2 : 0;
    });
    EXPECT_EQ(exit_code(limited), 0);
    EXPECT_TRUE(files().found().empty());
    EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1) << "the lock only";
}

/** In a namespace of its own, on a disk of 64 KiB. */
TEST_F(ParkingTest, AFullDiskIsAMissAndWhatIsThereStays) {
    fs::create_directory(folder);
    const pid_t on_small_disk = child([&] {
        if (!mount_small_disk(folder)) {
            return CANNOT_MOUNT;
        }
        const auto parking_on = [&] { return Parking(config(0, 1'000'000), group); };
        std::vector<std::string> written;
        {
            Parking parking = parking_on();
            for (std::size_t i = 0; i < 30; i++) {
                if (parking.put(name(i), content(name(i), 0, 10'000), false)) {
                    written.push_back(name(i));
                }
            }
            const ParkingCounters &n = parking.counters();
            if (written.size() < 3 || written.size() > 6 || n.write_failures != 30 - written.size() ||
                n.on_disk != written.size() || n.parked != written.size() || n.dropped != 0) {
                return 1;
            }
            // With room again it goes on.
            parking.remove(written.back());
            if (!parking.put(written.back(), content(written.back(), 0, 10'000), false)) {
                return 2;
            }
        }
        Parking parking = parking_on();
        for (const std::string &w : written) {
            if (parking.take(w) != content(w, 0, 10'000)) {
                return 3;
            }
        }
        return parking.counters().damaged == 0 ? 0 : 4;
    });
    const int code = exit_code(on_small_disk);
    if (code == CANNOT_MOUNT) {
        GTEST_SKIP() << "skipped: no tmpfs can be mounted here";
    }
    EXPECT_EQ(code, 0);
}

/** What cannot be removed must not be taken: a restart would find it, older than the conversation. */
TEST_F(ParkingTest, AFileThatCannotBeRemovedIsNotTaken) {
    fs::create_directory(folder);
    const pid_t on_small_disk = child([&] {
        if (!mount_small_disk(folder)) {
            return CANNOT_MOUNT;
        }
        {
            Parking parking(config(0, 100'000), group);
            if (!parking.put("a", content("a"), false)) {
                return 1;
            }
            if (mount("small", folder.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr) != 0) {
                return CANNOT_MOUNT;
            }
            if (parking.copy("a") != content("a") || parking.take("a") || parking.contains("a") ||
                parking.put("b", content("b"), false)) {
                return 2;
            }
            mount("small", folder.c_str(), "tmpfs", MS_REMOUNT, nullptr);
        }
        return Parking(config(0, 100'000), group).take("a") == content("a") ? 0 : 3;
    });
    const int code = exit_code(on_small_disk);
    if (code == CANNOT_MOUNT) {
        GTEST_SKIP() << "skipped: no tmpfs can be mounted here";
    }
    EXPECT_EQ(code, 0);
}

TEST_F(ParkingTest, NamesThatARestartWouldNotReadAreNotWritten) {
    const std::string longest(256, 'n');
    {
        ParkFolder f = files();
        EXPECT_TRUE(f.write(longest, 1, content(longest)));
        EXPECT_FALSE(f.write(longest + "n", 2, content("n")));
    }
    ParkFolder f = files();
    ASSERT_EQ(f.found().size(), 1u);
    EXPECT_EQ(f.read(longest, 1), content(longest));
}

TEST_F(ParkingTest, NoKillDamagesAFile) {
    constexpr std::size_t KILLS = 40, NAMES = 5;
    std::mt19937 random(11);
    std::size_t seen = 0;
    for (std::size_t kill_number = 0; kill_number < KILLS; kill_number++) {
        const pid_t writer = child([&]() -> int {
            Parking parking(config(2500, 1'000'000), group);
            for (std::uint64_t version = 0;; version++) {
                const std::string n = name(version % NAMES);
                parking.put(n, content(n, version % 3, 900 + 100 * (version % 3)), false);
                if (version % 7 == 0) {
                    parking.take(name((version * 3) % NAMES));
                }
            }
        });
        std::this_thread::sleep_for(std::chrono::microseconds(2000 + random() % 20'000));
        kill(writer, SIGKILL);
        EXPECT_EQ(exit_code(writer), -1);
        ParkFolder f = files();
        EXPECT_EQ(f.n_damaged(), 0u);
        for (const ParkedFile &file : f.found()) {
            const std::size_t version = (file.bytes - ParkFolder::file_bytes(file.name, 900)) / 100;
            EXPECT_EQ(f.read(file.name, file.stamp), content(file.name, version, 900 + 100 * version));
            seen++;
        }
        for (const auto &entry : fs::directory_iterator(folder)) {
            EXPECT_FALSE(programs::Folder::is_temporary(entry.path())) << entry;
        }
    }
    EXPECT_GT(seen, 0u);
}

// --- the two levels ---

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
        EXPECT_EQ(parking.copy(name(i)), content(name(i)));
        EXPECT_EQ(parking.take(name(i)), content(name(i)));
        EXPECT_EQ(parking.take(name(i)), std::nullopt);
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
    EXPECT_EQ(parking.take(name(2)), content(name(2), 1, 1500));
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
        EXPECT_EQ(parking.take(name(i)), content(name(i))) << i;
    }
}

TEST_F(ParkingTest, ARestartFindsWhatIsInTheFolder) {
    {
        Parking parking(config(2000, 100'000), group);
        for (std::size_t i = 0; i < 6; i++) {
            EXPECT_TRUE(parking.put(name(i), content(name(i)), true));
        }
        EXPECT_EQ(parking.take(name(1)), content(name(1)));
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
    EXPECT_EQ(parking.take(name(3)), content(name(3)));
    EXPECT_EQ(parking.take(name(5)), content(name(5), 5));
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
    EXPECT_EQ(parking.copy("a"), std::nullopt);
    EXPECT_FALSE(parking.contains("a"));
    EXPECT_EQ(parking.take("b"), std::nullopt);
    EXPECT_FALSE(parking.contains("b"));
    EXPECT_EQ(parking.counters().damaged, 2u);
    EXPECT_EQ(parking.counters().misses, 2u);
    EXPECT_EQ(parking.counters().disk_bytes, 0u);
    EXPECT_TRUE(parking.put("a", content("a", 1), false));
    EXPECT_EQ(parking.take("a"), content("a", 1));
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
                const auto got = parking->take(n);
                ASSERT_EQ(got.has_value(), there);
                ASSERT_TRUE(!got || *got == put.at(n));
                EXPECT_FALSE(parking->contains(n));
            } else if (what == 7) {
                const auto got = parking->copy(n);
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
        EXPECT_EQ(parking.take(name(2)), shard(2, r));
        // One rank loses a file while it runs, and one cannot write another.
        if (r == 1) {
            ParkFolder(folder / "scratch", TAG);
            fs::remove(folder / "1" / ParkFolder(folder / "scratch", TAG).file_name(name(3)));
            fs::create_directory(folder / "1" / ParkFolder(folder / "scratch", TAG).file_name(name(10)));
        }
        EXPECT_EQ(parking.take(name(3)), std::nullopt);
        EXPECT_EQ(parking.counters().misses, 1u);
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
        EXPECT_EQ(parking.take(name(5)), shard(5, r));
        EXPECT_EQ(parking.take(name(8)), shard(8, r));
    });
    EXPECT_FALSE(fs::exists(folder / "0" / lost.filename()));
}

}  // namespace
