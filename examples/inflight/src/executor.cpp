#include "executor.hpp"

#include "request_state.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace inflight {
namespace {

double seconds(std::chrono::steady_clock::duration d) { return std::chrono::duration<double>(d).count(); }

std::string quoted(const std::string &name) { return "'" + name + "'"; }

}  // namespace

Executor::Executor(Model &model, ExecutorConfig config, Parking *parking)
    : model_(model), config_(config), parking_(parking), slots_(config.max_seqs) {
    if (config.max_seqs == 0 || config.chunk == 0) {
        throw std::invalid_argument("max_seqs and chunk must be at least 1");
    }
    const AttentionPlugin &plugin = model.plugin();
    if (config.max_seqs > plugin.max_seqs() || config.chunk != plugin.chunk() || config.draft > plugin.max_draft()) {
        throw std::invalid_argument("the executor has max_seqs " + std::to_string(config.max_seqs) + ", chunk " +
                                    std::to_string(config.chunk) + " and draft " + std::to_string(config.draft) +
                                    ": its plugin allows " + std::to_string(plugin.max_seqs()) + ", exactly " +
                                    std::to_string(plugin.chunk()) + " and " + std::to_string(plugin.max_draft()));
    }
    if (config.budget <= config.chunk) {
        throw std::invalid_argument("a budget of " + std::to_string(config.budget) + " tokens with chunks of " +
                                    std::to_string(config.chunk) +
                                    ": the budget must be larger, so that steps fit beside a chunk");
    }
}

Executor::~Executor() = default;

std::string Executor::rejection_reason(const Request &r) const {
    const auto vocabulary = static_cast<Token>(model_.config().vocabulary);
    const auto outside =
        std::find_if(r.prompt.begin(), r.prompt.end(), [&](Token t) { return t < 0 || t >= vocabulary; });
    if (ids_.count(r.id)) {
        return "there is another request with id " + quoted(r.id);
    }
    if (r.prompt.empty()) {
        return "the prompt is empty";
    }
    if (r.prompt.size() > config_.max_prompt) {
        return "the prompt has " + std::to_string(r.prompt.size()) + " tokens: at most " +
               std::to_string(config_.max_prompt) + " are allowed";
    }
    if (outside != r.prompt.end()) {
        return "token " + std::to_string(*outside) + " of the prompt is outside the vocabulary of " +
               std::to_string(vocabulary);
    }
    if (r.max_tokens < 1 || r.max_tokens > config_.max_tokens) {
        return "max_tokens is " + std::to_string(r.max_tokens) + ": 1 to " + std::to_string(config_.max_tokens) +
               " is allowed";
    }
    if (!std::isfinite(r.sampling.temperature) || r.sampling.temperature < 0) {
        return "temperature is " + std::to_string(r.sampling.temperature) + ": it must be 0 or above";
    }
    if (r.start != Start::empty) {
        if (!is_known(r.source)) {
            return "there is no conversation " + quoted(r.source);
        }
        if (const auto source = conversations_.find(r.source);
            source != conversations_.end() && source->second.ending) {
            return "conversation " + quoted(r.source) + " ends with an earlier request";
        }
    }
    if (r.start != Start::continued && is_known(r.conversation)) {
        return "there is a conversation " + quoted(r.conversation) + " already";
    }
    if (r.start == Start::continued && !r.conversation.empty()) {
        return "a request that continues a conversation cannot name another";
    }
    if (r.end && r.start != Start::continued) {
        return "only a conversation that is continued can end";
    }
    if (!r.drop.empty() && r.start == Start::empty) {
        return "ranges can be dropped of a conversation that is continued or forked only";
    }
    for (const TokenRange &range : r.drop) {
        if (range.n == 0 || range.n > std::numeric_limits<std::int32_t>::max()) {
            return "a range to drop has " + std::to_string(range.n) + " tokens: 1 to " +
                   std::to_string(std::numeric_limits<std::int32_t>::max()) + " are allowed";
        }
    }
    if (r.pin_prompt > r.prompt.size()) {
        return "the prompt has " + std::to_string(r.prompt.size()) + " tokens: " + std::to_string(r.pin_prompt) +
               " cannot be pinned";
    }
    return "";
}

void Executor::submit(Request request) {
    auto state = std::make_unique<RequestState>(std::move(request));
    const Request &r = state->request;
    const std::string reason = rejection_reason(r);
    if (!reason.empty()) {
        if (parking_ && r.start != Start::empty && !is_known(r.source)) {
            parking_->count_miss();
        }
        state->result.outcome = Outcome::failed;
        state->result.error = reason;
        results_.push_back(std::move(state->result));
        counters_.count(Outcome::failed);
        return;
    }
    // Its cancellation counts from here on if it is submitted after its arrival.
    state->request.arrival = std::max(r.arrival, iteration_);
    ids_.insert(r.id);
    if (r.start != Start::empty) {
        Conversation &source = record(r.source);
        source.queued.push_back(r.id);
        source.ending = r.end;
        queue_changed(source);
    }
    if (!r.conversation.empty()) {
        conversations_[r.conversation].name = r.conversation;
    }
    waiting_.push_back(std::move(state));
    counters_.waiting = waiting_.size();
}

