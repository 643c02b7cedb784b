// A request to the executor, and its result.
#pragma once

#include "sampling.hpp"
#include "thoughts.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace inflight {

/** What the sequence of a request starts from. */
enum class Start {
    /** An empty sequence. */
    empty,
    /** The sequence of the conversation `source`, which is still in the cache: its tokens are not fed again. */
    continued,
    /** A copy of the sequence of the conversation `source`. */
    forked,
};

struct Request {
    /** Unique among the requests of an executor. */
    std::string id;
    /** With the model's first token, `<s>`, if the sequence starts empty. */
    std::vector<Token> prompt;
    std::uint32_t max_tokens = 64;
    Sampling sampling;
    Start start = Start::empty;
    std::string source;
    /** Fed before the prompt, if the answer before it has none that ends answers. */
    std::optional<Token> answer_end;
    /** Tokens of the prompt, from its first on, that stay in the cache permanently. */
    std::size_t pin_prompt = 0;
    /** Tokens of the continued or forked sequence that are dropped from the cache before the prompt is fed. */
    std::vector<TokenRange> drop;
    /** When the answer is complete, its thoughts are dropped from the cache. */
    std::optional<ThoughtMarkers> drop_thoughts;
    /** The name under which the sequence stays in the cache; empty = it is dropped when the request ends. */
    std::string conversation;
    /** The continued conversation ends with this request. */
    bool end = false;
    /** Iteration at which it arrives. */
    std::uint64_t arrival = 0;
    /** Iterations after its arrival at which it is cancelled. */
    std::optional<std::uint64_t> cancel_after;
};

/** Where the sequence of a request was parked before it began. */
enum class Restored { not_parked, from_memory, from_disk };

enum class Outcome { done, cancelled, failed };

struct Result {
    std::string id;
    Outcome outcome = Outcome::done;
    /** Why the request failed. */
    std::string error;
    /** Generated tokens; of a cancelled or failed request those generated before. */
    std::vector<Token> tokens;
    std::size_t prompt_tokens = 0;
    /** Draft tokens verified, and those of them that were accepted. */
    std::uint64_t drafted = 0, accepted = 0;
    Restored restored = Restored::not_parked;
    /** Tokens that it has pinned, and those that it has dropped from the cache by ranges. */
    std::uint64_t pinned = 0, dropped = 0;
    /** Edits of the cache that were refused, which then keeps the tokens, and warnings: for a log. */
    std::vector<std::string> notes;
    /** Length of its sequence, with earlier rounds. */
    std::uint64_t stream_length = 0;
    /** Seconds from arrival to a slot, from arrival to the first token, and from the first to the last token; negative
     * = not reached. */
    double waited = -1, first_token = -1, decoding = -1;

    /** Tokens after the first, per second; 0 where there are none. */
    double tokens_per_second() const {
        return decoding > 0 && tokens.size() > 1 ? static_cast<double>(tokens.size() - 1) / decoding : 0;
    }
};

}  // namespace inflight
