#include "executor.hpp"
#include "request_state.hpp"

#include <algorithm>

namespace inflight {

/** Composes a batch: a chunk of the oldest prompt, a step of each generating request, drafts, then more chunks of
 * prompts. */
std::vector<Executor::Entry> Executor::plan() {
    std::vector<Entry> entries;
    const auto oldest = std::find_if(running_.begin(), running_.end(), [](const auto &t) { return t->in_context(); });
    // Neither may starve the other: a chunk is reserved for the oldest prompt, and the rest of the budget, at least 1,
    // for steps.
    const std::size_t reserved =
        oldest == running_.end() ? 0 : std::min<std::size_t>(config_.chunk, (*oldest)->context_left());
    const std::size_t left = plan_steps(entries, config_.budget - reserved);
    plan_contexts(entries, left + reserved);
    return entries;
}

/** Adds steps, in rotation if not all fit, then drafts, of at most `left` tokens. Returns how many are left. */
std::size_t Executor::plan_steps(std::vector<Entry> &entries, std::size_t left) {
    std::vector<RequestState *> steps;
    for (const auto &state : running_) {
        if (!state->in_context()) {
            steps.push_back(state.get());
        }
    }
    if (steps.size() > left) {
        std::rotate(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(rotation_ % steps.size()), steps.end());
        rotation_ += left;
        steps.resize(left);
    }
    left -= steps.size();
    for (RequestState *state : steps) {
        // A step generates one token more than its draft: a draft of all the tokens left would be one too long.
        const std::size_t most = std::min({std::size_t{config_.draft}, state->tokens_left() - 1, left});
        auto draft = state->lookup.draft(most);
        left -= draft.size();
        entries.push_back({state, 1 + draft.size(), std::move(draft)});
    }
    return left;
}

/**
 * Adds prompts in the order in which they started: all that is left of one, or whole chunks. A prompt that is being
 * pinned enters chunk by chunk under any schedule: each is pinned before the window moves past it.
 */
void Executor::plan_contexts(std::vector<Entry> &entries, std::size_t left) const {
    for (const auto &state : running_) {
        if (state->in_context()) {
            const std::size_t most = state->pinning() ? std::min<std::size_t>(state->context_left(), config_.chunk)
                                                      : state->context_left();
            const std::size_t n = most <= left ? most : left / config_.chunk * config_.chunk;
            if (n > 0) {
                entries.push_back({state.get(), n, {}});
                left -= n;
            }
        }
    }
}

Batch Executor::make_batch(const std::vector<Entry> &entries) {
    Batch batch;
    for (const Entry &e : entries) {
        const RequestState &state = *e.state;
        const auto row = static_cast<std::uint32_t>(batch.tokens.size());
        batch.seq_ids.push_back(state.slot);
        batch.n_tokens.push_back(static_cast<std::int32_t>(e.n));
        if (state.in_context()) {
            const auto from = state.context.begin() + static_cast<std::ptrdiff_t>(state.context_done);
            batch.tokens.insert(batch.tokens.end(), from, from + static_cast<std::ptrdiff_t>(e.n));
            if (e.completes_context()) {
                batch.output_rows.push_back({row + static_cast<std::uint32_t>(e.n) - 1, state.request.sampling, 0});
            }
        } else {
            batch.tokens.push_back(state.last());
            batch.tokens.insert(batch.tokens.end(), e.draft.begin(), e.draft.end());
            for (std::uint32_t i = 0; i < e.n; i++) {
                batch.output_rows.push_back({row + i, state.request.sampling, state.result.tokens.size() + i});
            }
        }
    }
    return batch;
}

void Executor::run(std::vector<Entry> entries) {
    AttentionPlugin &plugin = model_.plugin();
    const Batch batch = make_batch(entries);
    std::vector<Token> tokens;
    try {
        for (Entry &e : entries) {
            e.evicted = plugin.evicted(e.state->slot);
        }
        tokens = model_.forward(batch);
    } catch (const std::exception &error) {
        fail(entries, batch, error.what());
        return;
    }
    counters_.iterations++;
    counters_.batch_rows += batch.tokens.size();
    counters_.batch_budget += config_.budget;
    commit(entries, tokens);
}

/** Undoes a forward pass that has failed; all requests of the batch fail. */
void Executor::fail(std::vector<Entry> &entries, const Batch &batch, const std::string &error) {
    bool undone = true;
    try {
        model_.plugin().abort_step(batch.seq_ids);
    } catch (const sinkcache::Error &) {
        undone = false;
    }
    for (Entry &e : entries) {
        finish(*e.state, Outcome::failed, error, undone);
    }
}

/** `tokens`: those of the batch's output rows. */
void Executor::commit(std::vector<Entry> &entries, const std::vector<Token> &tokens) {
    AttentionPlugin &plugin = model_.plugin();
    std::size_t next = 0;
    AttentionPlugin::Ids ids, rejected;
    for (Entry &e : entries) {
        if (e.state->in_context()) {
            commit_context(e, tokens, next);
        } else if (const std::uint32_t n = commit_step(e, tokens, next)) {
            ids.push_back(e.state->slot);
            rejected.push_back(static_cast<std::int32_t>(n));
        }
    }
    if (!ids.empty()) {
        plugin.rewind(ids, rejected);
    }
    for (Entry &e : entries) {
        RequestState &state = *e.state;
        counters_.evicted_tokens += plugin.evicted(state.slot) - e.evicted;
        if (!state.finished && !state.result.tokens.empty() &&
            (state.tokens_left() == 0 || model_.config().ends(state.last()))) {
            finish(state, Outcome::done);
        }
    }
}

void Executor::commit_context(Entry &e, const std::vector<Token> &tokens, std::size_t &next) {
    e.state->context_done += e.n;
    counters_.context_tokens += e.n;
    pin_fed(*e.state);
    if (!e.state->in_context()) {
        if (tokens[next] == NO_TOKEN) {
            next++;
            fail_without_token(*e.state);
            return;
        }
        e.state->first_token_at = Clock::now();
        e.state->result.first_token =
            std::chrono::duration<double>(e.state->first_token_at - e.state->arrived_at).count();
        append_generated(*e.state, tokens[next++]);
    }
}

/** Accepts the draft tokens that match and the token after them. Returns how many rejected tokens must be removed from
 * the cache. */
std::uint32_t Executor::commit_step(Entry &e, const std::vector<Token> &tokens, std::size_t &next) {
    RequestState &state = *e.state;
    std::size_t n_generated = 0;
    do {
        if (tokens[next + n_generated] == NO_TOKEN) {
            next += e.n;
            fail_without_token(state);
            return 0;
        }
        append_generated(state, tokens[next + n_generated]);
        n_generated++;
    } while (n_generated < e.n && state.last() == e.draft[n_generated - 1] && !model_.config().ends(state.last()));
    next += e.n;
    state.result.drafted += e.draft.size();
    state.result.accepted += n_generated - 1;
    counters_.drafted_tokens += e.draft.size();
    counters_.accepted_tokens += n_generated - 1;
    counters_.decode_tokens += n_generated;
    return static_cast<std::uint32_t>(e.n - n_generated);
}

/** What it has in the cache may be no numbers either, so its conversation is lost. */
void Executor::fail_without_token(RequestState &state) {
    finish(state, Outcome::failed, "the model's logits are no finite numbers", false);
}

void Executor::append_generated(RequestState &state, Token token) {
    state.result.tokens.push_back(token);
    if (observer_) {
        observer_(state.request.id, token);
    }
    state.lookup.push(token);
    counters_.generated_tokens++;
}

}  // namespace inflight
