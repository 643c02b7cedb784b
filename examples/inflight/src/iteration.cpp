#include "executor.hpp"
#include "task.hpp"

#include <algorithm>

namespace inflight {

/** One batch: a chunk for the oldest prompt, steps of those who generate, drafts, then more of the prompts. */
std::vector<Executor::Entry> Executor::plan() {
    std::vector<Entry> entries;
    const auto oldest = std::find_if(running_.begin(), running_.end(), [](const auto &t) { return t->in_context(); });
    // Steps of many others must not keep a prompt out for ever, nor prompts the steps: the budget is above a chunk.
    const std::size_t reserved = oldest == running_.end() ? 0 : std::min<std::size_t>(config_.chunk, (*oldest)->to_enter());
    const std::size_t left = plan_steps(entries, config_.budget - reserved);
    plan_contexts(entries, left + reserved);
    return entries;
}

/** Steps in turn, then drafts, of at most `left` tokens. Returns what is left. */
std::size_t Executor::plan_steps(std::vector<Entry> &entries, std::size_t left) {
    std::vector<Task *> steps;
    for (const auto &task : running_) {
        if (!task->in_context()) {
            steps.push_back(task.get());
        }
    }
    if (steps.size() > left) {
        std::rotate(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(turn_ % steps.size()), steps.end());
        turn_ += left;
        steps.resize(left);
    }
    left -= steps.size();
    for (Task *task : steps) {
        // The token after the last of the draft comes free: a draft of what is still to be generated would be one too many.
        const std::size_t most = std::min({std::size_t{config_.draft}, task->to_generate() - 1, left});
        auto draft = task->recent.draft(most);
        left -= draft.size();
        entries.push_back({task, 1 + draft.size(), std::move(draft)});
    }
    return left;
}

/** Prompts in the order they began: all that is left of one, or whole chunks. */
void Executor::plan_contexts(std::vector<Entry> &entries, std::size_t left) const {
    for (const auto &task : running_) {
        if (task->in_context()) {
            const std::size_t n = task->to_enter() <= left ? task->to_enter() : left / config_.chunk * config_.chunk;
            if (n > 0) {
                entries.push_back({task.get(), n, {}});
                left -= n;
            }
        }
    }
}

void Executor::run(std::vector<Entry> entries) {
    AttentionPlugin &plugin = model_.plugin();
    Batch batch;
    for (Entry &e : entries) {
        const Task &task = *e.task;
        const auto row = static_cast<std::uint32_t>(batch.tokens.size());
        batch.seq_ids.push_back(task.slot);
        batch.n_tokens.push_back(static_cast<std::int32_t>(e.n));
        if (task.in_context()) {
            const auto from = task.context.begin() + static_cast<std::ptrdiff_t>(task.entered);
            batch.tokens.insert(batch.tokens.end(), from, from + static_cast<std::ptrdiff_t>(e.n));
            if (e.completes_context()) {
                batch.wanted.push_back({row + static_cast<std::uint32_t>(e.n) - 1, task.request.sampling, 0});
            }
        } else {
            batch.tokens.push_back(task.last());
            batch.tokens.insert(batch.tokens.end(), e.draft.begin(), e.draft.end());
            for (std::uint32_t i = 0; i < e.n; i++) {
                batch.wanted.push_back({row + i, task.request.sampling, task.result.tokens.size() + i});
            }
        }
    }
    std::vector<Token> tokens;
    try {
        for (Entry &e : entries) {
            e.evicted = plugin.evicted(e.task->slot);
        }
        tokens = model_.forward(batch);
    } catch (const std::exception &error) {
        bool undone = true;
        try {
            plugin.abort_step(batch.seq_ids);
        } catch (const sinkcache::Error &) {
            undone = false;
        }
        for (Entry &e : entries) {
            finish(*e.task, Outcome::failed, error.what(), undone);
        }
        return;
    }
    counters_.iterations++;
    counters_.batch_rows += batch.tokens.size(), counters_.batch_budget += config_.budget;
    std::size_t at = 0;
    AttentionPlugin::Ids ids, rejected;
    for (Entry &e : entries) {
        if (e.task->in_context()) {
            commit_context(e, tokens, at);
        } else if (const std::uint32_t n = commit_step(e, tokens, at)) {
            ids.push_back(e.task->slot), rejected.push_back(static_cast<std::int32_t>(n));
        }
    }
    if (!ids.empty()) {
        plugin.rewind(ids, rejected);
    }
    for (Entry &e : entries) {
        Task &task = *e.task;
        counters_.evicted_tokens += plugin.evicted(task.slot) - e.evicted;
        const bool over = !task.result.tokens.empty() && (task.to_generate() == 0 || task.last() == model_.config().eos);
        if (over) {
            finish(task, Outcome::done);
        }
    }
}

void Executor::commit_context(Entry &e, const std::vector<Token> &tokens, std::size_t &at) {
    e.task->entered += e.n;
    counters_.context_tokens += e.n;
    if (!e.task->in_context()) {
        e.task->first_at = Clock::now();
        e.task->result.first_token = std::chrono::duration<double>(e.task->first_at - e.task->arrived_at).count();
        generated(*e.task, tokens[at++]);
    }
}

/** Takes what the draft had right and the token after it. Returns how many tokens must leave the cache again. */
std::uint32_t Executor::commit_step(Entry &e, const std::vector<Token> &tokens, std::size_t &at) {
    Task &task = *e.task;
    std::size_t taken = 0;
    do {
        generated(task, tokens[at + taken]);
        taken++;
    } while (taken < e.n && task.last() == e.draft[taken - 1] && task.last() != model_.config().eos);
    at += e.n;
    task.result.drafted += e.draft.size(), task.result.accepted += taken - 1;
    counters_.drafted_tokens += e.draft.size(), counters_.accepted_tokens += taken - 1;
    counters_.decode_tokens += taken;
    return static_cast<std::uint32_t>(e.n - taken);
}

void Executor::generated(Task &task, Token token) {
    task.result.tokens.push_back(token);
    task.recent.push(token);
    counters_.generated_tokens++;
}

}  // namespace inflight
