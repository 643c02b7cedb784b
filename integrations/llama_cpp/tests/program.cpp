// llama-stream, run as a process.
#include "model_checks.hpp"
#include "support/host.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <sys/stat.h>

namespace {

struct Output {
    int status = -1;
    std::string text;
    std::vector<nlohmann::json> lines() const {
        std::vector<nlohmann::json> all;
        std::istringstream in(text);
        for (std::string line; std::getline(in, line);) {
            all.push_back(nlohmann::json::parse(line));
        }
        return all;
    }
};

Output run(const std::string &arguments, const std::string &redirect = "2>/dev/null") {
    Output out;
    std::FILE *pipe = popen((std::string(LLAMA_STREAM) + " " + arguments + " " + redirect).c_str(), "r");
    char buffer[4096];
    for (std::size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
        out.text.append(buffer, n);
    }
    const int status = pclose(pipe);
    out.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return out;
}

/** A temporary file, removed with this object. */
struct File {
    std::string path = testing::TempDir() + "skc_" + std::to_string(std::random_device()());
    File() = default;
    explicit File(const std::string &text) { std::ofstream(path, std::ios::binary) << text; }
    ~File() { std::remove(path.c_str()); }
};

/** A chat template in Jinja, which is also in llama.cpp's list of known ones. */
const std::string CHATML =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}";
const std::string MODEL = std::string("-m ") + DATA "/tiny-llama-bytes.gguf -t 1";
const std::string TEXT = std::string(" -f ") + DATA "/stream.txt";

}  // namespace

TEST(Program, ScoresAText) {
    const std::string size = " -n 1400 --sink 4 --window 252 --json";
    const Output sink = run(MODEL + TEXT + size + " --kv-dtype f32");
    ASSERT_EQ(sink.status, 0);
    const nlohmann::json record = sink.lines().at(0);
    for (const char *key : {"mode",
                            "tokens",
                            "scored",
                            "ppl",
                            "ppl_last_tenth",
                            "tokens_per_s",
                            "cache_bytes",
                            "peak_rss_bytes",
                            "sink",
                            "window",
                            "chunk",
                            "stride",
                            "threads",
                            "kv_dtype",
                            "ms_per_token",
                            "ms_per_token_second_tenth",
                            "ms_per_token_last_tenth",
                            "ms_per_token_one_by_one",
                            "ms_per_call_p50",
                            "ms_per_call_p99",
                            "rss_bytes_by_tenth"}) {
        EXPECT_TRUE(record.contains(key)) << key;
    }
    EXPECT_EQ(record["mode"], "sink");
    EXPECT_EQ(record["tokens"], 1400);
    EXPECT_EQ(record["scored"], 1400);
    EXPECT_GE(record["ms_per_call_p99"], record["ms_per_call_p50"]);
    EXPECT_EQ(record["rss_bytes_by_tenth"].size(), 10U);

    // The same perplexity with chunks and single tokens, and as llama.cpp with context shift of one token per step.
    const double ppl = record["ppl"];
    EXPECT_NEAR(run(MODEL + TEXT + size + " --kv-dtype f32 --chunk 1").lines().at(0)["ppl"], ppl, 1e-4 * ppl);
    const Output stock = run(MODEL + TEXT + size + " --kv-dtype f32 --chunk 1 --stock --discard 1");
    ASSERT_EQ(stock.status, 0);
    EXPECT_EQ(stock.lines().at(0)["mode"], "stock");
    // llama.cpp's flash attention computes partly in f16.
    EXPECT_NEAR(stock.lines().at(0)["ppl"], ppl, 3e-3 * ppl);
    const Output plain = run(MODEL + TEXT + size + " --kv-dtype f32 --chunk 1 --stock --discard 1 --no-flash");
    EXPECT_NEAR(plain.lines().at(0)["ppl"], ppl, 1e-4 * ppl);
    EXPECT_NEAR(run(MODEL + TEXT + size + " --kv-dtype q8/q4").lines().at(0)["ppl"], ppl, 2e-2 * ppl);
    EXPECT_EQ(run(MODEL + TEXT + size + " --stride 7").lines().at(0)["scored"], 200);
    EXPECT_EQ(run(MODEL + TEXT + " -n 600 --window 252 --stock --kv-dtype q8_0 --json").status, 0);
}

