// Thoughts of a reasoning model: what stands between two marker tokens.
#pragma once

#include "weights.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace inflight {

/** Consecutive tokens of a sequence, by the index of the first, from 0. */
struct TokenRange {
    std::uint64_t first;
    std::uint32_t n;
};

struct ThoughtMarkers {
    Token open, close;
};

/**
 * The thoughts that end in the answer, markers included, as indices of `tokens`: a prompt, and from index `answer` on
 * its answer. Templates may open a thought at the end of the prompt. One that is not closed is none.
 */
std::vector<TokenRange> find_thoughts(const std::vector<Token> &tokens, std::size_t answer, ThoughtMarkers markers);

}  // namespace inflight
