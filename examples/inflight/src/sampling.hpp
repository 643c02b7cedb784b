// From logits to a token.
#pragma once

#include "weights.hpp"

#include <cstddef>
#include <cstdint>

namespace inflight {

/** Greedy at temperature 0. */
struct Sampling {
    float temperature = 0;
    std::uint64_t seed = 0;
};

/**
 * The token of logits [n]. What is drawn depends on the seed and on `index`, the token's place in the request's output, alone:
 * a draft that is checked by drawing at its place leaves the output as it is without drafts.
 */
Token sample(const float *logits, std::size_t n, const Sampling &sampling, std::uint64_t index);

}  // namespace inflight