namespace {

/** One line on stderr, exit code 2. */
void expect_error(const std::string &arguments, const std::string &what) {
    const Output out = run(arguments, "2>&1");
    EXPECT_EQ(out.status, 2) << arguments << "\n" << out.text;
    EXPECT_EQ(out.text.rfind("error: ", 0), 0U) << out.text;
    EXPECT_EQ(out.text.find('\n') + 1, out.text.size()) << out.text;
    EXPECT_NE(out.text.find(what), std::string::npos) << out.text;
}

/** The bundled model with other bytes behind `name` and `skip` more. */
std::string damaged(const std::string &name, std::size_t skip, const std::string &bytes) {
    std::ifstream file(DATA "/tiny-llama-bytes.gguf", std::ios::binary);
    std::string whole(std::istreambuf_iterator<char>(file), {});
    const std::size_t at = whole.find(name);
    EXPECT_NE(at, std::string::npos);
    return whole.replace(at + name.size() + skip, bytes.size(), bytes);
}

}  // namespace

TEST(Program, DamagedModelsAreErrors) {
    using namespace std::string_literals;
    const auto rejected = [](const std::string &bytes, const std::string &what) {
        const File model(bytes);
        expect_error("-m " + model.path + TEXT + " -n 20 -t 1", what);
        expect_error("chat -m " + model.path + " -t 1 </dev/null", what);
    };
    // A key is its name, a type of four bytes, its value.
    const std::string blocks = "llama.block_count", epsilon = "llama.attention.layer_norm_rms_epsilon";
    rejected(damaged(blocks, 4, "\0\0\0\0"s), "has 0 for 'llama.block_count': 1 to 512 is allowed");
    rejected(damaged(blocks, 4, "\xFF\xFF\xFF\xFF"), "has 4294967295 for 'llama.block_count'");
    rejected(damaged(blocks, 4, "\7"), "tensor 'blk.6.attn_norm.weight' not found");
    rejected(damaged(epsilon, 7, "\xB7"), "for '" + epsilon + "': it must be finite and above 0");
    rejected(damaged("<0x4", 0, "2"), "has token '<0x42>' twice");
    // A tensor is its name, the number of its dimensions, these, its type, its offset.
    rejected(damaged("blk.0.attn_q.weight", 20, "\xE8\3"), "is not a valid GGUF file");
    rejected(damaged("GGUF", 0, "\4"), "is not a valid GGUF file");
    rejected("GGUF\3\0\0\0"s + "\0\0\0\0\0\0\0\0"s + "\1\0\0\0\0\0\0\0"s + "\21\0\0\0\0\0\0\0"s +
                 "general.alignment" + "\4\0\0\0\0\0\0\0"s,
             "alignment 0 is not a power of 2");
}

// What the checks reject is damaged, and not only unusual.
TEST(Program, TheChecksAcceptModelsOfEveryArchitecture) {
    std::map<std::string, RandomModel> all = supported_models();
    for (const auto &[name, unsupported] : unsupported_models()) {
        all.emplace(name, unsupported.model);
    }
    for (const auto &[name, model] : all) {
        const File file;
        model.write(file.path);
        EXPECT_NO_THROW(programs::check_model(programs::GgufFile(file.path))) << name;
    }
}

