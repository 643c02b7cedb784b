// A request at work; private to the executor.
#pragma once

#include "executor.hpp"

namespace inflight {

struct Executor::Task {
    explicit Task(Request r) : request(std::move(r)) {
        result.id = request.id;
        result.prompt_tokens = request.prompt.size();
    }

    Request request;
    Result result;
    /** The conversation it works in; NULL = none, or not yet. */
    Conversation *conversation = nullptr;
    std::int32_t slot = -1;
    bool arrived = false, cancel = false, finished = false;
    /** What it has to feed before the first token: a conversation's pending token, then the prompt. */
    std::vector<Token> context;
    std::size_t entered = 0;
    Recent recent;
    Clock::time_point arrived_at, first_at;

    bool in_context() const { return entered < context.size(); }
    std::size_t to_enter() const { return context.size() - entered; }
    std::size_t to_generate() const { return request.max_tokens - result.tokens.size(); }
    /** Of a step: the token that enters next. */
    Token last() const { return result.tokens.back(); }
    bool names(const std::string &conversation_name) const {
        return request.start != Start::fresh && request.source == conversation_name;
    }
};

/** A task's part of a batch: the next `n` tokens of its context, or its last token and a draft of what follows. */
struct Executor::Entry {
    Task *task;
    std::size_t n;
    std::vector<Token> draft;
    /** Tokens its sequence had dropped before. */
    std::uint64_t evicted = 0;

    bool completes_context() const { return task->entered + n == task->context.size(); }
};

}  // namespace inflight
