// Pins and dropped ranges of the executor's sequences. An edit that the cache has no room for keeps the tokens, and is
// noted.
#include "executor.hpp"
#include "request_state.hpp"

#include <algorithm>

namespace inflight {
namespace {

std::string shown(const TokenRange &range) {
    return "tokens " + std::to_string(range.first) + " to " + std::to_string(range.first + range.n - 1);
}

}  // namespace

/** Why the ranges to drop are none of the sequence that the request starts from; empty = they can be dropped. */
std::string Executor::range_rejection(const RequestState &state) const {
    for (const TokenRange &range : state.request.drop) {
        const std::uint32_t n_sink = model_.plugin().n_sink();
        if (range.first < n_sink) {
            return "the range to drop begins at token " + std::to_string(range.first) + ": the first " +
                   std::to_string(n_sink) + " are sinks, which stay";
        }
        if (range.first > state.begin || range.n > state.begin - range.first) {
            return "the range to drop has " + std::to_string(range.n) + " tokens from " + std::to_string(range.first) +
                   " on: the conversation has " + std::to_string(state.begin);
        }
    }
    return "";
}

/** Whether the cache did it. If it had no room, or did not hold the tokens, they stay as they are: a note says so. */
template <class Edit>
bool Executor::edit(RequestState &state, const std::string &what, const Edit &edit) {
    const AttentionPlugin &plugin = model_.plugin();
    const SequenceState before = plugin.state(state.slot);
    try {
        edit();
    } catch (const sinkcache::Error &error) {
        if (error.status() != SKC_STATUS_NO_ROOM && error.status() != SKC_STATUS_TOKENS_GONE) {
            throw;
        }
        state.result.notes.push_back(what + ": " + error.what());
        counters_.refused_edits++;
        return false;
    }
    const SequenceState after = plugin.state(state.slot);
    const std::uint64_t dropped = before.cached - after.cached;
    state.result.dropped += dropped;
    counters_.dropped_tokens += dropped;
    if (after.pinned > before.pinned) {
        state.result.pinned += after.pinned - before.pinned;
        counters_.pinned_tokens += after.pinned - before.pinned;
    }
    return true;
}

void Executor::drop_ranges(RequestState &state) {
    for (const TokenRange &range : state.request.drop) {
        edit(state, shown(range) + " stay in the cache",
             [&] { model_.plugin().evict_range(state.slot, range.first, range.n); });
    }
}

/** Pins what has been fed of the tokens to pin. The first part is refused if there is no room for all of them. */
void Executor::pin_fed(RequestState &state) {
    const std::size_t to = std::min(state.pin_end, state.context_done);
    if (to <= state.pin_from) {
        return;
    }
    AttentionPlugin &plugin = model_.plugin();
    const TokenRange all{state.begin + state.pin_from, static_cast<std::uint32_t>(state.pin_end - state.pin_from)};
    const std::string what = shown(all) + " are not pinned";
    // Sinks take no room.
    const std::uint64_t needed = all.first + all.n - std::max<std::uint64_t>(all.first, plugin.n_sink());
    const std::uint64_t pinned = plugin.state(state.slot).pinned;
    if (all.first + all.n > plugin.n_sink() && pinned + needed > plugin.max_pinned()) {
        state.result.notes.push_back(what + ": " + std::to_string(pinned + needed) +
                                     " pinned tokens would be more than the " + std::to_string(plugin.max_pinned()) +
                                     " that there is room for");
        counters_.refused_edits++;
        state.pin_end = 0;
        return;
    }
    const auto n = static_cast<std::uint32_t>(to - state.pin_from);
    if (!edit(state, what, [&] { plugin.pin(state.slot, all.first, n); })) {
        state.pin_end = 0;
        return;
    }
    state.pin_from = to;
    const std::uint64_t trained = model_.config().trained_context;
    const std::uint64_t reached = plugin.positions(plugin.state(state.slot).pinned);
    if (state.pin_from == state.pin_end && trained != 0 && reached > trained) {
        state.result.notes.push_back("sinks, pinned tokens and window reach " + std::to_string(reached) +
                                     " positions: the model was trained with " + std::to_string(trained));
    }
}

/** Drops the thoughts of an answer that is complete. */
void Executor::drop_thoughts(RequestState &state) {
    const Request &r = state.request;
    if (!r.drop_thoughts || state.in_context()) {
        return;
    }
    std::vector<Token> tokens = r.prompt;
    tokens.insert(tokens.end(), state.result.tokens.begin(), state.result.tokens.end());
    AttentionPlugin &plugin = model_.plugin();
    const std::uint64_t length = plugin.length(state.slot);
    const std::uint64_t prompt = state.begin + state.context.size() - r.prompt.size();
    for (const TokenRange &thought : find_thoughts(tokens, r.prompt.size(), *r.drop_thoughts)) {
        const std::uint64_t end = prompt + thought.first + thought.n;
        const std::uint64_t first = std::max<std::uint64_t>(prompt + thought.first, plugin.n_sink());
        const std::uint64_t in_cache = std::min(end, length);
        bool dropped = true;
        if (first < in_cache) {
            const TokenRange range{first, static_cast<std::uint32_t>(in_cache - first)};
            dropped = edit(state, shown(range) + ", a thought, stay in the cache",
                           [&] { plugin.evict_range(state.slot, range.first, range.n); });
        }
        // The last token generated is not in the cache.
        state.last_dropped = state.last_dropped || (dropped && end > length);
    }
}

}  // namespace inflight