TEST(Program, ErrorsSayWhatIsWrong) {
    const File empty(""), garbage("not a model"), text("abc");
    expect_error("", "--model is required");
    expect_error(MODEL, "--file is required");
    expect_error(MODEL + " -f /nowhere", "does not exist");
    expect_error(MODEL + " -f " + empty.path, "is empty");
    expect_error("-m " + garbage.path + TEXT, "is not a valid GGUF file");
    expect_error("-m /dev/zero" + TEXT, "model '/dev/zero' is not a file");
    expect_error(MODEL + " -f " DATA, "File is actually a directory");
    expect_error(MODEL + " -f /dev/zero", "has 2^31 bytes or more");
    expect_error(MODEL + TEXT + " --stride 0", "--stride: Value 0 not in range 1 to");
    expect_error(MODEL + TEXT + " --threads 99999999999", "--threads");
    expect_error("chat " + MODEL + " -f " DATA, "File is actually a directory");
    expect_error("chat " + MODEL + " -f /dev/zero", "line 1 does not end");
    expect_error("chat " + MODEL + " --temp nan -f " + text.path, "--temp nan: it must be finite");
    expect_error("chat " + MODEL + " -n 0 -f " + text.path, "--predict: Value 0 not in range 1 to");
    expect_error(MODEL + " -n 9 -f " + text.path, "--tokens 9: the text has 3");
    expect_error(MODEL + TEXT + " --kv-dtype q8_0",
                 "--kv-dtype q8_0: with sinkcache f32, f16, bf16, q8, q4, or two of them");
    expect_error(MODEL + TEXT + " --kv-dtype x --stock", "--kv-dtype x");
    expect_error(MODEL + TEXT + " --window 0", "--window 1 to 2^30");
    expect_error(MODEL + TEXT + " --window 100 --stock", "128 tokens at a time do not fit into a window of 100");
    expect_error(MODEL + TEXT + " --chunk 0", "--chunk");
    expect_error(MODEL + TEXT + " --what", "--what");
    expect_error("chat", "--model is required");
    expect_error("compare " + MODEL, "--file is required");
    expect_error("compare " + MODEL + TEXT + " --windows 75",
                 "--windows 75: with 4 sinks and 16 tokens in a round, 76 to");
    expect_error("compare " + MODEL + TEXT + " --windows 2000000", "--windows 2000000: with 4 sinks");
    expect_error("compare " + MODEL + TEXT + " --sink 4294967295", "--sink 4294967295: allowed are 0 to 1048576");
    expect_error("compare " + MODEL + TEXT + " --kv-dtype q8", "--kv-dtype");
    expect_error("compare " + MODEL + " -f " + empty.path, "is empty");
    const File model;
    unsupported_models().at("mamba").model.write(model.path);
    expect_error("-m " + model.path + TEXT, "the model has no tokenizer");
    auto mamba = unsupported_models().at("mamba").model;
    mamba.tokenizer_of = DATA "/tiny-llama-bytes.gguf";
    mamba.tensors[0].dims[1] = 259;
    mamba.write(model.path);
    expect_error("-m " + model.path + TEXT + " -n 10", "a recurrent model has no KV cache");
}

TEST(Program, ComparesWaysToStayWithinAWindow) {
    const File text("A short text, which is repeated.");
    const auto records =
        run("compare " + MODEL + " -f " + text.path + " --windows 64,128 -n 8 --rounds 2 --json").lines();
    ASSERT_EQ(records.size(), 2U);
    for (const nlohmann::json &record : records) {
        for (const char *way : {"recompute", "shift_by_one", "shift_by_half", "cached", "sinkcache"}) {
            EXPECT_GT(record.at(std::string(way) + "_ms").get<double>(), 0) << way;
        }
    }
    EXPECT_EQ(records[0].at("window"), 64);
    EXPECT_EQ(records[1].at("window"), 128);
    const Output table = run("compare " + MODEL + TEXT + " --windows 128 --rounds 1");
    EXPECT_EQ(table.status, 0);
    EXPECT_NE(table.text.find("recomputing/sinkcache"), std::string::npos);
}

// A byte order mark and carriage returns are no part of a prompt.
TEST(Program, ChatsOverATextFromAnotherSystem) {
    const File plain("hello\nthere\n"), other("\xEF\xBB\xBFhello\r\n\r\nthere\r\n");
    const std::string chat = "chat " + MODEL + " --predict 3 --temp 0 --json -f ";
    const auto want = run(chat + plain.path).lines(), got = run(chat + other.path).lines();
    ASSERT_EQ(want.size(), 2U);
    ASSERT_EQ(got.size(), 2U);
    for (std::size_t i = 0; i < 2; ++i) {
        EXPECT_EQ(got[i]["prompt_tokens"], want[i]["prompt_tokens"]);
        EXPECT_EQ(got[i]["answer"], want[i]["answer"]);
    }
}

