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
    PromptLookup lookup;
    Clock::time_point arrived_at, first_token_at;

    bool in_context() const { return context_done < context.size(); }
    std::size_t context_left() const { return context.size() - context_done; }
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
