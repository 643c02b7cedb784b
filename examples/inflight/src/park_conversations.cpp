// The executor's conversations without a slot: how they lose theirs, and get one again.
#include "executor.hpp"
#include "parked_conversation.hpp"
#include "request_state.hpp"

#include <algorithm>
#include <exception>

namespace inflight {

bool Executor::is_known(const std::string &conversation) const {
    return conversations_.count(conversation) > 0 || (parking_ && parking_->contains(conversation));
}

/** Of a conversation that is known. One that is parked has no record while no request is queued for it. */
Conversation &Executor::record(const std::string &name) {
    const auto [found, is_new] = conversations_.try_emplace(name);
    Conversation &c = found->second;
    if (is_new) {
        c.name = name;
        c.parked = true;
    }
    return c;
}

/** After requests were queued for a conversation, or were taken off. The reference is then invalid. */
void Executor::queue_changed(Conversation &c) {
    if (!c.parked) {
        return;
    }
    parking_->set_wanted(c.name, !c.queued.empty());
    if (c.queued.empty()) {
        conversations_.erase(std::string(c.name));
    }
}

/**
 * The idle conversations in the order in which they give their slots back: those that no request is queued for, longest
 * idle first; then, as they can be parked, those whose next request comes last.
 */
std::vector<Conversation *> Executor::reclaim_order() {
    std::vector<Conversation *> idle;
    bool any_queued = false;
    for (auto &[name, c] : conversations_) {
        if (c.slot >= 0 && !c.busy && (c.queued.empty() || parking_)) {
            idle.push_back(&c);
            any_queued = any_queued || !c.queued.empty();
        }
    }
    std::map<std::string, std::size_t> place;
    if (any_queued) {
        for (const auto &state : waiting_) {
            place.emplace(state->request.id, place.size());
        }
    }
    std::stable_sort(idle.begin(), idle.end(), [&](const Conversation *a, const Conversation *b) {
        if (a->queued.empty() != b->queued.empty()) {
            return a->queued.empty();
        }
        return a->queued.empty() ? a->used < b->used : place.at(a->queued.front()) > place.at(b->queued.front());
    });
    return idle;
}

/** Frees the slot of an idle conversation: parks it, or ends it if no request is queued for it. */
bool Executor::reclaim() {
    for (Conversation *c : reclaim_order()) {
        if (parking_ && park(*c)) {
            return true;
        }
        if (config_.reclaim_idle && c->queued.empty()) {
            end_conversation(c->name, "");
            return true;
        }
        if (!c->queued.empty()) {
            // Where one did not fit, the next would not.
            return false;
        }
    }
    return false;
}

/** False if it cannot be saved, or there is no room: it then keeps its slot. */
bool Executor::park(Conversation &c) {
    std::optional<Bytes> content;
    try {
        content = to_bytes({c.pending, c.lookup.recent(), model_.plugin().save(c.slot)});
    } catch (const std::exception &) {
        // A miss on this rank, and so on all.
    }
    if (!parking_->put(c.name, std::move(content), !c.queued.empty())) {
        return false;
    }
    slots_.release(c.slot);
    c.slot = -1;
    c.parked = true;
    c.pending.reset();
    c.lookup = PromptLookup();
    queue_changed(c);
    return true;
}

/**
 * Gives the request a slot with the sequence of a parked conversation: the conversation itself, or a copy. False if
 * that fails, and the request with it. A conversation that is lost ends; one that the cache refuses stays parked.
 */
bool Executor::restore(Conversation &c, RequestState &state) {
    const bool forks = state.request.start == Start::forked;
    const bool on_disk = parking_->contains(c.name) && parking_->on_disk(c.name);
    const std::int32_t slot = slots_.acquire();
    std::optional<ParkedConversation> parked;
    const Reader load = [&](const Bytes &content) {
        parked = from_bytes(content, model_.config().vocabulary);
        if (parked) {
            model_.plugin().load(slot, parked->sequence);
        }
        return parked.has_value();
    };
    const Fetched fetched = forks ? parking_->copy(c.name, load) : parking_->take(c.name, load);
    if (fetched.how != Fetched::read) {
        slots_.release(slot);
        const std::string conversation = "conversation '" + c.name + "' ";
        if (fetched.how == Fetched::lost) {
            end_conversation(c.name, conversation + "was lost: what was parked of it is damaged or missing");
        } else {
            finish(state, Outcome::failed, conversation + "stays parked: " + fetched.reason);
        }
        return false;
    }
    c.pending = parked->pending;
    c.lookup = PromptLookup();
    for (const Token token : parked->recent) {
        c.lookup.push(token);
    }
    state.result.restored = on_disk ? Restored::from_disk : Restored::from_memory;
    state.slot = slot;
    if (!forks) {
        c.parked = false;
        c.slot = slot;
    }
    return true;
}

void Executor::park_idle() {
    std::vector<Conversation *> idle = reclaim_order();
    for (Conversation *c : idle) {
        park(*c);
    }
    parking_->move_to_disk();
}

}  // namespace inflight
