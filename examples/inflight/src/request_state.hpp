// The state of a request in the executor; private to it.
#pragma once

#include "executor.hpp"

namespace inflight {

struct Executor::RequestState {
    explicit RequestState(Request r) : request(std::move(r)) {
        result.id = request.id;
        result.prompt_tokens = request.prompt.size();
    }

    Request request;
    Result result;
    /** The conversation that its sequence belongs to; NULL = none, or it has no slot yet. */
    Conversation *conversation = nullptr;
    std::int32_t slot = -1;
    bool arrived = false, cancel = false, finished = false;
    /** The tokens of the context phase: a conversation's pending token, then the prompt. */
    std::vector<Token> context;
    /** How many of them are in the cache. */
    std::size_t context_done = 0;
    /** Index in its sequence of the first token of `context`. */
    std::uint64_t begin = 0;
    /** Those of `context` to pin: from the first one that is not yet, to before the last one. */
    std::size_t pin_from = 0, pin_end = 0;
    /** The last generated token belongs to a thought that was dropped: the next round does not feed it. */
    bool last_dropped = false;
    PromptLookup lookup;
    Clock::time_point arrived_at, first_token_at;

    bool in_context() const { return context_done < context.size(); }
    std::size_t context_left() const { return context.size() - context_done; }
    /** Whether tokens that are yet to be fed are to be pinned. */
    bool pinning() const { return context_done < pin_end; }
    std::size_t tokens_left() const { return request.max_tokens - result.tokens.size(); }
    /** The token that the next step feeds. */
    Token last() const { return result.tokens.back(); }
    /** Whether it continues or forks this conversation. */
    bool starts_from(const std::string &name) const { return request.start != Start::empty && request.source == name; }
};

/** A request's entry in a batch: the next `n` tokens of its context, or its last token and a draft of what follows. */
struct Executor::Entry {
    RequestState *state;
    std::size_t n;
    std::vector<Token> draft;
    /** Evicted tokens of its sequence before the batch. */
    std::uint64_t evicted = 0;

    bool completes_context() const { return state->context_done + n == state->context.size(); }
};

}  // namespace inflight
