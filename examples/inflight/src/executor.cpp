#include "executor.hpp"

#include "task.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace inflight {
namespace {

double seconds(std::chrono::steady_clock::duration d) { return std::chrono::duration<double>(d).count(); }

std::string quoted(const std::string &name) { return "'" + name + "'"; }

}  // namespace

Executor::Executor(Model &model, ExecutorConfig config) : model_(model), config_(config), slots_(config.max_seqs) {
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
                                    std::to_string(config.chunk) + ": the budget must be larger, so that steps fit beside a chunk");
    }
}

Executor::~Executor() = default;

std::string Executor::refusal(const Request &r) const {
    const auto vocabulary = static_cast<Token>(model_.config().vocabulary);
    const auto outside = std::find_if(r.prompt.begin(), r.prompt.end(), [&](Token t) { return t < 0 || t >= vocabulary; });
    if (ids_.count(r.id)) {
        return "another request is called " + quoted(r.id);
    }
    if (r.prompt.empty()) {
        return "the prompt is empty";
    }
    if (r.prompt.size() > config_.max_prompt) {
        return "the prompt has " + std::to_string(r.prompt.size()) + " tokens: at most " + std::to_string(config_.max_prompt) +
               " are allowed";
    }
    if (outside != r.prompt.end()) {
        return "token " + std::to_string(*outside) + " of the prompt is outside the vocabulary of " + std::to_string(vocabulary);
    }
    if (r.max_tokens < 1 || r.max_tokens > config_.max_tokens) {
        return "max_tokens is " + std::to_string(r.max_tokens) + ": 1 to " + std::to_string(config_.max_tokens) + " is allowed";
    }
    if (!std::isfinite(r.sampling.temperature) || r.sampling.temperature < 0) {
        return "temperature is " + std::to_string(r.sampling.temperature) + ": it must be 0 or above";
    }
    if (r.start != Start::fresh) {
        const auto source = conversations_.find(r.source);
        if (source == conversations_.end()) {
            return "there is no conversation " + quoted(r.source);
        }
        if (source->second.ending) {
            return "conversation " + quoted(r.source) + " ends with an earlier request";
        }
    }
    if (r.start != Start::continued && conversations_.count(r.conversation)) {
        return "there is a conversation " + quoted(r.conversation) + " already";
    }
    if (r.start == Start::continued && !r.conversation.empty()) {
        return "a request that continues a conversation cannot name another";
    }
    if (r.end && r.start != Start::continued) {
        return "only a conversation that is continued can end";
    }
    return "";
}

void Executor::submit(Request request) {
    auto task = std::make_unique<Task>(std::move(request));
    const Request &r = task->request;
    const std::string why = refusal(r);
    if (!why.empty()) {
        task->result.outcome = Outcome::failed, task->result.error = why;
        results_.push_back(std::move(task->result));
        counters_.failed++;
        return;
    }
    ids_.insert(r.id);
    if (r.start != Start::fresh) {
        Conversation &source = conversations_.at(r.source);
        source.queued.push_back(r.id);
        source.ending = r.end;
    }
    if (!r.conversation.empty()) {
        conversations_[r.conversation].name = r.conversation;
    }
    waiting_.push_back(std::move(task));
    counters_.waiting = waiting_.size();
}

bool Executor::cancel(const std::string &id) {
    for (Tasks *tasks : {&waiting_, &running_}) {
        for (auto &task : *tasks) {
            if (task->request.id == id) {
                return task->cancel = true;
            }
        }
    }
    return false;
}

bool Executor::close(const std::string &name) {
    const auto found = conversations_.find(name);
    if (found == conversations_.end() || found->second.slot < 0 || found->second.busy || !found->second.queued.empty()) {
        return false;
    }
    end_conversation(name, "");
    return true;
}

std::vector<Result> Executor::take_results() {
    std::vector<Result> results;
    results.swap(results_);
    return results;
}

bool Executor::step() {
    arrive();
    cancel_due();
    admit();
    if (running_.empty()) {
        const bool more = skip_to_next_event() || fail_blocked_fork();
        sweep();
        return more;
    }
    run(plan());
    now_++;
    sweep();
    return !running_.empty() || !waiting_.empty();
}

void Executor::arrive() {
    for (auto &task : waiting_) {
        if (!task->arrived && task->request.arrival <= now_) {
            task->arrived = true, task->arrived_at = Clock::now();
        }
    }
}

void Executor::cancel_due() {
    for (Tasks *tasks : {&waiting_, &running_}) {
        for (auto &task : *tasks) {
            const Request &r = task->request;
            if (!task->finished && (task->cancel || (r.cancel_after && now_ >= r.arrival + *r.cancel_after))) {
                finish(*task, Outcome::cancelled);
            }
        }
    }
    sweep();
}

void Executor::admit() {
    // First come, first served among those who need a slot; a conversation's next round has one and may pass them.
    bool blocked = false;
    for (auto &task : waiting_) {
        const Request &r = task->request;
        if (!task->arrived || task->finished) {
            continue;
        }
        if (r.start != Start::fresh) {
            const Conversation &source = conversations_.at(r.source);
            if (source.slot < 0 || source.busy || source.queued.front() != r.id) {
                continue;
            }
        }
        if (r.start != Start::continued) {
            blocked = blocked || !(slots_.any() || (config_.reclaim_idle && reclaim()));
            if (blocked) {
                continue;
            }
        }
        start(*task);
    }
    // What has started moves over, in order.
    for (auto at = waiting_.begin(); at != waiting_.end();) {
        const auto next = std::next(at);
        if ((*at)->slot >= 0) {
            running_.splice(running_.end(), waiting_, at);
        }
        at = next;
    }
    sweep();
}

