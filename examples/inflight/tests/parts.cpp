// The parts below the executor: products, the GGUF reader, sampling, metrics.
#include "gemm.hpp"
#include "metrics.hpp"
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

TEST(Parts, ProductsAreBatchInvariant) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (const auto &[n, k] :
         {std::pair<std::size_t, std::size_t>{512, 256}, {259, 256}, {256, 704}, {100, 36}, {7, 3}}) {
        for (int threads : {1, 2}) {
            Gemm gemm(threads);
            Matrix w{n, k, std::vector<float>(n * k)};
            std::vector<float> row(k), want;
            std::generate(w.values.begin(), w.values.end(), [&] { return normal(random); });
            std::generate(row.begin(), row.end(), [&] { return normal(random); });
            for (std::size_t rows : {1, 2, 7, 8, 9, 31, 64, 65, 150}) {
                Activations x(k), y(n);
                x.resize(rows);
                y.resize(rows);
                std::generate(x.data(), x.data() + rows * k, [&] { return normal(random); });
                const std::size_t index = random() % rows;
                std::copy(row.begin(), row.end(), x.row(index));
                gemm.multiply(x.data(), rows, w, y.data());
                const std::vector<float> got(y.row(index), y.row(index) + n);
                want = want.empty() ? got : want;
                ASSERT_EQ(std::memcmp(got.data(), want.data(), n * sizeof(float)), 0)
                    << n << "x" << k << ", " << rows << " rows";
                for (std::size_t j = 0; j < n; j++) {
                    double sum = 0, size = 0;
                    for (std::size_t i = 0; i < k; i++) {
                        const double term = static_cast<double>(row[i]) * static_cast<double>(w.row(j)[i]);
                        sum += term;
                        size += std::abs(term);
                    }
                    ASSERT_NEAR(static_cast<double>(got[j]), sum, 1e-5 * size);
                }
            }
        }
    }
}

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
    expect_rejected("/nowhere/model.gguf", "is not a file");
    expect_rejected(testing::TempDir(), "is not a file");
    EXPECT_THROW(LlamaWeights::load(MODEL, 0, 3), std::runtime_error);
}

TEST(Parts, ShardsTogetherAreTheModel) {
    const LlamaWeights whole = weights(), first = LlamaWeights::load(MODEL, 0, 2),
                       second = LlamaWeights::load(MODEL, 1, 2);
    const LayerWeights &w = whole.layers[2], &a = first.layers[2], &b = second.layers[2];
    EXPECT_EQ(a.qkv.n + b.qkv.n, w.qkv.n);
    // Rank 1's first KV head is the model's second: its rows follow all query heads and the first K head.
    EXPECT_EQ(std::memcmp(b.qkv.row(second.q_width()), w.qkv.row(whole.q_width() + 64), 256 * sizeof(float)), 0);
    EXPECT_EQ(std::memcmp(b.gate_up.row(352), w.gate_up.row(704 + 352), 256 * sizeof(float)), 0);
    EXPECT_EQ(a.down.k + b.down.k, w.down.k);
    EXPECT_EQ(b.down.row(9)[5], w.down.row(9)[352 + 5]);
    EXPECT_EQ(b.attention_out.row(9)[5], w.attention_out.row(9)[128 + 5]);
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
