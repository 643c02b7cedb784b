// A conversation as bytes, while it has no slot.
#pragma once

#include "bytes.hpp"
#include "weights.hpp"

#include <cstddef>
#include <optional>
#include <vector>

namespace inflight {

using programs::Bytes;

struct ParkedConversation {
    /** The last token generated, which is not in the cache. */
    std::optional<Token> pending;
    /** The tokens that drafts depend on. */
    std::vector<Token> recent;
    /** What the plugin saved of its sequence. */
    Bytes sequence;
};

Bytes to_bytes(const ParkedConversation &conversation);

/** Nothing if they are not those of a conversation over a vocabulary of this size. */
std::optional<ParkedConversation> from_bytes(const Bytes &bytes, std::size_t vocabulary);

}  // namespace inflight
