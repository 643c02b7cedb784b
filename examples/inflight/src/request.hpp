// What an executor is asked for, and what it answers.
#pragma once

#include "sampling.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace inflight {

/** Where a request's sequence begins. */
enum class Start {
    /** Empty. */
    fresh,
    /** In the conversation `source`: its sequence is still in the cache, nothing enters twice. */
    continued,
    /** In a copy of the conversation `source`. */
    forked,
};

struct Request {
    /** Unique among the requests of an executor. */
    std::string id;
    /** Of a fresh sequence the model's first token, `<s>`, included. */
    std::vector<Token> prompt;
    std::uint32_t max_tokens = 64;
    Sampling sampling;
    Start start = Start::fresh;
    std::string source;
    /** Under which name the sequence stays in the cache; empty = it goes when the request is done. */
    std::string conversation;
    /** Of a continued conversation: it goes when the request is done. */
    bool end = false;
    /** Iteration at which it arrives. */
    std::uint64_t arrival = 0;
    /** Cancelled so many iterations after its arrival. */
    std::optional<std::uint64_t> cancel_after;
};

enum class Outcome { done, cancelled, failed };

struct Result {
    std::string id;
    Outcome outcome = Outcome::done;
    /** What was wrong, of a request that failed. */
    std::string error;
    /** Generated; of a cancelled or failed request what there was. */
    std::vector<Token> tokens;
    std::size_t prompt_tokens = 0;
    /** Draft tokens checked, and those of them that were right. */
    std::uint64_t drafted = 0, accepted = 0;
    /** Tokens that have entered its sequence so far, earlier rounds included. */
    std::uint64_t stream_length = 0;
    /** Seconds: arrival to a slot, arrival to the first token, and first to last token; negative = did not come to it. */
    double waited = -1, first_token = -1, decoding = -1;

    /** Tokens after the first, per second; 0 where there are none. */
    double tokens_per_second() const {
        return decoding > 0 && tokens.size() > 1 ? static_cast<double>(tokens.size() - 1) / decoding : 0;
    }
};

}  // namespace inflight