std::size_t Executor::waiting_tokens() const {
    std::size_t n = 0;
    for (const auto &state : waiting_) {
        n += state->request.prompt.size();
    }
    return n;
}

bool Executor::cancel(const std::string &id) {
    for (RequestStates *states : {&waiting_, &running_}) {
        for (auto &state : *states) {
            if (state->request.id == id) {
                state->cancel = true;
                return true;
            }
        }
    }
    return false;
}

bool Executor::close(const std::string &name) {
    if (!is_known(name)) {
        return false;
    }
    const auto found = conversations_.find(name);
    if (found != conversations_.end() &&
        ((found->second.slot < 0 && !found->second.parked) || found->second.busy || !found->second.queued.empty())) {
        return false;
    }
    end_conversation(name, "");
    return true;
}

std::vector<Result> Executor::take_results() {
    if (parking_ && !results_.empty()) {
        // Whoever gets a result relies on it: a conversation must not fall back to a round before.
        parking_->sync();
    }
    std::vector<Result> results;
    results.swap(results_);
    return results;
}

bool Executor::step() {
    mark_arrivals();
    cancel_due_requests();
    admit();
    if (running_.empty()) {
        const bool more = skip_to_next_event() || fail_blocked_fork();
        remove_finished();
        return more;
    }
    run(plan());
    iteration_++;
    remove_finished();
    return !running_.empty() || !waiting_.empty();
}

void Executor::mark_arrivals() {
    for (auto &state : waiting_) {
        if (!state->arrived && state->request.arrival <= iteration_) {
            state->arrived = true;
            state->arrived_at = Clock::now();
        }
    }
}

void Executor::cancel_due_requests() {
    for (RequestStates *states : {&waiting_, &running_}) {
        for (auto &state : *states) {
            const Request &r = state->request;
            if (!state->finished && (state->cancel || (r.cancel_after && iteration_ >= r.arrival + *r.cancel_after))) {
                finish(*state, Outcome::cancelled);
            }
        }
    }
    remove_finished();
}

void Executor::admit() {
    // First come, first served among requests that need a slot. The next round of a conversation that is not parked has
    // one: it may overtake.
    bool blocked = false;
    for (auto &state : waiting_) {
        const Request &r = state->request;
        if (!state->arrived || state->finished) {
            continue;
        }
        bool needs_slot = true;
        if (r.start != Start::empty) {
            const Conversation &source = conversations_.at(r.source);
            if ((source.slot < 0 && !source.parked) || source.busy || source.queued.front() != r.id) {
                continue;
            }
            needs_slot = r.start == Start::forked || source.parked;
        }
        if (needs_slot) {
            blocked = blocked || !(slots_.available() || reclaim());
            if (blocked) {
                continue;
            }
        }
        start(*state);
    }
    // Moves started requests to running_, in order.
    for (auto at = waiting_.begin(); at != waiting_.end();) {
        const auto next = std::next(at);
        if ((*at)->slot >= 0) {
            running_.splice(running_.end(), waiting_, at);
        }
        at = next;
    }
    remove_finished();
}

void Executor::start(RequestState &state) {
    const Request &r = state.request;
    state.result.waited = seconds(Clock::now() - state.arrived_at);
    Conversation *source = r.start == Start::empty ? nullptr : &conversations_.at(r.source);
    if (source && source->parked) {
        if (!restore(*source, state)) {
            return;
        }
    } else if (r.start == Start::continued) {
        state.slot = source->slot;
    } else {
        state.slot = slots_.acquire();
        if (source) {
            model_.plugin().fork(source->slot, state.slot);
        } else {
            model_.plugin().reset(state.slot);
        }
    }
    if (r.start == Start::continued) {
        state.conversation = source;
    } else {
        if (!r.conversation.empty()) {
            state.conversation = &conversations_.at(r.conversation);
            state.conversation->slot = state.slot;
            if (source) {
                state.conversation->pending = source->pending;
                state.conversation->lookup = source->lookup;
            }
        }
    }
    if (state.conversation) {
        state.conversation->busy = true;
    }
    if (source) {
        source->queued.pop_front();
        state.lookup = source->lookup;
        if (source->pending) {
            // Not pushed to `lookup`, which has it already.
            state.context.push_back(*source->pending);
            if (r.answer_end && !model_.config().ends(*source->pending)) {
                state.context.push_back(*r.answer_end);
                state.lookup.push(*r.answer_end);
            }
        }
        source->used = iteration_;
        queue_changed(*source);
    }
    state.begin = model_.plugin().length(state.slot);
    state.pin_from = state.context.size();
    state.pin_end = state.pin_from + r.pin_prompt;
    for (Token token : r.prompt) {
        state.context.push_back(token);
        state.lookup.push(token);
    }
    if (const std::string reason = range_rejection(state); !reason.empty()) {
        // A fork that never began leaves no conversation.
        finish(state, Outcome::failed, reason, r.start == Start::continued);
        return;
    }
    drop_ranges(state);
}

