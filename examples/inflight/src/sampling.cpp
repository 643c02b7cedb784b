#include "sampling.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace inflight {
namespace {

/** A number in [0, 1) by SplitMix64 (Steele, Lea, Flood 2014). */
double uniform(std::uint64_t seed, std::uint64_t index) {
    std::uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

}  // namespace

Token sample(const float *logits, std::size_t n, const Sampling &sampling, std::uint64_t index) {
    const float *best = std::max_element(logits, logits + n);
    if (!std::isfinite(*best)) {
        return NO_TOKEN;
    }
    if (sampling.temperature <= 0) {
        return static_cast<Token>(best - logits);
    }
    std::vector<double> cumulative(n);
    double sum = 0;
    for (std::size_t i = 0; i < n; i++) {
        sum += std::exp(static_cast<double>(logits[i] - *best) / static_cast<double>(sampling.temperature));
        cumulative[i] = sum;
    }
    const auto drawn = std::upper_bound(cumulative.begin(), cumulative.end(), uniform(sampling.seed, index) * sum);
    return static_cast<Token>(std::min<std::size_t>(static_cast<std::size_t>(drawn - cumulative.begin()), n - 1));
}

}  // namespace inflight
