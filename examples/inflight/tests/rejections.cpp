// An invalid or failing request gets an error as its result; the other requests run.
#include "requests_file.hpp"
#include "support.hpp"

#include <sstream>

namespace {

using namespace test;

void expect_failed(const Result &r, const std::string &part) {
    EXPECT_EQ(r.outcome, Outcome::failed) << r.id;
    EXPECT_NE(r.error.find(part), std::string::npos) << r.id << ": \"" << r.error << "\" lacks \"" << part << "\"";
}

std::vector<Line> all_lines(std::istream &in, const LlamaConfig &config) {
    std::vector<Line> lines;
    LlamaConfig completed = config;
    const auto vocabulary = make_vocabulary(MODEL, completed);
    RequestReader reader(in, completed, *vocabulary);
    while (const auto line = reader.next()) {
        lines.push_back(*line);
    }
    return lines;
}

TEST(Rejections, OfRequestsByTheExecutor) {
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    ExecutorConfig config = executor_config(2);
    config.max_prompt = 500;
    config.max_tokens = 100;
    Executor executor(model, config);
    std::vector<Request> all{
        new_sequence("good", 0, 100, 5),  new_sequence("long", 0, 500, 5),       request("empty", {}, 5),
        request("outside", {1, 259}, 5),  request("negative", {-1}, 5),          new_sequence("none", 0, 5, 0),
        new_sequence("much", 0, 5, 101),  new_sequence("hot", 0, 5, 5),          new_sequence("cold", 0, 5, 5),
        new_sequence("unknown", 0, 5, 5), new_sequence("unknown fork", 0, 5, 5), new_sequence("end", 0, 5, 5),
        new_sequence("name", 0, 5, 5),    new_sequence("same name", 0, 5, 5),    new_sequence("two", 0, 5, 5)};
    all[7].sampling.temperature = -1;
    all[8].sampling.temperature = NAN;
    all[9].start = Start::continued;
    all[9].source = "nobody";
    all[10].start = Start::forked;
    all[10].source = "nobody";
    all[11].end = true;
    all[12].conversation = "talk";
    all[13].conversation = "talk";
    all[14].start = Start::continued;
    all[14].source = "talk";
    all[14].conversation = "other";
    const auto results = run(executor, all);
    EXPECT_EQ(results.at("good").outcome, Outcome::done);
    EXPECT_EQ(results.at("name").outcome, Outcome::done);
    expect_failed(results.at("long"), "501 tokens: at most 500");
    expect_failed(results.at("empty"), "prompt is empty");
    expect_failed(results.at("outside"), "token 259 of the prompt is outside the vocabulary of 259");
    expect_failed(results.at("negative"), "token -1");
    expect_failed(results.at("none"), "max_tokens is 0: 1 to 100");
    expect_failed(results.at("much"), "max_tokens is 101: 1 to 100");
    expect_failed(results.at("hot"), "temperature is -1");
    expect_failed(results.at("cold"), "temperature is nan");
    expect_failed(results.at("unknown"), "no conversation 'nobody'");
    expect_failed(results.at("unknown fork"), "no conversation 'nobody'");
    expect_failed(results.at("end"), "only a conversation that is continued can end");
    expect_failed(results.at("same name"), "conversation 'talk' already");
    expect_failed(results.at("two"), "cannot name another");
    EXPECT_EQ(executor.counters().failed, 13u);
    // An id is unique among waiting and running requests.
    executor.submit(new_sequence("twin", 0, 5, 5));
    executor.submit(new_sequence("twin", 0, 5, 5));
    while (executor.step()) {
    }
    const auto twins = executor.take_results();
    ASSERT_EQ(twins.size(), 2u);
    expect_failed(twins[0], "another request with id 'twin'");
    EXPECT_EQ(twins[1].outcome, Outcome::done);
}

TEST(Rejections, OfConfigurations) {
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    EXPECT_THROW(Executor(model, executor_config(2, CHUNK)), std::invalid_argument);
    EXPECT_THROW(Executor(model, executor_config(0)), std::invalid_argument);
    // Beyond the plugin's configuration.
    EXPECT_THROW(Executor(model, executor_config(3)), std::invalid_argument);
    EXPECT_THROW(Executor(model, executor_config(2, 64, 1)), std::invalid_argument);
    EXPECT_THROW(Executor(model, executor_config(2, 64, 0, CHUNK + 1)), std::invalid_argument);
    EXPECT_THROW(CpuModel(weights(), plugin_config(0), single_rank(), 1), sinkcache::Error);
    PluginConfig none = plugin_config(1);
    none.window = 0;
    EXPECT_THROW(CpuModel(weights(), none, single_rank(), 1), sinkcache::Error);
}

TEST(Rejections, OfLines) {
    const LlamaConfig config = weights().config;
    std::istringstream in(R"({"id":"good","prompt":"abc"}
not json

{"id":"half","prompt":"abc
[1,2]
{"prompt":"abc"}
{"id":"","prompt":"abc"}
{"id":7,"prompt":"abc"}
{"id":"bare"}
{"id":"both","prompt":"abc","tokens":[5]}
{"id":"blank","prompt":""}
{"id":"typo","prompt":"abc","max_token":5}
{"id":"minus","prompt":"abc","max_tokens":-5}
{"id":"words","prompt":"abc","max_tokens":"many"}
{"id":"huge","prompt":"abc","max_tokens":99999999999}
{"id":"half token","prompt":"abc","max_tokens":1.5}
{"id":"list","tokens":"5"}
{"id":"outside","tokens":[5,259]}
{"id":"two","prompt":"abc","continue":"a","fork":"b"}
{"id":"warm","prompt":"abc","temperature":"hot"}
{"id":"end","prompt":"abc","continue":"a","end":1}
{"id":"late","prompt":"abc","arrival":-1}
{"id":"late sum","prompt":"abc","arrival":4611686018427387904}
{"id":"never","prompt":"abc","cancel_after":4611686018427387904}
{"id":"almost never","prompt":"abc","arrival":4611686018427387903,"cancel_after":4611686018427387903}
{"id":"far","prompt":"abc","temperature":1e999}
{"id":"deep","prompt":"abc","x":[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}
{"id":"array","prompt":[1,2,3]}
{"id":"object","prompt":{"a":1}}
{"id":"null","prompt":"abc","temperature":null}
{"id":"nul","messages":[{"role":"user","content":"a\u0000b"}]}
{"id":"all","prompt":"abc","max_tokens":7,"temperature":0.5,"seed":18446744073709551615,"fork":"x")"
                          R"(,"conversation":"y","arrival":3,"cancel_after":4}
)");
    std::map<std::string, Line> lines;
    for (const Line &line : all_lines(in, config)) {
        EXPECT_NE(line.request.has_value(), !line.error.empty()) << line.id;
        lines[line.id] = line;
    }
    const std::map<std::string, std::string> wrong{{"line 2", "line 2: the line is not JSON"},
                                                   {"line 4", "line 4: the line is not JSON"},
                                                   {"line 5", "not a JSON object"},
                                                   {"line 6", "field 'id' is missing"},
                                                   {"line 8", "field 'id' is 7 (number): it must be a text"},
                                                   {"", "field 'id' is \"\""},
                                                   {"bare", "field 'prompt' (or 'messages' or 'tokens') is missing"},
                                                   {"both", "exclude each other"},
                                                   {"blank", "field 'prompt' is \"\""},
                                                   {"typo", "field 'max_token' is not known"},
                                                   {"minus", "field 'max_tokens' is -5"},
                                                   {"words", "field 'max_tokens' is \"many\""},
                                                   {"huge", "a whole number from 0 to 4294967295"},
                                                   {"half token", "field 'max_tokens' is 1.5"},
                                                   {"list", "field 'tokens' is \"5\""},
                                                   {"outside", "field 'tokens' is 259"},
                                                   {"two", "'continue' and 'fork' exclude each other"},
                                                   {"warm", "field 'temperature' is \"hot\""},
                                                   {"end", "field 'end' is 1"},
                                                   {"late", "field 'arrival' is -1 (number)"},
                                                   {"late sum", "field 'arrival' is 4611686018427387904"},
                                                   {"never", "field 'cancel_after' is 4611686018427387904"},
                                                   {"line 26", "number that is too large"},
                                                   {"line 27", "more than 16 arrays and objects"},
                                                   {"array", "field 'prompt' is an array of 3: it must be"},
                                                   {"object", "field 'prompt' is an object of 1: it must be"},
                                                   {"null", "field 'temperature' is null (null)"},
                                                   {"nul", "made of contents without a NUL character"}};
    for (const auto &[id, part] : wrong) {
        ASSERT_EQ(lines.count(id), 1u) << id;
        EXPECT_NE(lines[id].error.find(part), std::string::npos)
            << "\"" << lines[id].error << "\" lacks \"" << part << "\"";
    }
    EXPECT_EQ(lines.size(), wrong.size() + 3);
    EXPECT_TRUE(lines["almost never"].request);
    ASSERT_TRUE(lines["good"].request);
    EXPECT_EQ(lines["good"].request->prompt, (std::vector<Token>{1, 'a' + 3, 'b' + 3, 'c' + 3}));
    ASSERT_TRUE(lines["all"].request);
    const Request &all = *lines["all"].request;
    EXPECT_EQ(all.max_tokens, 7u);
    EXPECT_EQ(all.sampling.seed, 18446744073709551615u);
    EXPECT_EQ(all.start, Start::forked);
    EXPECT_EQ(all.source, "x");
    EXPECT_EQ(all.conversation, "y");
    EXPECT_EQ(all.arrival, 3u);
    EXPECT_EQ(all.cancel_after, 4u);
    // The fork's prompt continues its source: no <s>.
    EXPECT_EQ(all.prompt.size(), 3u);
}

TEST(Rejections, ErrorsShowLargeValuesInPart) {
    const LlamaConfig config = weights().config;
    const std::string large(1'000'000, 'x');
    std::istringstream in(R"({"id":")" + large + R"(","prompt":"a"}
{"id":"a","prompt":"a","temperature":")" + large + R"("}
{"id":"b","prompt":"a",")" + large + R"(":1}
{"id":"c","prompt":"a","fork":")" + large + R"("}
{"id":"line\u001b[2J","prompt":"a","end":"\u00e4\n"}
)");
    const auto lines = all_lines(in, config);
    ASSERT_EQ(lines.size(), 5u);
    for (const Line &line : lines) {
        EXPECT_FALSE(line.request);
        EXPECT_LT(line.id.size() + line.error.size(), 400u);
    }
    EXPECT_NE(lines[0].error.find("field 'id' has 1000000 bytes: at most 256"), std::string::npos) << lines[0].error;
    EXPECT_NE(lines[1].error.find("xxx... (text): it must be a number"), std::string::npos) << lines[1].error;
    EXPECT_NE(lines[2].error.find("xxx...' is not known"), std::string::npos) << lines[2].error;
    EXPECT_NE(lines[3].error.find("field 'fork' has 1000000 bytes"), std::string::npos) << lines[3].error;
    EXPECT_EQ(lines[4].id, "line\\x1B[2J");
    EXPECT_NE(lines[4].error.find("field 'end' is \"\u00e4\\n\" (text)"), std::string::npos) << lines[4].error;
}

TEST(Rejections, OfPinsAndDroppedRanges) {
    LlamaConfig config = weights().config;
    std::string many = "[[9,1]";
    for (int i = 0; i < 1024; i++) {
        many += ",[9,1]";
    }
    const std::string of = "{\"id\":\"x\",\"prompt\":\"abc\",";
    const std::vector<std::pair<std::string, std::string>> wrong{
        {"\"pin_prompt\":4", "field 'pin_prompt' is 4 (number): it must be true, false, or a number of the prompt's 3"},
        {"\"pin_prompt\":-1", "field 'pin_prompt' is -1"},
        {"\"pin_prompt\":1.0", "field 'pin_prompt' is 1.0"},
        {"\"drop\":[[9,1]]", "field 'drop' needs 'continue' or 'fork'"},
        {"\"continue\":\"t\",\"drop\":[]", "field 'drop' is an array of 0: it must be an array of 1 to 1024 ranges"},
        {"\"continue\":\"t\",\"drop\":" + many + "]", "field 'drop' is an array of 1025"},
        {"\"continue\":\"t\",\"drop\":[9,1]", "field 'drop' is 9"},
        {"\"continue\":\"t\",\"drop\":[[9,1,1]]", "field 'drop' is an array of 3"},
        {"\"continue\":\"t\",\"drop\":[[-9,1]]", "field 'drop' is -9"},
        {"\"continue\":\"t\",\"drop\":[[9,0]]", "field 'drop' is 0"},
        {"\"continue\":\"t\",\"drop\":[[9,2147483648]]", "field 'drop' is 2147483648"},
        {"\"continue\":\"t\",\"drop\":[[18446744073709551616,1]]", "field 'drop' is 1.84"},
        {"\"drop_thoughts\":[5]", "field 'drop_thoughts' is an array of 1"},
        {"\"drop_thoughts\":[5,259]", "field 'drop_thoughts' is 259"},
        {"\"drop_thoughts\":[\"<\",\"</\"]", "field 'drop_thoughts' is \"</\""},
        {"\"drop_thoughts\":[\"\",5]", "field 'drop_thoughts' is \"\""}};
    std::stringstream in;
    for (const auto &[fields, part] : wrong) {
        in << of << fields << "}\n";
    }
    in << of << "\"continue\":\"t\",\"pin_prompt\":3,\"drop\":[[18446744073709551615,2147483647]]}\n";
    const auto lines = all_lines(in, config);
    ASSERT_EQ(lines.size(), wrong.size() + 1);
    for (std::size_t i = 0; i < wrong.size(); i++) {
        EXPECT_FALSE(lines[i].request) << wrong[i].first;
        EXPECT_NE(lines[i].error.find(wrong[i].second), std::string::npos)
            << "\"" << lines[i].error << "\" lacks \"" << wrong[i].second << "\"";
    }
    // The numbers are possible: whether the conversation has so many tokens shows when the request starts.
    ASSERT_TRUE(lines.back().request) << lines.back().error;
    const Request good = *lines.back().request;
    EXPECT_EQ(good.pin_prompt, 3u);
    CpuModel model(weights(), plugin_config(1), single_rank(), 1);
    Executor executor(model, executor_config(1));
    Request first = new_sequence("first", 0, 10, 5);
    first.conversation = "t";
    const auto results = run(executor, {first, good});
    EXPECT_EQ(results.at("first").outcome, Outcome::done);
    expect_failed(results.at("x"), "has 2147483647 tokens from 18446744073709551615 on: the conversation has 15");
}

TEST(Rejections, ARequestThatIsSubmittedLateArrivesThen) {
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    Executor executor(model, executor_config(2));
    expect_done(run(executor, {new_sequence("first", 0, 10, 40)}));
    Request late = new_sequence("late", 0, 10, 40);
    late.arrival = 3;
    late.cancel_after = 10;
    // Ten iterations from now on, not from the third: all but the first give a token.
    const auto results = run(executor, {late});
    EXPECT_EQ(results.at("late").outcome, Outcome::cancelled);
    EXPECT_EQ(results.at("late").tokens.size(), 10u);
}

/** A model that fails in the middle of one forward pass, after the first layers. */
class Failing : public Model {
public:
    explicit Failing(CpuModel &model) : model_(model) {}
    const LlamaConfig &config() const override { return model_.config(); }
    AttentionPlugin &plugin() override { return model_.plugin(); }
    std::string describe() const override { return model_.describe(); }
    std::vector<Token> forward(const Batch &batch) override {
        if (passes++ == fail_at) {
            const std::size_t row = model_.weights().qkv_width(), out = model_.weights().q_width();
            // Keys and values that would change later results.
            std::vector<float> qkv(batch.tokens.size() * row, 5.0f), attended(batch.tokens.size() * out);
            plugin().enqueue({0, qkv.data(), attended.data()}, batch.seq_ids, batch.n_tokens);
            plugin().enqueue({1, qkv.data(), attended.data()}, batch.seq_ids, batch.n_tokens);
            throw std::runtime_error("failure of the third layer");
        }
        return model_.forward(batch);
    }

    int passes = 0, fail_at = -1;

private:
    CpuModel &model_;
};

TEST(Rejections, AFailureBetweenLayersIsUndone) {
    CpuModel model(weights(), plugin_config(3), single_rank(), 1);
    Failing failing(model);
    Executor executor(failing, executor_config(3));
    Request a = new_sequence("a", 0, 40, 6), b = new_sequence("b", 0, 40, 6);
    a.conversation = "ta";
    b.conversation = "tb";
    auto results = run(executor, {a, b});
    expect_done(results);
    // A round of one conversation is running when the pass fails, with some of its tokens generated.
    const auto round = [](const std::string &id, const std::string &talk) {
        Request r = request(id, text(800, 30), 20);
        r.start = Start::continued;
        r.source = talk;
        return r;
    };
    failing.passes = 0;
    failing.fail_at = 5;
    Request waits = new_sequence("waits", 0, 10, 3);
    waits.arrival = 100;
    results = run(executor, {round("a2", "ta"), waits});
    expect_failed(results.at("a2"), "failure of the third layer");
    EXPECT_EQ(results.at("waits").outcome, Outcome::done);
    const Result a2 = results.at("a2");
    ASSERT_FALSE(a2.tokens.empty());
    EXPECT_EQ(a2.stream_length, 41 + 6 + 30 + a2.tokens.size() - 1);
    // The conversation continues from the tokens before the failure, like one that was cancelled there.
    failing.fail_at = -1;
    Request b2 = round("b2", "tb");
    b2.max_tokens = static_cast<std::uint32_t>(a2.tokens.size());
    results = run(executor, {b2, round("a3", "ta"), round("b3", "tb")});
    expect_done(results);
    EXPECT_EQ(results.at("b2").tokens, a2.tokens);
    EXPECT_EQ(results.at("a3").tokens, results.at("b3").tokens);
}

/** Its logits for one of the batch's rows are no numbers, in one forward pass. */
class NoNumbers : public Model {
public:
    NoNumbers(CpuModel &model, int pass) : model_(model), pass_(pass) {}
    const LlamaConfig &config() const override { return model_.config(); }
    AttentionPlugin &plugin() override { return model_.plugin(); }
    std::string describe() const override { return model_.describe(); }
    std::vector<Token> forward(const Batch &batch) override {
        auto tokens = model_.forward(batch);
        if (passes_++ == pass_) {
            const std::vector<float> logits(model_.config().vocabulary, NAN);
            tokens.at(0) = sample(logits.data(), logits.size(), {}, 0);
        }
        return tokens;
    }

private:
    CpuModel &model_;
    int pass_, passes_ = 0;
};

TEST(Rejections, OfLogitsThatAreNoNumbers) {
    for (const int pass : {0, 3}) {
        CpuModel model(weights(), plugin_config(2), single_rank(), 1);
        NoNumbers without(model, pass);
        Executor executor(without, executor_config(2));
        Request bad = new_sequence("bad", 0, 10, 8), round = request("round", text(800, 5), 4);
        bad.conversation = "t";
        round.start = Start::continued;
        round.source = "t";
        const auto results = run(executor, {bad, new_sequence("good", 100, 10, 8), round});
        expect_failed(results.at("bad"), "logits are no finite numbers");
        EXPECT_EQ(results.at("bad").tokens.size(), static_cast<std::size_t>(pass));
        expect_failed(results.at("round"), "was lost");
        EXPECT_EQ(results.at("good").outcome, Outcome::done);
    }
}

}  // namespace