/**
 * Ends a request with the tokens it has; remove_finished() takes it off its list. Its conversation stays with the
 * tokens in the cache, unless it ends with this request, never had a slot, or its sequence is lost.
 */
void Executor::finish(RequestState &state, Outcome outcome, const std::string &error, bool keep_sequence) {
    const Request &r = state.request;
    state.finished = true;
    state.result.outcome = outcome;
    state.result.error = error;
    ids_.erase(r.id);
    counters_.count(outcome);
    if (state.slot < 0) {
        if (r.start != Start::empty) {
            if (const auto source = conversations_.find(r.source); source != conversations_.end()) {
                auto &queued = source->second.queued;
                queued.erase(std::remove(queued.begin(), queued.end(), r.id), queued.end());
                source->second.ending = source->second.ending && !r.end;
                queue_changed(source->second);
            }
        }
        if (!r.conversation.empty()) {
            end_conversation(r.conversation, "conversation " + quoted(r.conversation) + " never began");
        }
        results_.push_back(state.result);
        return;
    }
    if (keep_sequence) {
        if (state.conversation && !r.end && outcome != Outcome::failed) {
            drop_thoughts(state);
        }
        state.result.stream_length = model_.plugin().length(state.slot);
    }
    if (!state.result.tokens.empty()) {
        state.result.decoding = seconds(Clock::now() - state.first_token_at);
    }
    results_.push_back(state.result);
    Conversation *c = state.conversation;
    if (!c) {
        slots_.release(state.slot);
        return;
    }
    c->busy = false;
    c->used = iteration_;
    if (state.context_done > 0) {
        c->pending.reset();
        if (!state.result.tokens.empty() && !state.last_dropped) {
            c->pending = state.last();
        }
        c->lookup = state.lookup;
    }
    // An empty sequence cannot be continued: it would lack its first token, <s>.
    if (r.end || !keep_sequence || state.result.stream_length == 0) {
        end_conversation(c->name,
                         "conversation " + quoted(c->name) + (keep_sequence ? " never began" : " was lost: " + error));
    }
}

/** Frees its slot, or what is parked of it; requests queued for it fail with this message. */
void Executor::end_conversation(std::string name, const std::string &error) {
    if (const auto found = conversations_.find(name); found != conversations_.end()) {
        if (found->second.slot >= 0) {
            slots_.release(found->second.slot);
        }
        conversations_.erase(found);
    }
    if (parking_) {
        parking_->remove(name);
    }
    for (auto &state : waiting_) {
        // A request with a slot has its own copy already.
        if (!state->finished && state->slot < 0 && state->starts_from(name)) {
            finish(*state, Outcome::failed, error);
        }
    }
}

/** With nothing to run: advances to the iteration of the next arrival or cancellation. False if there is none. */
bool Executor::skip_to_next_event() {
    std::optional<std::uint64_t> next;
    for (const auto &state : waiting_) {
        const Request &r = state->request;
        std::optional<std::uint64_t> at;
        if (!state->arrived) {
            at = r.arrival;
        } else if (r.cancel_after) {
            at = r.arrival + *r.cancel_after;
        }
        if (at && (!next || *at < *next)) {
            next = at;
        }
    }
    if (next) {
        iteration_ = std::max(iteration_ + 1, *next);
    }
    return next.has_value();
}

/**
 * With all slots held by idle conversations and no arrival to come, the next request of each is a fork, which needs one
 * more slot. None can become free: fails such a fork.
 */
bool Executor::fail_blocked_fork() {
    if (!config_.reclaim_idle) {
        return false;
    }
    for (auto &state : waiting_) {
        if (state->request.start == Start::forked) {
            finish(*state, Outcome::failed,
                   "a fork needs a second sequence slot: all " + std::to_string(config_.max_seqs) +
                       " are held by conversations that have requests queued");
            return true;
        }
    }
    return false;
}

/** Removes finished requests from the lists. */
void Executor::remove_finished() {
    for (RequestStates *states : {&waiting_, &running_}) {
        states->remove_if([](const auto &state) { return state->finished; });
    }
    counters_.running = running_.size();
    counters_.waiting = waiting_.size();
    counters_.idle_conversations =
        static_cast<std::uint64_t>(std::count_if(conversations_.begin(), conversations_.end(),
                                                 [](const auto &c) { return c.second.slot >= 0 && !c.second.busy; }));
}

}  // namespace inflight
