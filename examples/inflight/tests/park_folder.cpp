// The folder where conversations rest: who may use it, what it survives, and that damage is a miss.
#include "parking_support.hpp"

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <fstream>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>

namespace {

using namespace test;

const programs::Digest OTHER_TAG = programs::Hash().add("another model").digest();

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

class ParkFolderTest : public ParkingTest {
protected:
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

TEST_F(ParkFolderTest, FilesComeBackAndAreNobodyElsesToRead) {
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

TEST_F(ParkFolderTest, EveryDamageOfAFileIsAMiss) {
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

TEST_F(ParkFolderTest, AFileUnderTheNameOfAnotherIsAMiss) {
    ParkFolder f = files();
    ASSERT_TRUE(f.write("a", 1, content("a")));
    ASSERT_TRUE(f.write("b", 1, content("b")));
    fs::rename(path_of(f, "a"), path_of(f, "b"));
    EXPECT_EQ(f.read("b", 1), std::nullopt);
}

TEST_F(ParkFolderTest, ForeignFilesAreLeftAlone) {
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

TEST_F(ParkFolderTest, TemporaryFilesOfAKilledProcessAreRemoved) {
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

TEST_F(ParkFolderTest, AFolderThatOthersMayUseIsRejected) {
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

TEST_F(ParkFolderTest, TwoProcessesCannotUseOneFolder) {
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
TEST_F(ParkFolderTest, ALimitOfFileSizesIsAMissAndLeavesNothing) {
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
TEST_F(ParkFolderTest, AFullDiskIsAMissAndWhatIsThereStays) {
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
            if (take(parking, w) != content(w, 0, 10'000)) {
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
TEST_F(ParkFolderTest, AFileThatCannotBeRemovedIsNotTaken) {
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
            if (copy(parking, "a") != content("a") || take(parking, "a") || parking.contains("a") ||
                parking.put("b", content("b"), false)) {
                return 2;
            }
            mount("small", folder.c_str(), "tmpfs", MS_REMOUNT, nullptr);
        }
        Parking again(config(0, 100'000), group);
        return take(again, "a") == content("a") ? 0 : 3;
    });
    const int code = exit_code(on_small_disk);
    if (code == CANNOT_MOUNT) {
        GTEST_SKIP() << "skipped: no tmpfs can be mounted here";
    }
    EXPECT_EQ(code, 0);
}

TEST_F(ParkFolderTest, NamesThatARestartWouldNotReadAreNotWritten) {
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

TEST_F(ParkFolderTest, NoKillDamagesAFile) {
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
                    take(parking, name((version * 3) % NAMES));
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

}  // namespace
