// In-flight batching: requests join and leave a ragged batch at every iteration.
#pragma once

#include "conversations.hpp"
#include "model.hpp"
#include "parking.hpp"
#include "request.hpp"
#include "slots.hpp"

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace inflight {

struct ExecutorConfig {
    /** Most sequences in the cache, of running requests and idle conversations; at most the plugin's max_seqs. */
    std::uint32_t max_seqs = 8;
    /** Token budget: most tokens of a batch. Larger than `chunk`. */
    std::uint32_t budget = 256;
    /**
     * Chunked prefill: prompts are split at multiples of this, counted from the prompt's first token. The plugin's
     * cache splits its work at the same tokens. So the results of a request are bit-identical under any schedule.
     */
    std::uint32_t chunk = 64;
    /** Most draft tokens of a step; at most the plugin's max_draft. 0 = no drafts. */
    std::uint32_t draft = 0;
    /** Longest prompt accepted, and largest max_tokens of a request. */
    std::uint32_t max_prompt = 1u << 20, max_tokens = 1u << 20;
    /**
     * If no slot is free, the conversation that has been idle longest ends, unless requests are queued for it. One that
     * can be parked does not end.
     */
    bool reclaim_idle = false;
};

struct Counters {
    std::uint64_t iterations = 0;
    /** Tokens added to the cache in the context phase, and generated ones; without rejected drafts. */
    std::uint64_t context_tokens = 0, decode_tokens = 0;
    std::uint64_t generated_tokens = 0, drafted_tokens = 0, accepted_tokens = 0;
    /** Tokens evicted from the cache by its window. */
    std::uint64_t evicted_tokens = 0;
    /** Tokens pinned and dropped by requests, and edits that were refused for lack of room. */
    std::uint64_t pinned_tokens = 0, dropped_tokens = 0, refused_edits = 0;
    /** Tokens of all batches, and the sum of their budgets. */
    std::uint64_t batch_rows = 0, batch_budget = 0;
    std::uint64_t done = 0, cancelled = 0, failed = 0;
    /** Current numbers. */
    std::uint64_t running = 0, waiting = 0, idle_conversations = 0;

    void count(Outcome outcome) {
        switch (outcome) {
        case Outcome::done: done++; break;
        case Outcome::cancelled: cancelled++; break;
        case Outcome::failed: failed++; break;
        }
    }
};

class Executor {
public:
    /**
     * Model and parking must outlive the executor. With parking, an idle conversation whose slot is wanted is parked
     * until its next request. Throws std::invalid_argument.
     */
    Executor(Model &model, ExecutorConfig config, Parking *parking = nullptr);
    ~Executor();

    /**
     * Queues a request. An invalid request fails: its result holds the error message. A request whose arrival has
     * passed arrives now.
     */
    void submit(Request request);
    /** Takes effect in the next iteration. False if no waiting or running request has this id. */
    bool cancel(const std::string &id);
    /** With parking: parks all idle conversations, as far as there is room, and moves them to the folder. */
    void park_idle();
    /** Ends an idle or parked conversation. False if none has this name, or its requests are running or queued. */
    bool close(const std::string &conversation);

    /**
     * One iteration: starts requests that have a slot and runs one batch. False when all requests have ended, or the
     * remaining ones wait for a slot that only close() or cancel() can free.
     */
    bool step();
    /** Results since the last call, in the order the requests ended. */
    std::vector<Result> take_results();
    /** Called with each generated token of a request, by its id. */
    using Observer = std::function<void(const std::string &, Token)>;
    void observe(Observer observer) { observer_ = std::move(observer); }
    const Counters &counters() const { return counters_; }
    /** Prompt tokens of the waiting requests. */
    std::size_t waiting_tokens() const;

private:
    using Clock = std::chrono::steady_clock;
    struct RequestState;
    struct Entry;
    using RequestStates = std::list<std::unique_ptr<RequestState>>;

    Model &model_;
    ExecutorConfig config_;
    Parking *parking_;
    Slots slots_;
    Conversations conversations_;
    RequestStates waiting_, running_;
    std::set<std::string> ids_;
    std::vector<Result> results_;
    Observer observer_;
    Counters counters_;
    std::uint64_t iteration_ = 0;
    /** Steps that did not fit into earlier batches start here, so that all get their turn. */
    std::uint64_t rotation_ = 0;

    // executor.cpp: the life of requests and conversations.
    std::string rejection_reason(const Request &request) const;
    void mark_arrivals();
    void cancel_due_requests();
    void admit();
    void start(RequestState &state);
    void finish(RequestState &state, Outcome outcome, const std::string &error = "", bool keep_sequence = true);
    void end_conversation(std::string name, const std::string &error);
    bool skip_to_next_event();
    bool fail_blocked_fork();
    void remove_finished();

    // park_conversations.cpp
    bool is_known(const std::string &conversation) const;
    Conversation &record(const std::string &name);
    void queue_changed(Conversation &c);
    std::vector<Conversation *> reclaim_order();
    bool reclaim();
    bool park(Conversation &c);
    bool restore(Conversation &c, RequestState &state);

    // edits.cpp: pins and dropped ranges.
    std::string range_rejection(const RequestState &state) const;
    template <class Edit>
    bool edit(RequestState &state, const std::string &what, const Edit &edit);
    void drop_ranges(RequestState &state);
    void pin_fed(RequestState &state);
    void drop_thoughts(RequestState &state);

    // iteration.cpp: composes a batch, runs it, and processes its results.
    std::vector<Entry> plan();
    std::size_t plan_steps(std::vector<Entry> &entries, std::size_t left);
    void plan_contexts(std::vector<Entry> &entries, std::size_t left) const;
    static Batch make_batch(const std::vector<Entry> &entries);
    void run(std::vector<Entry> entries);
    void fail(std::vector<Entry> &entries, const Batch &batch, const std::string &error);
    void commit(std::vector<Entry> &entries, const std::vector<Token> &tokens);
    void commit_context(Entry &entry, const std::vector<Token> &tokens, std::size_t &next);
    std::uint32_t commit_step(Entry &entry, const std::vector<Token> &tokens, std::size_t &next);
    void append_generated(RequestState &state, Token token);
    void fail_without_token(RequestState &state);
};

}  // namespace inflight
