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

/** Where the largest logit is no finite number, as with weights that are none. */
constexpr Token NO_TOKEN = -1;

/**
 * Samples a token of logits [n]. The random number depends only on the seed and on `index`, the token's index in the
 * output of its request. So a draft token can be verified by sampling at its index, and drafts do not change the
 * output. Returns NO_TOKEN if there is none.
 */
Token sample(const float *logits, std::size_t n, const Sampling &sampling, std::uint64_t index);

}  // namespace inflight
