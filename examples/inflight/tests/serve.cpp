// The program inflight-serve: its output and its metrics file, on one rank and on two.
#include "quantized_model.hpp"
#include "serve_support.hpp"

#include <cstdlib>

namespace {

using namespace test;

class Serve : public ServeTest {
protected:
    /** Conversations, forks, long prompts. */
    static std::string many() {
        std::string lines;
        for (int i = 0; i < 20; i++) {
            std::string prompt;
            for (Token t : text(7000 * static_cast<std::size_t>(i), 10 + 11 * static_cast<std::size_t>(i))) {
                prompt += static_cast<char>(t - LlamaConfig::byte_offset);
            }
            Json line{{"id", "r" + std::to_string(i)}, {"prompt", prompt}, {"max_tokens", 30}, {"arrival", i}};
            if (i % 5 == 0) {
                line["conversation"] = "t" + std::to_string(i);
            } else if (i % 5 < 3) {
                line[i % 5 == 1 ? "continue" : "fork"] = "t" + std::to_string(i / 5 * 5);
            }
            lines += line.dump() + "\n";
        }
        return lines;
    }
};

TEST_F(Serve, InvalidLinesFailAndTheOthersRun) {
    write(R"({"id":"a","prompt":"It was a dark and","max_tokens":12}
{"id":"b","prompt":
{"id":"c"}
{"id":"d","continue":"nobody","prompt":"x"}
{"id":"e","prompt":"this prompt is longer than it may be, which is forty tokens"}
{"id":"f","prompt":"It was a dark and","max_tokens":12}
)");
    const auto out = shell(std::string(SERVE) + settings + " --max-prompt 40 --json --metrics " + metrics);
    ASSERT_EQ(out.status, 0);
    const auto results = parse(out.text);
    EXPECT_EQ(results.at("a")["outcome"], "done");
    EXPECT_EQ(results.at("a")["tokens"], results.at("f")["tokens"]);
    EXPECT_EQ(results.at("a")["text"].get<std::string>().size(), 12u);
    EXPECT_GT(results.at("f")["first_token_s"], 0);
    EXPECT_EQ(results.at("line 2")["error"], "line 2: the line is not JSON");
    EXPECT_EQ(results.at("c")["error"], "line 3: field 'prompt' (or 'messages' or 'tokens') is missing");
    EXPECT_EQ(results.at("d")["error"], "there is no conversation 'nobody'");
    EXPECT_EQ(results.at("e")["error"], "the prompt has 60 tokens: at most 40 are allowed");
    const Json totals = results.at("totals")["totals"];
    EXPECT_EQ(totals["done"], 2);
    EXPECT_EQ(totals["failed"], 4);
    EXPECT_GT(totals["cache_bytes_host"], 0);
    std::ifstream file(metrics);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    EXPECT_NE(text.find("sinkcache_inflight_requests_total{outcome=\"failed\"} 4\n"), std::string::npos);
    EXPECT_NE(text.find("sinkcache_inflight_generated_tokens_total 24\n"), std::string::npos);
}

TEST_F(Serve, StreamedPartsAreTheText) {
    write(R"({"id":"a","prompt":"It was a dark and","max_tokens":20}
{"id":"b","prompt":"She","max_tokens":30,"temperature":1}
)");
    const auto out = shell(std::string(SERVE) + settings + " --json --stream");
    ASSERT_EQ(out.status, 0);
    std::map<std::string, std::string> streamed;
    std::size_t parts = 0, complete = 0;
    std::istringstream lines(out.text);
    for (std::string line; std::getline(lines, line);) {
        const Json json = Json::parse(line);
        if (json.contains("delta")) {
            streamed[json["id"]] += json["delta"];
            parts++;
        } else if (json.contains("id")) {
            EXPECT_EQ(json["text"], streamed.at(json["id"]));
            complete++;
        }
    }
    EXPECT_EQ(complete, 2u);
    EXPECT_EQ(parts, 50u);
}

TEST_F(Serve, IsReadableWithoutJson) {
    write("{\"id\":\"a\",\"prompt\":\"It was a dark and\",\"max_tokens\":12}\n");
    const auto out = shell(std::string(SERVE) + settings);
    ASSERT_EQ(out.status, 0);
    EXPECT_EQ(out.text.rfind("a: done, 18 + 12 tokens, waited", 0), 0u) << out.text;
    EXPECT_NE(out.text.find("1 done, 0 cancelled, 0 failed"), std::string::npos) << out.text;
}

TEST_F(Serve, EveryErrorIsOneLineAndExitCode2) {
    write("{\"id\":\"a\",\"prompt\":\"x\"}\n");
    const auto rejected = [&](const std::string &command, const std::string &part) {
        const auto out = shell(command + " 2>&1");
        EXPECT_TRUE(WIFEXITED(out.status) && WEXITSTATUS(out.status) == 2) << command << "\n" << out.text;
        EXPECT_EQ(out.text.rfind("error: ", 0), 0u) << out.text;
        EXPECT_EQ(out.text.find('\n') + 1, out.text.size()) << out.text;
        EXPECT_NE(out.text.find(part), std::string::npos) << command << "\n" << out.text;
    };
    const std::string serve = SERVE, model = " --model " + std::string(MODEL), from = " --requests " + requests;
    rejected(serve, "--model is required");
    rejected(serve + settings + " --frobnicate", "--frobnicate");
    rejected(serve + settings + " --model /nowhere.gguf", "--model");
    rejected(serve + from + " --model /nowhere.gguf", "model '/nowhere.gguf' is not a file");
    rejected(serve + from + " --model " + testing::TempDir(), "is not a file");
    rejected(serve + from + " --model " + TEXT, "is not a valid GGUF file");
    rejected(serve + model + " --requests /nowhere", "requests '/nowhere' cannot be opened");
    rejected(serve + model + " --requests " + testing::TempDir(), "is a directory");
    rejected(serve + model + " --quiet --requests /dev/zero", "line 1 does not end");
    rejected(serve + settings + " --draft many", "--draft");
    rejected(serve + settings + " --kv-dtype f8", "--kv-dtype");
    rejected(serve + settings + " --threads -1", "--threads");
    rejected(serve + model + from + " --budget 8 --chunk 16", "budget of 8");
    rejected(serve + settings + " --max-pinned 30 --max-segments 0",
             "--max-pinned 30 with --max-segments 0: pinned tokens are a segment, at least 1 is needed");
    rejected("(" + serve + settings + " --quiet 3>&1 1>/dev/full)", "the output could not be written");
#if !defined(__SANITIZE_ADDRESS__)
    // AddressSanitizer adds a line of its own.
    rejected(serve + model + from + " --window 16777216 --max-seqs 16777216", "could not be allocated");
    // Memory for the stacks of some threads.
    rejected("ulimit -v 2000000; timeout 60 " + serve + settings + " --threads 1024", "1024 threads could be started");
#endif
    // Before the first request runs, and not after the last.
    rejected(serve + model + from + " --metrics /nowhere/m", "'/nowhere/m'");
    rejected(serve + model + from + " --metrics '/nowhere/\n\x1b[2J'", "'/nowhere/\\x0A\\x1B[2J'");
}

TEST_F(Serve, RoomForPinsIsRoomForSegments) {
    write("{\"id\":\"a\",\"prompt\":\"It was a dark and\",\"max_tokens\":12,\"pin_prompt\":true}\n");
    const auto out = shell(std::string(SERVE) + settings + " --json --max-pinned 30");
    ASSERT_EQ(out.status, 0);
    const Json result = parse(out.text).at("a");
    EXPECT_EQ(result["pinned_tokens"], 18 - SINK);
    EXPECT_FALSE(result.contains("notes")) << result;
}

TEST_F(Serve, ReadsATextWithAByteOrderMarkAndCrlf) {
    write("\xEF\xBB\xBF{\"id\":\"a\",\"prompt\":\"It was\",\"max_tokens\":3}\r\n\r\n"
          "{\"id\":\"b\",\"prompt\":\"It was\",\"max_tokens\":3}\r\n");
    const auto out = shell(std::string(SERVE) + settings + " --json");
    ASSERT_EQ(out.status, 0);
    const auto results = parse(out.text);
    EXPECT_EQ(results.size(), 3u);
    EXPECT_EQ(results.at("a")["tokens"].size(), 3u);
    EXPECT_EQ(results.at("a")["tokens"], results.at("b")["tokens"]);
}

/** Each line is the one bad line between two good ones. */
TEST_F(Serve, NoLineKeepsTheOthersFromBeingServed) {
    const auto nested = [](const std::string &open, const std::string &close) {
        std::string text;
        for (int i = 0; i < 60'000; i++) {
            text += open;
        }
        for (int i = 0; i < 60'000; i++) {
            text += close;
        }
        return text;
    };
    const std::string megabytes(10'000'000, 'x');
    const std::vector<std::string> bad{
        R"({"id":"b","prompt":"x","temperature":1e999})",
        R"({"id":"b","prompt":"x","seed":-1e999})",
        R"({"id":"b","tokens":[1e999]})",
        R"({"id":)" + nested("[", "]") + R"(,"prompt":"x"})",
        R"({"id":"b","tokens":)" + nested(R"({"a":[)", "]}") + "}",
        nested("[", ""),
        R"({"id":"b","prompt":"x","unknown":)" + nested("[", "]") + "}",
        R"({"id":")" + megabytes + R"(","prompt":"x"})",
        R"({"id":"b","prompt":"x","conversation":")" + megabytes + R"("})",
        R"({"id":"b","prompt":"x",")" + megabytes + R"(":1})",
        R"({"id":"b","prompt":"x","temperature":")" + megabytes + R"("})",
        R"({"id":"b","prompt":")" + megabytes + R"("})",
        megabytes,
    };
    for (const std::string &line : bad) {
        const std::string good = R"(","prompt":"It was","max_tokens":2})";
        write("{\"id\":\"first" + good + "\n" + line + "\n{\"id\":\"last" + good + "\n");
        const auto out = shell(std::string(SERVE) + settings + " --json 2>&1");
        ASSERT_EQ(out.status, 0) << line.substr(0, 60);
        EXPECT_LT(out.text.size(), 5000u) << line.substr(0, 60);
        const auto results = parse(out.text);
        EXPECT_EQ(results.at("first")["outcome"], "done");
        EXPECT_EQ(results.at("last")["outcome"], "done");
        EXPECT_EQ(results.at("totals")["totals"]["failed"], 1) << line.substr(0, 60);
    }
}

