#include "score.hpp"

#include "measure.hpp"
#include "progress.hpp"
#include "text.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace {

using Json = nlohmann::ordered_json;

/** Measurements of a tenth of the stream. */
struct Tenth {
    Perplexity perplexity;
    Durations calls;
    std::optional<std::uint64_t> resident;

    /** Median call, per token. */
    std::optional<double> ms_per_token(std::uint32_t chunk) const {
        const auto median = calls.quantile(0.5);
        return median ? std::optional<double>(*median / chunk) : std::nullopt;
    }
};

struct Result {
    std::array<Tenth, 10> tenths;
    Perplexity perplexity;
    /** Calls after the prefill. */
    Durations calls;
    /** Calls that began with a full window. */
    Durations full;
    std::uint64_t tokens = 0;
    /** Tokens of `calls`. */
    std::uint64_t timed = 0;
    std::optional<double> ms_per_token() const {
        return timed ? std::optional<double>(calls.total_ms() / double(timed)) : std::nullopt;
    }
};

template <class T>
Json optional(const std::optional<T> &x) {
    return x ? Json(*x) : Json();
}

Result stream(Engine &engine, const std::vector<llama_token> &tokens, std::uint64_t n, const ScoreSettings &s) {
    const std::int32_t n_vocab = llama_vocab_n_tokens(engine.vocab());
    const std::uint64_t capacity = std::uint64_t(s.common.sink) + s.common.window;
    Result r;
    Progress progress(n);
    std::vector<llama_token> chunk;
    for (std::uint64_t at = 0; at < n; at += chunk.size()) {
        const bool filling = s.prefill != 0 && at < capacity;
        const std::uint64_t chunk_size = filling ? std::min<std::uint64_t>(s.prefill, capacity - at) : s.chunk;
        const std::uint64_t take = std::min(chunk_size, n - at);
        chunk.assign(tokens.begin() + std::ptrdiff_t(at), tokens.begin() + std::ptrdiff_t(at + take));
        Tenth &tenth = r.tenths[std::min<std::uint64_t>(9, at * 10 / n)];

        const Stopwatch watch;
        engine.decode(chunk, true);
        const double ms = watch.ms();
        if (!filling) {
            r.calls.add(ms);
            r.timed += take;
        }
        if (!filling && take == s.chunk) {
            tenth.calls.add(ms);
            if (at >= capacity) {
                r.full.add(ms);
            }
        }
        for (std::uint64_t i = 0; i < take; ++i) {
            if ((at + i) % s.stride == 0) {
                const float *logits = llama_get_logits_ith(engine.context(), static_cast<std::int32_t>(i));
                const double nll = negative_log_likelihood(logits, n_vocab, tokens[at + i + 1]);
                r.perplexity.add(nll);
                tenth.perplexity.add(nll);
            }
        }
        r.tokens += take;
        tenth.resident = resident_bytes();
        progress.update(r.tokens, r.perplexity.value());
    }
    return r;
}

// The keys of `cargo run --example stream -- --json`, and some that only this program has.
Json record(const Engine &engine, const Result &r, const ScoreSettings &s) {
    const std::uint32_t chunk = s.chunk;
    const std::optional<double> ms_per_token = r.ms_per_token();
    const bool single_tokens = chunk == 1;
    const Durations &calls = r.full.count() ? r.full : r.calls;
    Json memory = Json::array();
    for (const Tenth &tenth : r.tenths) {
        memory.push_back(optional(tenth.resident));
    }
    return {{"mode", engine.mode()},
            {"tokens", r.tokens},
            {"scored", r.perplexity.count()},
            {"ppl", optional(r.perplexity.value())},
            {"ppl_last_tenth", optional(r.tenths[9].perplexity.value())},
            {"tokens_per_s", ms_per_token ? Json(1e3 / *ms_per_token) : Json()},
            {"cache_bytes", engine.cache_bytes()},
            {"peak_rss_bytes", optional(peak_resident_bytes())},
            {"sink", s.common.sink},
            {"window", s.common.window},
            {"chunk", chunk},
            {"stride", s.stride},
            {"threads", s.common.threads},
            {"kv_dtype", s.common.kv_dtype},
            {"ms_per_token", optional(ms_per_token)},
            {"ms_per_token_second_tenth", optional(r.tenths[1].ms_per_token(chunk))},
            {"ms_per_token_last_tenth", optional(r.tenths[9].ms_per_token(chunk))},
            {"ms_per_token_one_by_one", optional(single_tokens ? r.calls.quantile(0.5) : std::nullopt)},
            {"ms_per_call_p50", optional(calls.quantile(0.5))},
            {"ms_per_call_p99", optional(calls.quantile(0.99))},
            {"calls_with_full_window", r.full.count()},
            {"discard", s.common.stock ? Json(s.common.discard) : Json()},
            {"flash", s.common.stock ? Json(s.common.flash) : Json()},
            {"rss_bytes_by_tenth", memory}};
}

void print(const Engine &engine, const Result &r, const ScoreSettings &s) {
    const auto mib = [](std::optional<std::uint64_t> bytes) { return bytes ? double(*bytes) / (1 << 20) : 0.0; };
    const Durations &calls = r.full.count() ? r.full : r.calls;
    std::printf("%s, %u + %u tokens, K and V in %s, %u threads, %u tokens per call\n", engine.mode(), s.common.sink,
                s.common.window, s.common.kv_dtype.c_str(), s.common.threads, s.chunk);
    std::printf("tokens       %llu, %llu scored\n", static_cast<unsigned long long>(r.tokens),
                static_cast<unsigned long long>(r.perplexity.count()));
    std::printf("perplexity   %.4f, last tenth %.4f\n", r.perplexity.value().value_or(0),
                r.tenths[9].perplexity.value().value_or(0));
    std::printf("tokens/s     %.1f\n", 1e3 / r.ms_per_token().value_or(HUGE_VAL));
    std::printf("ms per call  p50 %.3f, p99 %.3f%s\n", calls.quantile(0.5).value_or(0),
                calls.quantile(0.99).value_or(0), r.full.count() ? ", past the window" : "");
    std::printf(
        "memory       cache %.1f MiB, process %.1f MiB at the second tenth, %.1f at the last, %.1f at its peak\n",
        mib(engine.cache_bytes()), mib(r.tenths[1].resident), mib(r.tenths[9].resident), mib(peak_resident_bytes()));
}

}  // namespace

void score(const ScoreSettings &settings) {
    const llama_model_ptr model = load_model(settings.common);
    std::vector<llama_token> tokens =
        first_tokens(llama_model_get_vocab(model.get()), read_file(settings.text), settings.tokens);
    // The prediction after the last token cannot be scored.
    const std::uint64_t available = tokens.size() - std::min<std::size_t>(tokens.size(), 1);
    if (available == 0 || settings.tokens > available) {
        throw UserError("--tokens " + std::to_string(settings.tokens) + ": the text has " + std::to_string(available));
    }
    const std::uint64_t n = settings.tokens ? settings.tokens : available;
    tokens.resize(n + 1);
    tokens.shrink_to_fit();
    const std::unique_ptr<Engine> engine = make_engine(model.get(), settings.common);
    const Result result = stream(*engine, tokens, n, settings);
    if (settings.json) {
        std::printf("%s\n", record(*engine, result, settings).dump().c_str());
    } else {
        print(*engine, result, settings);
    }
}