// Three processes hold the conversation of one: with a chat template too, and with answers that end at their limit.
TEST(Program, ChatsGoOnInAnotherProcess) {
    Shape shape;
    shape.n_vocab = 259;
    RandomModel random = decoder("llama", shape);
    random.tokenizer_of = DATA "/tiny-llama-bytes.gguf";
    random.strings["tokenizer.chat_template"] = CHATML;
    const File model, saved, all("hello\nthere\nyou\nwho\nread\n"), first("hello\nthere\n"), second("you\n"),
        third("who\nread\n");
    random.write(model.path);
    for (const std::string &with : {MODEL, "-m " + model.path + " -t 1"}) {
        const std::string chat = "chat " + with + " --window 60 --predict 20 --temp 0 --json -f ";
        const std::string system = with == MODEL ? "" : " --system Be.";
        const auto want = run(chat + all.path + system).lines();
        ASSERT_EQ(want.size(), 5U);
        std::vector<nlohmann::json> got = run(chat + first.path + system + " --save " + saved.path).lines();
        const std::string on = " --load " + saved.path + " --save " + saved.path;
        for (const std::string &prompts : {second.path, third.path}) {
            const Output out = run(chat + prompts + on);
            EXPECT_EQ(out.status, 0);
            const auto lines = out.lines();
            got.insert(got.end(), lines.begin(), lines.end());
        }
        ASSERT_EQ(got.size(), 5U);
        for (std::size_t i = 0; i < 5; ++i) {
            for (const char *key : {"round", "prompt_tokens", "generated_tokens", "processed_tokens", "answer"}) {
                EXPECT_EQ(got[i][key], want[i][key]) << with << ", round " << i + 1;
            }
        }
    }
}

TEST(Program, AChatThatCannotBeLoadedIsAnError) {
    const File saved, prompts("hello\n");
    const std::string chat = "chat " + MODEL + " --window 60 --predict 5 --temp 0 -f " + prompts.path;
    ASSERT_EQ(run(chat + " --save " + saved.path).status, 0);
    const std::string load = " --load " + saved.path;
    ASSERT_EQ(run(chat + load).status, 0);
    expect_error(chat + " --load /nowhere/chat", "--load '/nowhere/chat' cannot be read");
    expect_error(chat + " --load /", "--load '/' cannot be read");
    expect_error(chat + " --load " + prompts.path, "is not a chat that this version of llama-stream has saved");
    expect_error(chat + load + " --stock", "--save and --load need sinkcache: not --stock");
    expect_error(chat + load + " --system Be.", "--system with --load");
    expect_error(chat + load + " --window 61", "window");
    expect_error(chat + load + " --kv-dtype f32", "storage type of K");
    expect_error(chat + " --save /nowhere/chat", "folder '/nowhere' cannot be opened");
    expect_error(chat + " --save /tmp", "--save '/tmp' is not a file");
    // Nothing takes the place of a pipe or of a link.
    const File pipe, link;
    ASSERT_EQ(mkfifo(pipe.path.c_str(), 0600), 0);
    expect_error(chat + " --save " + pipe.path, "is not a file");
    std::filesystem::create_symlink(saved.path, link.path);
    ASSERT_EQ(run(chat + load + " --save " + link.path).status, 0);
    EXPECT_TRUE(std::filesystem::is_symlink(link.path));
    ASSERT_EQ(run(chat + load).status, 0);

    std::ifstream file(saved.path, std::ios::binary);
    const std::string whole(std::istreambuf_iterator<char>(file), {});
    for (const std::size_t at : {std::size_t{9}, std::size_t{50}, whole.size() / 2, whole.size() - 1}) {
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ 1);
        const File damaged(bytes), cut(whole.substr(0, at));
        expect_error(chat + " --load " + damaged.path, "is damaged");
        expect_error(chat + " --load " + cut.path, "is damaged");
    }
    std::string model = damaged("tokenizer.ggml.model", 0, "");
    model[model.size() - 100] = static_cast<char>(model[model.size() - 100] ^ 1);
    const File changed(model);
    expect_error("chat -m " + changed.path + " -t 1 --window 60 -f " + prompts.path + load,
                 "was saved with another model");
}

