// llama-stream, run as a process.
#include "support/host.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <random>

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
    EXPECT_EQ(run(MODEL + TEXT + size + " --stride 7").lines().at(0)["scored"], 200);
    EXPECT_EQ(run(MODEL + TEXT + " -n 600 --window 252 --stock --kv-dtype q8_0 --json").status, 0);
}

TEST(Program, ErrorsSayWhatIsWrong) {
    const File empty(""), garbage("not a model"), text("abc");
    const auto expect_error = [](const std::string &arguments, const std::string &what) {
        const Output out = run(arguments, "2>&1");
        EXPECT_NE(out.status, 0) << arguments;
        EXPECT_NE(out.text.find(what), std::string::npos) << out.text;
    };
    expect_error("", "--model is required");
    expect_error(MODEL, "--file is required");
    expect_error(MODEL + " -f /nowhere", "does not exist");
    expect_error(MODEL + " -f " + empty.path, "is empty");
    expect_error("-m " + garbage.path + TEXT, "llama.cpp cannot load it");
    expect_error(MODEL + " -n 9 -f " + text.path, "--tokens 9: the text has 3");
    expect_error(MODEL + TEXT + " --kv-dtype q8_0", "--kv-dtype q8_0: with sinkcache f32, f16 or bf16");
    expect_error(MODEL + TEXT + " --kv-dtype x --stock", "--kv-dtype x");
    expect_error(MODEL + TEXT + " --window 0", "--window 1 to 2^30");
    expect_error(MODEL + TEXT + " --window 100 --stock", "128 tokens at a time do not fit into a window of 100");
    expect_error(MODEL + TEXT + " --chunk 0", "--chunk");
    expect_error(MODEL + TEXT + " --what", "--what");
    expect_error("chat", "--model is required");
    const File model;
    unsupported_models().at("mamba").model.write(model.path);
    expect_error("-m " + model.path + TEXT, "the model has no tokenizer");
    auto mamba = unsupported_models().at("mamba").model;
    mamba.tokenizer_of = DATA "/tiny-llama-bytes.gguf";
    mamba.tensors[0].dims[1] = 259;
    mamba.write(model.path);
    expect_error("-m " + model.path + TEXT + " -n 10", "a recurrent model has no KV cache");
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

// With the model's chat template, and answers that may end before the limit.
TEST(Program, ChatsWithTheTemplateOfTheModel) {
    Shape shape;
    shape.n_vocab = 259;
    RandomModel random = decoder("llama", shape);
    random.tokenizer_of = DATA "/tiny-llama-bytes.gguf";
    random.strings["tokenizer.chat_template"] =
        "{% for message in messages %}{{'<|im_start|>' + message['role']}}{% endfor %}";
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
    EXPECT_EQ(unknown.status, 1);
    EXPECT_NE(unknown.text.find("--raw"), std::string::npos) << unknown.text;
    EXPECT_EQ(run("chat -m " + model.path + " -t 1 -n 3 --raw --json < " + prompts.path).lines().size(), 2U);
}
