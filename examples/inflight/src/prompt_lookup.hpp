// Drafts by prompt lookup: the tokens that followed an earlier occurrence of the sequence's last n-gram.
#pragma once

#include "weights.hpp"

#include <cstddef>
#include <vector>

namespace inflight {

/** The recent tokens of a sequence, with the one that is fed next. */
class PromptLookup {
public:
    void push(Token token);
    /** The tokens that drafts depend on. Another lookup that gets them gives the same drafts. */
    std::vector<Token> recent() const;
    /**
     * A draft of up to `most` next tokens: those that followed the latest earlier occurrence of the last 4 tokens, or
     * if there is none, of the last 3. Otherwise empty.
     */
    std::vector<Token> draft(std::size_t most) const;

private:
    /** How many tokens are searched. */
    static constexpr std::size_t LOOK_BACK = 1024;
    std::vector<Token> tokens_;
};

}  // namespace inflight
