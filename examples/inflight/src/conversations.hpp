// Conversations keep their sequence in the cache between requests.
#pragma once

#include "prompt_lookup.hpp"

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>

namespace inflight {

struct Conversation {
    std::string name;
    /** -1 until its first request has a slot. */
    std::int32_t slot = -1;
    /** Its sequence is not in a slot, but parked. */
    bool parked = false;
    /** One of its requests is running. */
    bool busy = false;
    /** Its last request is queued. */
    bool ending = false;
    /** The last token generated. It is not in the cache: the next round feeds it first. */
    std::optional<Token> pending;
    PromptLookup lookup;
    /** Ids of waiting requests that continue or fork it, in the order of arrival, in which they are served. */
    std::deque<std::string> queued;
    /** Iteration in which it was last used. */
    std::uint64_t used = 0;
};

/** By name; addresses stay valid. */
using Conversations = std::map<std::string, Conversation>;

}  // namespace inflight
