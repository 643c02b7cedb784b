// Parking in the program inflight-serve: many conversations, kills, two ranks, disks that fail.
#include "serve_support.hpp"

#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <sys/wait.h>
#include <thread>

namespace {

using namespace test;
namespace fs = std::filesystem;

/** Conversations of the test of many: a few, or as many as the environment says. */
std::size_t n_conversations() {
    const char *n = std::getenv("SKC_CONVERSATIONS");
    return n ? std::stoul(n) : 120;
}

class ParkServe : public ServeTest {
protected:
    const fs::path folder = fs::path(testing::TempDir()) / ("park-serve-" + std::to_string(getpid()));
    const std::string serve = SERVE;
    const std::string park = " --park-dir " + folder.string() + " --park-disk 2G";

    static constexpr std::size_t PROMPT = 9, OUT = 3;

    void SetUp() override { fs::remove_all(folder); }
    void TearDown() override {
        fs::remove_all(folder);
        ServeTest::TearDown();
    }
    /** The program's options for `slots` sequences in the cache. */
    std::string with_slots(std::size_t slots, std::size_t window = 32, const std::string &model = MODEL) const {
        return engine + " --json --kv-dtype f16 --max-seqs " + std::to_string(slots) + " --window " +
               std::to_string(window) + " --model " + model;
    }
    static std::string id(std::size_t c, std::size_t round) { return std::to_string(c) + "." + std::to_string(round); }
    /** A round of a conversation. The prompt is the same in all its rounds, so that any of them can be the next. */
    static std::string round(std::size_t c, std::size_t r) {
        Json line{{"id", id(c, r)}, {"prompt", prompt(61 * c, PROMPT)}, {"max_tokens", OUT}};
        line[r == 0 ? "conversation" : "continue"] = "c" + std::to_string(c);
        return line.dump() + "\n";
    }
    static std::string rounds(std::size_t conversations, std::size_t from, std::size_t to) {
        std::string lines;
        for (std::size_t r = from; r < to; r++) {
            for (std::size_t c = 0; c < conversations; c++) {
                lines += round(c, r);
            }
        }
        return lines;
    }
    std::map<std::string, Json> served(const std::string &command) const {
        const auto out = shell(command);
        EXPECT_EQ(out.status, 0) << command;
        return parse(out.text);
    }
    std::vector<fs::path> parked_files(const fs::path &in) const {
        std::vector<fs::path> files;
        for (const auto &entry : fs::directory_iterator(in)) {
            if (entry.path().extension() == ".parked") {
                files.push_back(entry.path());
            }
        }
        return files;
    }
};

TEST_F(ParkServe, ManyConversationsOnEightSlots) {
    constexpr std::size_t ROUNDS = 5;
    const std::size_t many = n_conversations();
    write(rounds(many, 0, ROUNDS));
    const auto want = served(serve + with_slots(many));
    const std::string memory = std::to_string(many * 64'000);
    const auto got = served(serve + with_slots(8) + park + " --park-memory " + memory);
    ASSERT_EQ(want.size(), ROUNDS * many + 1);
    ASSERT_EQ(got.size(), want.size());
    std::uint64_t length = 0;
    for (const auto &[name, result] : want) {
        if (name != "totals") {
            EXPECT_EQ(result["outcome"], "done") << result;
            EXPECT_EQ(got.at(name)["tokens"], result["tokens"]) << name;
            EXPECT_EQ(got.at(name)["stream_length"], result["stream_length"]) << name;
        }
    }
    for (std::size_t c = 0; c < many; c++) {
        length += got.at(id(c, ROUNDS - 1))["stream_length"].get<std::uint64_t>();
    }
    const Json totals = got.at("totals")["totals"], n = totals["parking"];
    EXPECT_EQ(totals["failed"], 0);
    EXPECT_EQ(totals["context_tokens"].get<std::uint64_t>() + totals["decode_tokens"].get<std::uint64_t>(), length)
        << "no token is read twice";
    for (const char *none : {"misses", "dropped", "write_failures", "damaged", "in_memory"}) {
        EXPECT_EQ(n[none], 0) << none << n;
    }
    EXPECT_GT(n["disk_hits"], many) << n;
    EXPECT_EQ(n["on_disk"], many) << "at the end they all are in the folder";
    EXPECT_EQ(parked_files(folder).size(), many);
}

/** A conversation goes on where its last result left it, or is not there: never damaged, never older. */
TEST_F(ParkServe, KilledAndStartedAgainConversationsOnDiskGoOn) {
    constexpr std::size_t CONVERSATIONS = 40, ROUNDS = 8, SLOTS = 4;
    write(rounds(CONVERSATIONS, 0, ROUNDS + 1));
    const auto want = served(serve + with_slots(CONVERSATIONS));
    const fs::path output = fs::path(requests).replace_extension(".out");
    for (const std::size_t results : {std::size_t{50}, std::size_t{130}, std::size_t{200}}) {
        fs::remove_all(folder);
        write(rounds(CONVERSATIONS, 0, ROUNDS));
        const std::string command = "exec " + serve + with_slots(SLOTS) + park + " > " + output.string();
        const pid_t pid = fork();
        if (pid == 0) {
            execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
            _exit(127);
        }
        const auto lines = [&] {
            std::ifstream file(output);
            std::vector<std::string> all;
            // A line that was being written does not end.
            for (std::string line; std::getline(file, line) && !file.eof();) {
                all.push_back(line);
            }
            return all;
        };
        while (lines().size() < results && waitpid(pid, nullptr, WNOHANG) == 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        kill(pid, SIGKILL);
        waitpid(pid, nullptr, 0);
        std::array<std::size_t, CONVERSATIONS> ended{};
        for (const std::string &line : lines()) {
            const Json json = Json::parse(line);
            ASSERT_FALSE(json.contains("totals")) << "it was killed before its end";
            const std::string name = json["id"];
            ended.at(std::stoul(name)) = std::stoul(name.substr(name.find('.') + 1)) + 1;
        }
        std::string next;
        for (std::size_t c = 0; c < CONVERSATIONS; c++) {
            next += round(c, ended[c] == 0 ? 1 : ended[c]);
        }
        write(next);
        const auto got = served(serve + with_slots(SLOTS) + park);
        std::size_t begun = 0, went_on = 0;
        for (std::size_t c = 0; c < CONVERSATIONS; c++) {
            begun += ended[c] > 0;
            const std::string name = id(c, ended[c] == 0 ? 1 : ended[c]);
            const Json &result = got.at(name);
            if (result["outcome"] == "failed") {
                EXPECT_EQ(result["error"], "there is no conversation 'c" + std::to_string(c) + "'");
                continue;
            }
            went_on++;
            // The result of its last round may have been lost on the way.
            const bool one_more = result["stream_length"] != want.at(name)["stream_length"];
            const std::string reached = one_more ? id(c, ended[c] + 1) : name;
            EXPECT_EQ(result["stream_length"], want.at(reached)["stream_length"]) << name;
            EXPECT_EQ(result["tokens"], want.at(reached)["tokens"]) << name;
        }
        // Those in slots are gone, and no others.
        EXPECT_GE(went_on + SLOTS, begun);
        EXPECT_EQ(got.at("totals")["totals"]["parking"]["damaged"], 0);
    }
    fs::remove(output);
}

TEST_F(ParkServe, RanksParkTheirShardsAndMissTogether) {
    const std::string ranks = serve_on_two_ranks();
    if (ranks.empty()) {
        GTEST_SKIP() << "skipped: built without MPI";
    }
    constexpr std::size_t CONVERSATIONS = 12;
    write(rounds(CONVERSATIONS, 0, 5));
    const auto want = served(serve + with_slots(CONVERSATIONS));
    for (const std::size_t from : {0, 2}) {
        write(rounds(CONVERSATIONS, from, from + 2));
        const auto got = served(ranks + with_slots(3) + park + " --park-memory 200000");
        for (const auto &[name, result] : got) {
            if (name != "totals") {
                EXPECT_EQ(result["outcome"], "done") << result;
                EXPECT_EQ(result["tokens"], want.at(name)["tokens"]) << name;
            }
        }
        EXPECT_EQ(got.at("totals")["totals"]["parking"]["on_disk"], CONVERSATIONS);
    }
    // One rank has lost a file, and another of its files is damaged.
    const auto files = parked_files(folder / "rank-1-of-2");
    ASSERT_EQ(files.size(), CONVERSATIONS);
    EXPECT_EQ(parked_files(folder / "rank-0-of-2").size(), CONVERSATIONS);
    fs::remove(files[0]);
    std::fstream(files[1], std::ios::in | std::ios::out | std::ios::binary).seekp(1000) << "damage";
    write(rounds(CONVERSATIONS, 4, 5));
    const auto got = served(ranks + with_slots(3) + park);
    std::size_t missing = 0, lost = 0;
    for (const auto &[name, result] : got) {
        if (name == "totals") {
            continue;
        }
        if (result["outcome"] == "done") {
            EXPECT_EQ(result["tokens"], want.at(name)["tokens"]) << name;
        } else {
            const std::string error = result["error"];
            missing += error.rfind("there is no conversation", 0) == 0;
            lost += error.find("was lost: what was parked of it is damaged") != std::string::npos;
        }
    }
    EXPECT_EQ(missing, 1u);
    EXPECT_EQ(lost, 1u);
    EXPECT_EQ(got.at("totals")["totals"]["done"], CONVERSATIONS - 2);
    // What one rank alone had is gone from both.
    EXPECT_EQ(parked_files(folder / "rank-0-of-2").size(), CONVERSATIONS - 2);
    EXPECT_EQ(parked_files(folder / "rank-1-of-2").size(), CONVERSATIONS - 2);
}

TEST_F(ParkServe, FilesThatCannotBeWrittenEndConversationsAndNothingElse) {
    write(rounds(12, 0, 1));
    const auto got = served("ulimit -f 20; " + serve + with_slots(4) + park);
    const Json totals = got.at("totals")["totals"];
    EXPECT_EQ(totals["done"], 12);
    EXPECT_EQ(totals["parking"]["parked"], 0);
    EXPECT_GE(totals["parking"]["write_failures"], 8);
    EXPECT_TRUE(parked_files(folder).empty());
}

TEST_F(ParkServe, AnotherModelOrOtherSettingsDoNotContinueAConversation) {
    write(rounds(3, 0, 1));
    served(serve + with_slots(3) + park);
    ASSERT_EQ(parked_files(folder).size(), 3u);
    write(rounds(3, 1, 2));
    const auto other_window = served(serve + with_slots(3, 40) + park);
    EXPECT_EQ(other_window.at(id(0, 1))["error"], "there is no conversation 'c0'");
    // The bundled model with one bit of a weight changed.
    const std::string model = requests + ".gguf";
    fs::copy_file(MODEL, model, fs::copy_options::overwrite_existing);
    std::fstream file(model, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-100, std::ios::end);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(-100, std::ios::end).put(byte);
    file.close();
    write(rounds(3, 1, 2));
    const auto other_model = served(serve + with_slots(3, 32, model) + park);
    EXPECT_EQ(other_model.at(id(0, 1))["error"], "there is no conversation 'c0'");
    // Neither has touched what was parked.
    const auto got = served(serve + with_slots(3) + park);
    EXPECT_EQ(got.at("totals")["totals"]["done"], 3);
    fs::remove(model);
}

// Parked with more pinned tokens or ranges than a later run has room for: nothing is lost.
TEST_F(ParkServe, ConversationsWithoutRoomStayParkedUntilThereIsRoom) {
    const auto line = [](Json json, const std::string &text) {
        json["prompt"] = text;
        json["max_tokens"] = OUT;
        return json.dump() + "\n";
    };
    const std::string anna = line({{"id", "a0"}, {"conversation", "anna"}, {"pin_prompt", true}}, prompt(0, 50));
    const std::string bob = line({{"id", "b0"}, {"conversation", "bob"}}, prompt(100, 20)) +
                            line({{"id", "b1"}, {"continue", "bob"}, {"drop", {{5, 2}, {9, 2}}}}, prompt(200, 5));
    const std::string next = line({{"id", "a1"}, {"continue", "anna"}}, prompt(300, 5)) +
                             line({{"id", "b2"}, {"continue", "bob"}}, prompt(400, 5));
    const std::string forks = line({{"id", "fork"}, {"fork", "anna"}, {"conversation", "copy"}}, prompt(500, 5)) +
                              line({{"id", "of copy"}, {"continue", "copy"}}, prompt(600, 5));
    const std::string other = line({{"id", "o"}}, prompt(700, 5));
    const std::string room = " --max-pinned 50 --max-segments 4";
    write(anna + bob + next);
    const auto want = served(serve + with_slots(2) + room);
    write(anna + bob);
    served(serve + with_slots(2) + room + park);
    const auto files = parked_files(folder);
    ASSERT_EQ(files.size(), 2u);
    const auto bytes = fs::file_size(files[0]);
    write(forks + next + other);
    const auto got = served(serve + with_slots(2) + " --max-pinned 30 --max-segments 1" + park);
    const auto error = [&](const std::string &id) { return got.at(id)["error"].get<std::string>(); };
    const std::string pins = "conversation 'anna' stays parked: SKC_STATUS_NO_ROOM: layer 0: 47 tokens are pinned, "
                             "max_pinned is 30";
    EXPECT_EQ(error("a1"), pins);
    EXPECT_EQ(error("fork"), pins);
    EXPECT_EQ(error("of copy"), "conversation 'copy' never began");
    EXPECT_EQ(error("b2"), "conversation 'bob' stays parked: SKC_STATUS_NO_ROOM: layer 0: pinned runs and evicted "
                           "ranges are 2, max_segments is 1");
    EXPECT_EQ(got.at("o")["outcome"], "done");
    const Json parking = got.at("totals")["totals"]["parking"];
    EXPECT_EQ(parking["misses"], 3);
    EXPECT_EQ(parking["damaged"], 0);
    EXPECT_EQ(parking["disk_hits"], 0);
    EXPECT_EQ(parking["on_disk"], 2);
    EXPECT_EQ(parked_files(folder), files);
    EXPECT_EQ(fs::file_size(files[0]), bytes);
    write(next);
    const auto after = served(serve + with_slots(2) + room + park);
    for (const char *id : {"a1", "b2"}) {
        EXPECT_EQ(after.at(id)["outcome"], "done") << after.at(id);
        EXPECT_EQ(after.at(id)["tokens"], want.at(id)["tokens"]) << id;
        EXPECT_EQ(after.at(id)["restored_from"], "disk") << id;
    }
}

TEST_F(ParkServe, EveryErrorIsOneLineAndExitCode2) {
    write(round(0, 0));
    const auto rejected = [&](const std::string &options, const std::string &part) {
        const auto out = shell(serve + settings + options + " 2>&1");
        EXPECT_TRUE(WIFEXITED(out.status) && WEXITSTATUS(out.status) == 2) << options << "\n" << out.text;
        EXPECT_EQ(out.text.rfind("error: ", 0), 0u) << out.text;
        EXPECT_EQ(out.text.find('\n') + 1, out.text.size()) << out.text;
        EXPECT_NE(out.text.find(part), std::string::npos) << options << "\n" << out.text;
    };
    rejected(" --park-dir " + folder.string(), "--park-dir requires --park-disk");
    rejected(" --park-disk 1G", "--park-disk requires --park-dir");
    rejected(" --park-memory much", "--park-memory");
    rejected(" --park-memory -1", "--park-memory");
    rejected(" --park-dir /nowhere/folder --park-disk 1G", "folder '/nowhere/folder' cannot be made");
    rejected(" --park-dir " + requests + " --park-disk 1G", "cannot be opened");
    fs::create_directory(folder);
    fs::permissions(folder, fs::perms(0755));
    rejected(park, "has mode 0755: only its owner may use it, mode 0700");
    fs::permissions(folder, fs::perms(0700));
    const ParkFolder other(folder.string(), {});
    rejected(park, "is in use by another process");
}

}  // namespace
