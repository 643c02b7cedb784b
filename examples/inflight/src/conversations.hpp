// Sequence slots, and the conversations that keep theirs between requests.
#pragma once

#include "drafts.hpp"

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace inflight {

/** A sequence that outlives requests. */
struct Conversation {
    std::string name;
    /** -1 until its first request has a slot. */
    std::int32_t slot = -1;
    /** A request is at work in it. */
    bool busy = false;
    /** Its last request is queued. */
    bool ending = false;
    /** The last token generated, which has not entered the cache: the next round begins with it. */
    std::optional<Token> pending;
    Recent recent;
    /** Requests that name it and wait, in the order they came; served in that order. */
    std::deque<std::string> queued;
    /** Iteration in which it was last used. */
    std::uint64_t used = 0;
};

class Slots {
public:
    explicit Slots(std::uint32_t n) {
        for (std::uint32_t i = n; i > 0; i--) {
            free_.push_back(static_cast<std::int32_t>(i - 1));
        }
    }
    bool any() const { return !free_.empty(); }
    std::int32_t take() {
        const std::int32_t slot = free_.back();
        free_.pop_back();
        return slot;
    }
    void give(std::int32_t slot) { free_.push_back(slot); }

private:
    std::vector<std::int32_t> free_;
};

/** By name; addresses stay valid. */
using Conversations = std::map<std::string, Conversation>;

}  // namespace inflight