TEST_F(Serve, ReadsRequestsAsTheyAreNeeded) {
    // Streams that end when the program does. `head` ends it after the first results.
    const auto first = [&](const std::string &stream, const std::string &filter) {
        const auto out = shell(stream + " | " + SERVE + " --model " + MODEL +
                               " --requests /dev/stdin --quiet --json 2>&1 | " + filter);
        std::istringstream in(out.text);
        std::string line;
        std::getline(in, line);
        return Json::parse(line);
    };
    const std::string request = R"(\"prompt\":\"x\",\"max_tokens\":1})";
    const auto numbered = first("seq -f \"{\\\"id\\\":\\\"r%.0f\\\"," + request + "\" 1000000000", "head -n 1");
    EXPECT_EQ(numbered["id"], "r1");
    EXPECT_EQ(numbered["outcome"], "done");
    // No line is a request, and all have the same id: results come, and one request at a time runs.
    EXPECT_EQ(first("yes '{\"id\":'", "head -n 1")["error"], "line 1: the line is not JSON");
    EXPECT_EQ(first("yes \"{\\\"id\\\":\\\"same\\\"," + request + "\"", "grep -m 1 done")["id"], "same");
}

TEST_F(Serve, TwoRanksGiveTheTokensOfOne) {
    const std::string serve = serve_on_two_ranks();
    if (serve.empty()) {
        GTEST_SKIP() << "skipped: built without MPI";
    }
    write(many());
    const std::string ranks = serve + settings + " --json";
    for (const char *draft : {"", " --draft 4"}) {
        const auto one = shell(std::string(SERVE) + settings + " --json" + draft), two = shell(ranks + draft);
        ASSERT_EQ(one.status, 0);
        ASSERT_EQ(two.status, 0);
        const auto want = parse(one.text), got = parse(two.text);
        ASSERT_EQ(got.size(), 21u);
        for (const auto &[id, result] : want) {
            if (id != "totals") {
                EXPECT_EQ(result["outcome"], "done") << result;
                EXPECT_EQ(got.at(id)["tokens"], result["tokens"]) << id << draft;
            }
        }
        EXPECT_EQ(got.at("totals")["totals"]["ranks"], 2);
        // Each rank's cache holds its own heads only.
        const auto bytes = [](const Json &totals) { return totals["totals"]["cache_bytes_host"].get<double>(); };
        EXPECT_LT(bytes(got.at("totals")), 0.7 * bytes(want.at("totals")));
    }
    // Of quantised weights each rank has whole blocks.
    const QuantizedModel quantized(GGML_TYPE_Q8_0);
    const std::string options = engine + " --model " + quantized.path() + " --max-seqs 6 --window 32 --json";
    const auto one = shell(std::string(SERVE) + options), two = shell(serve + options);
    ASSERT_EQ(two.status, 0) << two.text;
    const auto want = parse(one.text), got = parse(two.text);
    std::size_t equal = 0;
    for (const auto &[id, result] : want) {
        if (id != "totals") {
            EXPECT_EQ(got.at(id)["outcome"], "done") << result;
            EXPECT_EQ(got.at(id)["tokens"].size(), result["tokens"].size()) << id;
            equal += got.at(id)["tokens"] == result["tokens"];
        }
    }
    // Activations are rounded to 8 bits: sums in another order become other numbers, and this model's tokens are close.
    EXPECT_GE(equal, want.size() / 2);
    std::printf("q8_0 on two ranks: the tokens of %zu of %zu requests are those of one rank\n", equal, want.size() - 1);
    // A rank that fails at start ends the others.
    const auto failed = shell(ranks + " --window 4294967295 2>&1");
    EXPECT_NE(failed.status, 0);
}

}  // namespace
