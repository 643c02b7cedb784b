// The parts below the executor: the GGUF reader, sampling, metrics. Products: products.cpp.
#include "metrics.hpp"
#include "quantized_model.hpp"
#include "report.hpp"
#include "support.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <regex>
#include <set>
#include <sstream>

namespace {

using namespace test;

std::string copy_of_model(const std::string &name, std::size_t bytes, const std::string &from = "",
                          const std::string &to = "") {
    std::ifstream in(MODEL, std::ios::binary);
    std::string all(std::istreambuf_iterator<char>(in), {});
    if (!from.empty()) {
        all.replace(all.find(from), from.size(), to);
    }
    const std::string path = testing::TempDir() + "inflight-" + name + ".gguf";
    std::ofstream(path, std::ios::binary) << all.substr(0, bytes);
    return path;
}

void expect_rejected(const std::string &path, const std::string &part) {
    try {
        LlamaWeights::load(path);
        ADD_FAILURE() << path << " was accepted";
    } catch (const std::runtime_error &error) {
        EXPECT_NE(std::string(error.what()).find("model '" + path + "'"), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
}

TEST(Parts, InvalidModelFilesAreRejected) {
    const std::size_t whole = std::filesystem::file_size(MODEL);
    for (std::size_t bytes : {std::size_t{0}, std::size_t{3}, std::size_t{20}, std::size_t{1000}, std::size_t{9000},
                              whole / 2, whole - 1}) {
        const auto path = copy_of_model("cut" + std::to_string(bytes), bytes);
        expect_rejected(path, bytes < 10000 ? "is not a valid GGUF file" : "is cut short");
        std::filesystem::remove(path);
    }
    const auto patched = [&](const std::string &name, const std::string &from, const std::string &to,
                             const std::string &part) {
        const auto path = copy_of_model(name, whole, from, to);
        expect_rejected(path, part);
        std::filesystem::remove(path);
    };
    using namespace std::string_literals;
    patched("bloom", "\5\0\0\0\0\0\0\0llama"s, "\5\0\0\0\0\0\0\0bloom"s, "architecture 'bloom'");
    patched("name", "blk.3.attn_q", "blk.3.attn_x", "has no tensor 'blk.3.attn_q.weight'");
    patched("key", "llama.block_count", "llama.block_coumt", "has no count 'llama.block_count'");
    patched("width", "llama.feed_forward_length\4\0\0\0\300\2"s, "llama.feed_forward_length\4\0\0\0\301\2"s,
            "it should be 705 x 256");
    patched("zero", "llama.attention.head_count\4\0\0\0\4"s, "llama.attention.head_count\4\0\0\0\0"s, "1 to 2^20");
    for (const std::string key : {"bos", "eos", "eot", "eom"}) {
        const std::string from = key == "bos" ? "bos" : "eos", end = "_token_id\4\0\0\0"s;
        patched(key, from + end + (key == "bos" ? "\1\0"s : "\2\0"s), key + end + "\3\1"s,
                "outside its vocabulary of 259");
    }
    expect_rejected("/nowhere/model.gguf", "is not a file");
    expect_rejected(testing::TempDir(), "is not a file");
    EXPECT_THROW(LlamaWeights::load(MODEL, 0, 3), std::runtime_error);
}

TEST(Parts, ZeroIsATokenAndContextsMayBeLongOrUnknown) {
    using namespace std::string_literals;
    const auto with = [](const std::string &from, const std::string &to) {
        const auto path = copy_of_model("keys", std::filesystem::file_size(MODEL), from, to);
        const LlamaConfig config = LlamaWeights::load(path).config;
        std::filesystem::remove(path);
        return config;
    };
    const std::string number = "\4\0\0\0"s;
    EXPECT_EQ(with("bos_token_id" + number + "\1"s, "bos_token_id" + number + "\0"s).bos, 0);
    EXPECT_TRUE(with("eos_token_id" + number + "\2"s, "eos_token_id" + number + "\0"s).ends(0));
    EXPECT_EQ(with("llama.context_length", "llama.context_lengtx").trained_context, 0u);
    EXPECT_EQ(with("llama.context_length" + number + "\0\1\0\0"s, "llama.context_length" + number + "\0\0\100\0"s)
                  .trained_context,
              1u << 22);
}

/** Row `i` of the stacked matrices as f32. */
std::vector<float> row_of(const Weight &weight, std::size_t i) {
    std::vector<float> row(weight.k);
    for (const Matrix &part : weight.parts) {
        if (i < part.n) {
            part.unpack(i, row.data());
            return row;
        }
        i -= part.n;
    }
    ADD_FAILURE() << "no row " << i;
    return row;
}

std::vector<float> slice(const std::vector<float> &row, std::size_t from, std::size_t n) {
    return {row.begin() + static_cast<std::ptrdiff_t>(from), row.begin() + static_cast<std::ptrdiff_t>(from + n)};
}

void expect_shards_to_be(const std::string &path) {
    const LlamaWeights whole = LlamaWeights::load(path), first = LlamaWeights::load(path, 0, 2),
                       second = LlamaWeights::load(path, 1, 2);
    const LayerWeights &w = whole.layers[2], &a = first.layers[2], &b = second.layers[2];
    EXPECT_EQ(a.qkv.n + b.qkv.n, w.qkv.n);
    // Rank 1's first KV head is the model's second: its rows follow all query heads and the first K head.
    EXPECT_EQ(row_of(b.qkv, second.q_width()), row_of(w.qkv, whole.q_width() + 64));
    EXPECT_EQ(row_of(b.gate_up, 352), row_of(w.gate_up, 704 + 352));
    EXPECT_EQ(a.down.k + b.down.k, w.down.k);
    EXPECT_EQ(row_of(b.down, 9), slice(row_of(w.down, 9), 352, 352));
    EXPECT_EQ(row_of(a.down, 9), slice(row_of(w.down, 9), 0, 352));
    EXPECT_EQ(row_of(b.attention_out, 9), slice(row_of(w.attention_out, 9), 128, 128));
}

TEST(Parts, ShardsTogetherAreTheModel) {
    expect_shards_to_be(MODEL);
    expect_shards_to_be(QuantizedModel(GGML_TYPE_Q8_0).path());
}

TEST(Parts, ShardsAreWholeBlocks) {
    // Half of the attention's 256 columns is half a block of q4_K.
    const QuantizedModel model(GGML_TYPE_Q4_K);
    LlamaWeights::load(model.path());
    try {
        LlamaWeights::load(model.path(), 0, 2);
        ADD_FAILURE() << "half a block was accepted";
    } catch (const std::runtime_error &error) {
        const std::string part = "has tensor 'blk.0.attn_output.weight' of type q4_K in blocks of 256: "
                                 "columns 0 to 128 of this rank are not whole blocks";
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
}

TEST(Parts, MatricesLieInTheFile) {
    const LlamaWeights w = weights();
    const unsigned char *const first = w.file->data(), *const end = first + w.file->size();
    for (const Matrix &part : w.layers[3].gate_up.parts) {
        EXPECT_EQ(part.type, GGML_TYPE_F16);
        EXPECT_GE(part.data, first);
        EXPECT_LE(part.row(part.n), end);
    }
}

TEST(Parts, SamplingFollowsTheProbabilities) {
    const float logits[] = {0, std::log(2.0f), std::log(5.0f), -INFINITY};
    int counts[4] = {};
    for (std::uint64_t i = 0; i < 8000; i++) {
        counts[sample(logits, 4, {1.0f, 42}, i)]++;
    }
    EXPECT_NEAR(counts[0], 1000, 150);
    EXPECT_NEAR(counts[1], 2000, 200);
    EXPECT_NEAR(counts[2], 5000, 250);
    EXPECT_EQ(counts[3], 0);
    const float ties[] = {1, 3, 3};
    EXPECT_EQ(sample(ties, 3, {}, 9), 1);
}

TEST(Parts, AFailedTwinTakesNoBytesOfARunningAnswer) {
    LlamaConfig config = weights().config;
    const auto vocabulary = make_vocabulary(MODEL, config);
    std::ostringstream out;
    Report report(out, true, *vocabulary);
    Result twin;
    twin.id = "a";
    twin.outcome = Outcome::failed;
    report.token("a", 0xc3 + LlamaConfig::byte_offset);
    report.request(twin);
    report.token("a", 0xa9 + LlamaConfig::byte_offset);
    EXPECT_NE(out.str().find("{\"id\":\"a\",\"delta\":\"\u00e9\"}"), std::string::npos) << out.str();
}

TEST(Parts, MetricsHaveThePrometheusFormat) {
    Counters c;
    c.context_tokens = 10;
    c.decode_tokens = 20;
    c.drafted_tokens = 7;
    c.accepted_tokens = 3;
    c.running = 5;
    ParkingCounters p;
    p.on_disk = 6;
    p.memory_bytes = 7;
    p.disk_hits = 8;
    p.damaged = 9;
    const std::string path = testing::TempDir() + "inflight.prom";
    write_metrics(path, {c, p, 4096});
    std::ifstream file(path);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    for (const char *line :
         {"# TYPE sinkcache_inflight_tokens_total counter\n", "sinkcache_inflight_tokens_total{phase=\"context\"} 10\n",
          "sinkcache_inflight_tokens_total{phase=\"decode\"} 20\n",
          "sinkcache_inflight_draft_tokens_total{verdict=\"rejected\"} 4\n",
          "sinkcache_inflight_sequences{state=\"active\"} 5\n", "sinkcache_inflight_cache_bytes 4096\n",
          "sinkcache_inflight_parked_conversations{level=\"disk\"} 6\n",
          "sinkcache_inflight_parked_bytes{level=\"memory\"} 7\n",
          "sinkcache_inflight_parked_lookups_total{result=\"disk\"} 8\n",
          "sinkcache_inflight_parked_failures_total{kind=\"damaged\"} 9\n"}) {
        EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
    }
    EXPECT_EQ(prometheus_text({c, {}, 4096}).find("parked"), std::string::npos) << "without parking";
    EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
    std::filesystem::remove(path);
    EXPECT_THROW(write_metrics("/nowhere/x.prom", {c, p, 0}), std::runtime_error);
}

TEST(Parts, TheDashboardShowsExactlyTheMetrics) {
    const std::string text = prometheus_text({{}, ParkingCounters(), 0});
    std::ifstream file(DASHBOARD);
    const auto dashboard = nlohmann::json::parse(file);
    std::set<std::string> shown;
    for (const auto &panel : dashboard.at("panels")) {
        for (const auto &target : panel.at("targets")) {
            const std::string query = target.at("expr");
            const std::regex name("sinkcache_[a-z_]+");
            for (std::sregex_iterator at(query.begin(), query.end(), name), end; at != end; ++at) {
                shown.insert(at->str());
                EXPECT_NE(text.find("# TYPE " + at->str() + " "), std::string::npos) << query;
            }
        }
    }
    // And it shows all of them.
    std::istringstream lines(text);
    std::size_t families = 0;
    for (std::string line; std::getline(lines, line);) {
        families += line.rfind("# TYPE ", 0) == 0;
    }
    EXPECT_EQ(shown.size(), families);
}

}  // namespace
