// In-flight batching: requests join and leave a ragged batch at every iteration.
#pragma once

#include "conversations.hpp"
#include "model.hpp"
#include "request.hpp"

#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace inflight {

struct ExecutorConfig {
    /** Sequences at a time, running requests and idle conversations together; as many as the plugin has. */
    std::uint32_t max_seqs = 8;
    /** Most tokens of a batch; above `chunk`. */
    std::uint32_t budget = 256;
    /**
     * Prompts enter in pieces that end at multiples of this, counted from the prompt's first token, and the plugin's cache
     * cuts its work at the same places. So the arithmetic of a request does not depend on the schedule, to the last bit.
     */
    std::uint32_t chunk = 64;
    /** Most draft tokens per step; at most the plugin's max_draft. 0 = none. */
    std::uint32_t draft = 0;
    /** Longest prompt that is taken, and the most tokens a request may ask for. */
    std::uint32_t max_prompt = 1u << 20, max_tokens = 1u << 20;
    /** Idle conversations that no request is queued for give their slot to a request that waits for one, oldest first. */
    bool reclaim_idle = false;
};

struct Counters {
    std::uint64_t iterations = 0;
    /** Tokens that entered the cache for good: prompts and generated ones. */
    std::uint64_t context_tokens = 0, decode_tokens = 0;
    std::uint64_t generated_tokens = 0, drafted_tokens = 0, accepted_tokens = 0;
    /** Tokens that left windows. */
    std::uint64_t evicted_tokens = 0;
    /** Rows of all batches, and the budget of as many. */
    std::uint64_t batch_rows = 0, batch_budget = 0;
    std::uint64_t done = 0, cancelled = 0, failed = 0;
    /** Now. */
    std::uint64_t running = 0, waiting = 0, idle_conversations = 0;
};

class Executor {
public:
    /** The model must outlive the executor. Throws std::invalid_argument. */
    Executor(Model &model, ExecutorConfig config);
    ~Executor();

    /** Queues a request. What is wrong with it becomes its result. */
    void submit(Request request);
    /** From the next iteration on. False if there is no such request that waits or runs. */
    bool cancel(const std::string &id);
    /** Ends an idle conversation. False if there is none of this name, or requests are at work in it or queued for it. */
    bool close(const std::string &conversation);

    /**
     * One iteration: admits what may start, runs one batch. False when nothing is left to do, or what is left waits for a
     * slot that only close() or cancel() can free.
     */
    bool step();
    /** Results since the last call, in the order the requests ended. */
    std::vector<Result> take_results();
    const Counters &counters() const { return counters_; }

private:
    using Clock = std::chrono::steady_clock;
    struct Task;
    struct Entry;
    using Tasks = std::list<std::unique_ptr<Task>>;

    Model &model_;
    ExecutorConfig config_;
    Slots slots_;
    Conversations conversations_;
    Tasks waiting_, running_;
    std::set<std::string> ids_;
    std::vector<Result> results_;
    Counters counters_;
    std::uint64_t now_ = 0, turn_ = 0;

    // executor.cpp: requests and conversations come and go.
    std::string refusal(const Request &request) const;
    void arrive();
    void cancel_due();
    void admit();
    void start(Task &task);
    void finish(Task &task, Outcome outcome, const std::string &error = "", bool keep_sequence = true);
    void end_conversation(std::string name, const std::string &why);
    bool reclaim();
    bool skip_to_next_event();
    bool fail_blocked_fork();
    void sweep();

    // iteration.cpp: what one batch is made of, and what becomes of it.
    std::vector<Entry> plan();
    std::size_t plan_steps(std::vector<Entry> &entries, std::size_t left);
    void plan_contexts(std::vector<Entry> &entries, std::size_t left) const;
    void run(std::vector<Entry> entries);
    void commit_context(Entry &entry, const std::vector<Token> &tokens, std::size_t &at);
    std::uint32_t commit_step(Entry &entry, const std::vector<Token> &tokens, std::size_t &at);
    void generated(Task &task, Token token);
};

}  // namespace inflight
