// A conversation whose answers carry thoughts, which are dropped from the cache each round: nothing is read twice, and
// the model answers as if the conversation had been read again without the thoughts.
#include "support.hpp"

#include <cmath>
#include <cstdio>
#include <numeric>

namespace {

using namespace test;

constexpr std::size_t ROUNDS = 60, SYSTEM = 11, QUESTION = 3, ANSWER = 7, THOUGHT = 24, RESTATED = 16;
/** With sinks and the system prompt not longer than the model was trained with. */
constexpr std::uint32_t LONG_WINDOW = 244;

PluginConfig config(std::uint32_t local_window = 0) {
    PluginConfig c = plugin_config(1);
    c.window = LONG_WINDOW;
    c.local_window = local_window;
    c.max_pinned = 64;
    c.max_segments = 32;
    return c;
}

/** Feeds given tokens, and scores them. */
class Reader {
public:
    explicit Reader(const PluginConfig &config) : model_(weights(), config, single_rank(), 1) {
        model_.observe([this](const OutputRow &, const float *logits) {
            rows_.emplace_back(logits, logits + model_.config().vocabulary);
        });
        model_.plugin().reset(0);
    }

    /** Returns the sum of -ln p of the tokens. */
    double feed(const std::vector<Token> &tokens) {
        Batch batch;
        batch.seq_ids = {0};
        batch.n_tokens = {static_cast<std::int32_t>(tokens.size())};
        batch.tokens = tokens;
        for (std::uint32_t i = 0; i < tokens.size(); i++) {
            batch.output_rows.push_back({i, {}, 0});
        }
        std::vector<std::vector<float>> before = std::move(rows_);
        rows_.clear();
        model_.forward(batch);
        double sum = before.empty() ? 0 : surprise(before.back(), tokens[0]);
        for (std::size_t i = 1; i < tokens.size(); i++) {
            sum += surprise(rows_[i - 1], tokens[i]);
        }
        fed_ += tokens.size();
        return sum;
    }
    AttentionPlugin &plugin() { return model_.plugin(); }
    std::size_t fed() const { return fed_; }

private:
    CpuModel model_;
    std::vector<std::vector<float>> rows_;
    std::size_t fed_ = 0;

    static double surprise(const std::vector<float> &logits, Token token) {
        const double most = *std::max_element(logits.begin(), logits.end());
        double sum = 0;
        for (const float x : logits) {
            sum += std::exp(x - most);
        }
        return std::log(sum) + most - logits[static_cast<std::size_t>(token)];
    }
};


/** A round: a question, thoughts about it, an answer. Questions and answers are consecutive in the text. */
struct Round {
    std::vector<Token> question, thought, answer;

    explicit Round(std::size_t i) {
        const std::size_t at = 40000 + i * (QUESTION + ANSWER);
        question = text(at, QUESTION);
        answer = text(at + QUESTION, ANSWER);
        // Something else, then what leads to the answer once more: a model of bytes goes by the last few.
        thought = text(300000 + 100 * i, THOUGHT - RESTATED);
        const auto restated = text(at + QUESTION - RESTATED, RESTATED);
        thought.insert(thought.end(), restated.begin(), restated.end());
    }
};

struct Conversation {
    /** exp of the mean of -ln p of the answers' tokens. */
    double perplexity = 0;
    /** Most dropped ranges at a time that the window had not moved past. */
    std::uint64_t most_alive = 0;
};

enum class Thoughts { none, dropped, kept };

/** Holds the conversation with a pinned system prompt. Thoughts are dropped when their answer is complete. */
Conversation talk(const PluginConfig &config, Thoughts thoughts) {
    Reader reader(config);
    AttentionPlugin &plugin = reader.plugin();
    std::vector<Token> system = text(1000, SYSTEM);
    system.insert(system.begin(), 1);
    reader.feed(system);
    plugin.pin(0, 0, static_cast<std::uint32_t>(system.size()));
    Conversation result;
    double sum = 0;
    for (std::size_t i = 0; i < ROUNDS; i++) {
        const Round round(i);
        reader.feed(round.question);
        const std::uint64_t first = plugin.length(0);
        if (thoughts != Thoughts::none) {
            reader.feed(round.thought);
        }
        sum += reader.feed(round.answer);
        if (thoughts == Thoughts::dropped) {
            plugin.evict_range(0, first, THOUGHT);
            result.most_alive = std::max(result.most_alive, plugin.state(0).counted_segments - 1);
        }
    }
    result.perplexity = std::exp(sum / static_cast<double>(ROUNDS * ANSWER));
    // Each token was read once, and is named by its index.
    const std::size_t n = system.size() + ROUNDS * (QUESTION + ANSWER + (thoughts != Thoughts::none ? THOUGHT : 0));
    EXPECT_EQ(reader.fed(), n);
    EXPECT_EQ(plugin.length(0), n);
    EXPECT_EQ(plugin.state(0).pinned, system.size() - SINK);
    return result;
}

void compare(const char *what, const PluginConfig &config) {
    const Conversation dropped = talk(config, Thoughts::dropped), again = talk(config, Thoughts::none);
    const Conversation kept = talk(config, Thoughts::kept);
    const double ratio = dropped.perplexity / again.perplexity;
    std::printf("%s: perplexity of the answers %.4f with dropped thoughts (up to %llu ranges at a time), %.4f read "
                "again without them: %.4f; %.4f with all thoughts kept\n",
                what, dropped.perplexity, static_cast<unsigned long long>(dropped.most_alive), again.perplexity, ratio,
                kept.perplexity);
    EXPECT_GE(dropped.most_alive, 20u);
    EXPECT_LE(ratio, 1.05);
}

TEST(ThoughtsOfSixtyRounds, AnswersAreAsGoodAsReadAgainWithoutThem) { compare("one window", config()); }

// As in Gemma: every second layer has a window of 128 and ignores pins.
TEST(ThoughtsOfSixtyRounds, LayersThatDiffer) { compare("every second window 128", config(128)); }

// The engine's own answers. A space opens a thought and the next one closes it.
TEST(ThoughtsOfSixtyRounds, TheEngineReadsEachTokenOnce) {
    for (const std::uint32_t local : {0u, 128u}) {
        CpuModel model(weights(), config(local), single_rank(), 1);
        Executor executor(model, executor_config(1));
        const Token space = ' ' + LlamaConfig::byte_offset;
        std::uint64_t most = 0, dropped = 0, length = 0;
        for (std::size_t i = 0; i < ROUNDS; i++) {
            Request r = request(std::to_string(i), text(40000 + 100 * i, 6), 10);
            if (i == 0) {
                r.prompt.insert(r.prompt.begin(), 1);
                r.pin_prompt = r.prompt.size();
                r.conversation = "t";
            } else {
                r.start = Start::continued;
                r.source = "t";
            }
            r.drop_thoughts = ThoughtMarkers{space, space};
            const Result result = run(executor, {r}).at(r.id);
            EXPECT_EQ(result.outcome, Outcome::done) << result.error;
            EXPECT_EQ(result.notes, std::vector<std::string>());
            dropped += result.dropped;
            length = result.stream_length;
            most = std::max(most, model.plugin().state(0).counted_segments - 1);
        }
        EXPECT_EQ(executor.counters().context_tokens + executor.counters().decode_tokens, length);
        EXPECT_GT(dropped, 100u);
        EXPECT_GE(most, 20u);
    }
}

}  // namespace
