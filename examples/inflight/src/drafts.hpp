// Drafts by prompt lookup: what followed the last time the sequence ended like this.
#pragma once

#include "weights.hpp"

#include <cstddef>
#include <vector>

namespace inflight {

/** A sequence's recent tokens, the one that is next to enter included. */
class Recent {
public:
    void push(Token token);
    /**
     * Up to `most` tokens that may come next: those behind the latest earlier place where the last 4, else the last 3, stood.
     * Empty where there is no such place.
     */
    std::vector<Token> draft(std::size_t most) const;

private:
    /** As far as a draft looks back, in tokens. */
    static constexpr std::size_t LOOK_BACK = 1024;
    std::vector<Token> tokens_;
};

}  // namespace inflight
