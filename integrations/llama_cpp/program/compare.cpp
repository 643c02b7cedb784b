#include "compare.hpp"

#include "measure.hpp"
#include "text.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>

namespace {

using Json = nlohmann::ordered_json;
using Tokens = std::vector<llama_token>;

/** Tokens of a text, from its beginning on again and again. */
class Text {
public:
    explicit Text(Tokens tokens) : tokens_(std::move(tokens)) {}
    Tokens next(std::size_t n) {
        Tokens some;
        for (std::size_t i = 0; i < n; ++i) {
            some.push_back(tokens_[at_++ % tokens_.size()]);
        }
        return some;
    }

private:
    Tokens tokens_;
    std::size_t at_ = 0;
};

/** Appends `n` tokens in batches. @return ms */
double fill(Engine &engine, Text &text, std::size_t n, std::size_t batch) {
    const Stopwatch watch;
    while (n > 0) {
        const std::size_t some = std::min(n, batch);
        engine.decode(text.next(some), false);
        n -= some;
    }
    return watch.ms();
}

void append(Engine &engine, Text &text, std::uint32_t n, Durations &times) {
    for (std::uint32_t i = 0; i < n; ++i) {
        const Tokens token = text.next(1);
        const Stopwatch watch;
        engine.decode(token, false);
        times.add(watch.ms());
    }
}

struct Times {
    Durations sink, cached, one, recompute;
    /** Of a shift by half: the last tokens before it, the one that it comes with, those after it. */
    Durations before_half, at_half, after_half;
};

/** The ways in a window of `size` tokens, each with a context of its own. */
class Ways {
public:
    Ways(llama_model *model, const CompareSettings &s, std::uint32_t size, Tokens tokens)
        : settings_(s), size_(size), text_(std::move(tokens)) {
        Settings way = s.common;
        way.window = size - way.sink;
        way.n_batch = std::min<std::uint32_t>(512, way.window);
        n_batch_ = way.n_batch;
        sink_ = make_engine(model, way);
        way.stock = true;
        recompute_ = make_engine(model, way);
        half_ = make_engine(model, way);
        way.discard = 1;
        one_ = make_engine(model, way);
        cached_ = make_engine(model, way);
        for (Engine *engine : {sink_.get(), one_.get()}) {
            fill(*engine, text_, size, n_batch_);
        }
        // It becomes full with the last token of a round: llama.cpp attends to cells by 256, and one more would be 256.
        fill(*cached_, text_, size - s.tokens, n_batch_);
        fill(*half_, text_, size - s.tokens / 2, n_batch_);
    }

    void round(Times &times) {
        append(*sink_, text_, settings_.tokens, times.sink);
        append(*one_, text_, settings_.tokens, times.one);
        append(*cached_, text_, settings_.tokens, times.cached);
        // So that the next round finds the same length.
        cached_->forget(settings_.tokens);
        shift_by_half(times);
        recompute_->forget(size_);
        times.recompute.add(fill(*recompute_, text_, size_, n_batch_));
    }

private:
    void shift_by_half(Times &times) {
        const std::uint32_t before = settings_.tokens / 2, after = settings_.tokens - before;
        append(*half_, text_, before, times.before_half);
        append(*half_, text_, 1, times.at_half);
        append(*half_, text_, after, times.after_half);
        // To the same place before the next shift.
        const std::uint32_t left = size_ - (size_ - settings_.common.sink) / 2 + 1 + after;
        fill(*half_, text_, size_ - before - left, n_batch_);
    }

    const CompareSettings &settings_;
    std::uint32_t size_;
    std::uint32_t n_batch_ = 1;
    Text text_;
    std::unique_ptr<Engine> sink_, recompute_, half_, one_, cached_;
};

/** A shift comes once in so many tokens; those between it and the next have contexts from a half to all. */
double mean_of_half(const Times &times, std::uint32_t period) {
    const double before = *times.before_half.quantile(0.5), after = *times.after_half.quantile(0.5);
    return (before + after) / 2 + std::max(0.0, *times.at_half.quantile(0.5) - after) / period;
}

void check(const CompareSettings &s) {
    if (s.common.sink > (1U << 20)) {
        throw UserError("--sink " + std::to_string(s.common.sink) + ": allowed are 0 to 1048576");
    }
    for (const std::uint32_t size : s.windows) {
        const std::uint64_t least = std::uint64_t{s.common.sink} + 4 * (std::uint64_t{s.tokens} + 2);
        if (size < least || size > (1U << 20)) {
            throw UserError("--windows " + std::to_string(size) + ": with " + std::to_string(s.common.sink) +
                            " sinks and " + std::to_string(s.tokens) + " tokens in a round, " + std::to_string(least) +
                            " to 1048576 are allowed");
        }
    }
}

}  // namespace

void compare(const CompareSettings &settings) {
    check(settings);
    const llama_model_ptr model = load_model(settings.common);
    const Tokens tokens = first_tokens(llama_model_get_vocab(model.get()), read_file(settings.text), 1 << 16);
    if (tokens.empty()) {
        throw UserError("the text '" + settings.text + "' has no tokens");
    }
    if (!settings.json) {
        std::printf("ms per token, %u threads, K and V in %s; medians of %u rounds\n", settings.common.threads,
                    settings.common.kv_dtype.c_str(), settings.rounds);
        std::printf("%8s %12s %12s %14s %12s %10s %22s\n", "window", "recomputing", "shift by 1", "shift by half",
                    "cached, full", "sinkcache", "recomputing/sinkcache");
    }
    for (const std::uint32_t size : settings.windows) {
        Times times;
        Ways ways(model.get(), settings, size, tokens);
        for (std::uint32_t i = 0; i < settings.rounds; ++i) {
            ways.round(times);
        }
        const std::uint32_t period = (size - settings.common.sink) / 2;
        const double recompute = *times.recompute.quantile(0.5), one = *times.one.quantile(0.5),
                     half = mean_of_half(times, period), cached = *times.cached.quantile(0.5),
                     sink = *times.sink.quantile(0.5);
        if (settings.json) {
            const Json record = {{"window", size},
                                 {"sink", settings.common.sink},
                                 {"threads", settings.common.threads},
                                 {"kv_dtype", settings.common.kv_dtype},
                                 {"rounds", settings.rounds},
                                 {"recompute_ms", recompute},
                                 {"shift_by_one_ms", one},
                                 {"shift_by_half_ms", half},
                                 {"shift_by_half_at_shift_ms", *times.at_half.quantile(0.5)},
                                 {"cached_ms", cached},
                                 {"sinkcache_ms", sink},
                                 {"sinkcache_p99_ms", *times.sink.quantile(0.99)}};
            std::printf("%s\n", record.dump().c_str());
        } else {
            std::printf("%8u %12.2f %12.2f %14.2f %12.2f %10.2f %20.1f x\n", size, recompute, one, half, cached, sink,
                        recompute / sink);
        }
        std::fflush(stdout);
    }
}