// More than ten times the window: every token is decoded exactly once.
TEST(Program, ChatsForManyRounds) {
    std::string prompts;
    for (int i = 0; i < 50; ++i) {
        prompts += "And what did he say about number " + std::to_string(10 + i) + "?\n\n";
    }
    const File file(prompts);
    for (const std::string how : {"", " --stock"}) {
        const Output out =
            run("chat " + MODEL + " --sink 4 --window 252 --predict 25 --temp 0 --json -f " + file.path + how);
        ASSERT_EQ(out.status, 0);
        const auto rounds = out.lines();
        ASSERT_EQ(rounds.size(), 50U);
        std::uint64_t processed = 0, all = 0;
        for (std::size_t i = 0; i < 50; ++i) {
            EXPECT_EQ(rounds[i]["round"], i + 1);
            EXPECT_GT(rounds[i]["ms_to_first_token"], 0.0);
            const std::uint64_t generated = rounds[i]["generated_tokens"];
            ASSERT_GT(generated, 0U);
            // A line break before and after the prompt, and the last token of an answer that was cut off.
            const std::size_t length = std::string("And what did he say about number 10?").size();
            EXPECT_EQ(rounds[i]["prompt_tokens"], length + (i == 0 ? 2 : 3));
            processed += std::uint64_t(rounds[i]["prompt_tokens"]) + generated - 1;
            EXPECT_EQ(rounds[i]["processed_tokens"], processed);
            all = processed;
        }
        EXPECT_GT(all, 10U * 256U);
    }
}

// The system message stays, spaces are the markers of thoughts, and no token is processed twice.
TEST(Program, PinsTheSystemMessageAndDropsThoughts) {
    std::string all, first, second;
    for (int i = 0; i < 20; ++i) {
        all += "question " + std::to_string(i) + "\n";
        (i < 10 ? first : second) += "question " + std::to_string(i) + "\n";
    }
    const File prompts(all), half(first), rest(second), saved;
    const std::string any = "chat " + MODEL + " --sink 4 --window 120 --predict 12 --json";
    const std::string chat = any + " --temp 0 -f ";
    const std::string edits = " --pin-system --drop-thoughts ' ' ' '";
    const Output out = run(chat + prompts.path + edits + " --system 'It was a dark and stormy night.'");
    ASSERT_EQ(out.status, 0);
    const auto lines = out.lines();
    ASSERT_EQ(lines.size(), 20U);
    // `<s>`, the message and a new line, of which four tokens are sinks.
    EXPECT_EQ(lines[0]["pinned_tokens"], 1 + 31 + 1 - 4);
    std::uint64_t processed = 0, dropped = 0;
    for (const auto &line : lines) {
        // A pending token is the next round's first.
        EXPECT_LE(line["processed_tokens"].get<std::uint64_t>() - processed,
                  line["prompt_tokens"].get<std::uint64_t>() + line["generated_tokens"].get<std::uint64_t>());
        processed = line["processed_tokens"];
        dropped += line["dropped_tokens"].get<std::uint64_t>();
        EXPECT_TRUE(&line == &lines[0] || !line.contains("pinned_tokens"));
    }
    EXPECT_GT(dropped, 40U);
    // Without the edits other answers follow the first. Drawn ones: the most likely tokens repeat themselves.
    const std::string drawn = any + " --temp 1 --system 'It was a dark and stormy night.' -f " + prompts.path;
    const auto edited = run(drawn + edits).lines(), plain = run(drawn).lines();
    ASSERT_EQ(edited.size(), 20U);
    ASSERT_EQ(plain.size(), 20U);
    EXPECT_EQ(plain[0]["answer"], edited[0]["answer"]);
    std::size_t different = 0;
    for (std::size_t i = 0; i < plain.size(); ++i) {
        different += plain[i]["answer"] != edited[i]["answer"];
    }
    EXPECT_GT(different, 3U);
    // A saved conversation goes on with pins and ranges, if there is room for them.
    const std::string markers = " --drop-thoughts ' ' ' '";
    ASSERT_EQ(run(chat + half.path + edits + " --system 'It was a dark and stormy night.' --save " + saved.path).status,
              0);
    const auto after = run(chat + rest.path + markers + " --max-pinned 29 --load " + saved.path).lines();
    ASSERT_EQ(after.size(), 10U);
    for (std::size_t i = 0; i < after.size(); ++i) {
        EXPECT_EQ(after[i]["answer"], lines[10 + i]["answer"]) << i;
    }
    expect_error(chat + rest.path + markers + " --load " + saved.path, "max_pinned");
    // Refused: it stays in the cache, and the log says so.
    const std::string little = " --system 'It was a dark.' --max-segments 1 --max-pinned 5";
    const Output refused = run(chat + prompts.path + edits + little, "2>&1 >/dev/null");
    EXPECT_NE(refused.text.find("[round 1: 12 tokens of the system message are not pinned: SKC_STATUS_NO_ROOM"),
              std::string::npos)
        << refused.text;
    EXPECT_NE(refused.text.find("tokens of thoughts stay in the cache: SKC_STATUS_NO_ROOM"), std::string::npos)
        << refused.text;
    const Output trained = run("chat " + MODEL + " --window 240 --predict 2 --temp 0 --pin-system --system " +
                                   "'It was a dark and stormy night.' -f " + rest.path,
                               "2>&1 >/dev/null");
    EXPECT_NE(trained.text.find("positions: the model was trained with 256]"), std::string::npos) << trained.text;
    expect_error("chat " + MODEL + " --pin-system -f " + rest.path, "--pin-system needs --system");
    expect_error("chat " + MODEL + " --stock --drop-thoughts -f " + rest.path, "need sinkcache: not --stock");
    expect_error("chat " + MODEL + " --drop-thoughts '<t>' -f " + rest.path, "--drop-thoughts takes two texts");
    expect_error("chat " + MODEL + " --max-segments 1025 -f " + rest.path, "1025");
    const std::string no_segments = " with --max-segments 0: a pinned run or a dropped range is a segment";
    const std::string none = "chat " + MODEL + " --max-segments 0 -f " + rest.path;
    expect_error(none + " --max-pinned 30", "--max-pinned" + no_segments);
    expect_error(none + " --drop-thoughts", "--drop-thoughts" + no_segments);
    expect_error(none + " --pin-system --system x", "--pin-system" + no_segments);
    expect_error("chat " + MODEL + " --max-pinned 0 --pin-system --system x -f " + rest.path,
                 "--pin-system with --max-pinned 0: there is no room");
}