void Executor::start(Task &task) {
    const Request &r = task.request;
    task.result.waited = seconds(Clock::now() - task.arrived_at);
    Conversation *source = r.start == Start::fresh ? nullptr : &conversations_.at(r.source);
    if (r.start == Start::continued) {
        task.conversation = source, task.slot = source->slot;
    } else {
        task.slot = slots_.take();
        if (source) {
            model_.plugin().fork(source->slot, task.slot);
        } else {
            model_.plugin().reset(task.slot);
        }
        if (!r.conversation.empty()) {
            task.conversation = &conversations_.at(r.conversation);
            task.conversation->slot = task.slot;
            if (source) {
                task.conversation->pending = source->pending, task.conversation->recent = source->recent;
            }
        }
    }
    if (task.conversation) {
        task.conversation->busy = true;
    }
    if (source) {
        source->queued.pop_front();
        task.recent = source->recent;
        if (source->pending) {
            // It is among the recent ones already.
            task.context.push_back(*source->pending);
        }
        source->used = now_;
    }
    for (Token token : r.prompt) {
        task.context.push_back(token);
        task.recent.push(token);
    }
}

/**
 * Ends a task with what it has; sweep() takes it off its list. Its conversation goes on with what has entered, unless it
 * ends, never had a slot, or its sequence cannot be kept.
 */
void Executor::finish(Task &task, Outcome outcome, const std::string &error, bool keep_sequence) {
    const Request &r = task.request;
    task.finished = true;
    task.result.outcome = outcome, task.result.error = error;
    ids_.erase(r.id);
    (outcome == Outcome::done ? counters_.done : outcome == Outcome::cancelled ? counters_.cancelled : counters_.failed)++;
    if (task.slot < 0) {
        if (r.start != Start::fresh) {
            if (const auto source = conversations_.find(r.source); source != conversations_.end()) {
                auto &queued = source->second.queued;
                queued.erase(std::remove(queued.begin(), queued.end(), r.id), queued.end());
                source->second.ending = source->second.ending && !r.end;
            }
        }
        if (!r.conversation.empty()) {
            end_conversation(r.conversation, "conversation " + quoted(r.conversation) + " never began");
        }
        results_.push_back(task.result);
        return;
    }
    if (keep_sequence) {
        task.result.stream_length = model_.plugin().length(task.slot);
    }
    if (!task.result.tokens.empty()) {
        task.result.decoding = seconds(Clock::now() - task.first_at);
    }
    results_.push_back(task.result);
    Conversation *c = task.conversation;
    if (!c) {
        slots_.give(task.slot);
        return;
    }
    c->busy = false, c->used = now_;
    if (task.entered > 0) {
        c->pending.reset();
        if (!task.result.tokens.empty()) {
            c->pending = task.last();
        }
        c->recent = task.recent;
    }
    // One that nothing has entered would go on without its first token.
    if (r.end || !keep_sequence || task.result.stream_length == 0) {
        end_conversation(c->name, "conversation " + quoted(c->name) + (keep_sequence ? " never began" : " was lost: " + error));
    }
}

/** Frees its slot; requests queued for it fail with `why`. */
void Executor::end_conversation(std::string name, const std::string &why) {
    const auto found = conversations_.find(name);
    if (found->second.slot >= 0) {
        slots_.give(found->second.slot);
    }
    conversations_.erase(found);
    for (auto &task : waiting_) {
        // One that has just started needs it no more.
        if (!task->finished && task->slot < 0 && task->names(name)) {
            finish(*task, Outcome::failed, why);
        }
    }
}

/** Ends the conversation that has been idle for longest and that nobody is queued for. */
bool Executor::reclaim() {
    const Conversation *oldest = nullptr;
    for (const auto &[name, c] : conversations_) {
        if (c.slot >= 0 && !c.busy && c.queued.empty() && (!oldest || c.used < oldest->used)) {
            oldest = &c;
        }
    }
    return oldest && close(std::string(oldest->name));
}

/** With nothing to run, time passes at once to the next arrival or cancellation. */
bool Executor::skip_to_next_event() {
    std::optional<std::uint64_t> next;
    for (const auto &task : waiting_) {
        const Request &r = task->request;
        std::optional<std::uint64_t> at;
        if (!task->arrived) {
            at = r.arrival;
        } else if (r.cancel_after) {
            at = r.arrival + *r.cancel_after;
        }
        if (at && (!next || *at < *next)) {
            next = at;
        }
    }
    if (next) {
        now_ = std::max(now_ + 1, *next);
    }
    return next.has_value();
}

/**
 * With all slots held by idle conversations and nothing to come, the next request in each of them is a fork that needs
 * one more slot: it cannot be had.
 */
bool Executor::fail_blocked_fork() {
    if (!config_.reclaim_idle) {
        return false;
    }
    for (auto &task : waiting_) {
        if (task->request.start == Start::forked) {
            finish(*task, Outcome::failed,
                   "a fork needs a second sequence slot: all " + std::to_string(config_.max_seqs) +
                       " are held by conversations that go on");
            return true;
        }
    }
    return false;
}

/** Takes finished tasks off their lists. */
void Executor::sweep() {
    for (Tasks *tasks : {&waiting_, &running_}) {
        tasks->remove_if([](const auto &task) { return task->finished; });
    }
    counters_.running = running_.size(), counters_.waiting = waiting_.size();
    counters_.idle_conversations = static_cast<std::uint64_t>(std::count_if(
        conversations_.begin(), conversations_.end(), [](const auto &c) { return c.second.slot >= 0 && !c.second.busy; }));
}

}  // namespace inflight
