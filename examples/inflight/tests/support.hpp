// What the tests share: the bundled model with a small window.
#pragma once

#include "cpu_model.hpp"
#include "executor.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace test {

using namespace inflight;

enum : std::uint32_t { SINK = 4, WINDOW = 32, CHUNK = 16 };

inline PluginConfig plugin_config(std::uint32_t max_seqs, std::uint32_t draft = 0, std::uint32_t chunk = CHUNK) {
    PluginConfig c{};
    c.n_sink = SINK;
    c.window = WINDOW;
    c.max_seqs = max_seqs;
    c.chunk = chunk;
    c.max_draft = draft;
    return c;
}

inline ExecutorConfig executor_config(std::uint32_t max_seqs, std::uint32_t budget = 64, std::uint32_t draft = 0,
                                      std::uint32_t chunk = CHUNK) {
    ExecutorConfig c;
    c.max_seqs = max_seqs;
    c.budget = budget;
    c.draft = draft;
    c.chunk = chunk;
    return c;
}

inline Group &single_rank() {
    static Group group;
    return group;
}

inline LlamaWeights weights() { return LlamaWeights::load(MODEL); }

/** Bytes of the bundled text as tokens. */
inline std::vector<Token> text(std::size_t from, std::size_t n) {
    static const std::string all = [] {
        std::ifstream file(TEXT, std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(file), {});
    }();
    std::vector<Token> tokens;
    for (const char c : all.substr(from, n)) {
        tokens.push_back(static_cast<unsigned char>(c) + LlamaConfig::byte_offset);
    }
    return tokens;
}

inline Request request(const std::string &id, std::vector<Token> prompt, std::uint32_t max_tokens) {
    Request r;
    r.id = id;
    r.prompt = std::move(prompt);
    r.max_tokens = max_tokens;
    return r;
}

/** A request that starts empty: `<s>`, then n bytes of the text. */
inline Request new_sequence(const std::string &id, std::size_t from, std::size_t n, std::uint32_t max_tokens) {
    Request r = request(id, text(from, n), max_tokens);
    r.prompt.insert(r.prompt.begin(), 1);
    return r;
}

/** Runs until no request is left that can run. */
inline std::map<std::string, Result> run(Executor &executor) {
    while (executor.step()) {
    }
    std::map<std::string, Result> results;
    for (Result &r : executor.take_results()) {
        EXPECT_EQ(results.count(r.id), 0u) << r.id << " has two results";
        results[r.id] = r;
    }
    return results;
}

inline std::map<std::string, Result> run(Executor &executor, const std::vector<Request> &requests) {
    for (const Request &r : requests) {
        executor.submit(r);
    }
    return run(executor);
}

inline void expect_done(const std::map<std::string, Result> &results) {
    for (const auto &[id, r] : results) {
        EXPECT_EQ(r.outcome, Outcome::done) << id << ": " << r.error;
    }
}

}  // namespace test