// With the model's chat template, and answers that may end before the limit.
TEST(Program, ChatsWithTheTemplateOfTheModel) {
    Shape shape;
    shape.n_vocab = 259;
    RandomModel random = decoder("llama", shape);
    random.tokenizer_of = DATA "/tiny-llama-bytes.gguf";
    random.strings["tokenizer.chat_template"] = CHATML;
    const File model, prompts("hello\nthere\n");
    random.write(model.path);
    const Output out =
        run("chat -m " + model.path + " -t 1 --system Be. -n 5 --temp 1.5 --seed 3 --json -f " + prompts.path);
    ASSERT_EQ(out.status, 0);
    const auto rounds = out.lines();
    ASSERT_EQ(rounds.size(), 2U);
    // <s>, the system message, the prompt and the beginning of the answer. A byte is a token.
    const std::string first =
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    EXPECT_EQ(rounds[0]["prompt_tokens"], 1 + first.size());
    const std::string second = "<|im_end|>\n<|im_start|>user\nthere<|im_end|>\n<|im_start|>assistant\n";
    const std::uint64_t pending = rounds[0]["generated_tokens"] == 5 ? 1 : 0;
    EXPECT_EQ(rounds[1]["prompt_tokens"], second.size() + pending);

    random.strings["tokenizer.chat_template"] = "not a template";
    random.write(model.path);
    const Output unknown = run("chat -m " + model.path + " -f " + prompts.path, "2>&1");
    EXPECT_EQ(unknown.status, 2);
    EXPECT_NE(unknown.text.find("--raw"), std::string::npos) << unknown.text;
    EXPECT_EQ(run("chat -m " + model.path + " -t 1 -n 3 --raw --json < " + prompts.path).lines().size(), 2U);
}
