#include "prompt_lookup.hpp"

#include <algorithm>

namespace inflight {

void PromptLookup::push(Token token) {
    // Half of the tokens are dropped at a time, so that push is O(1) on average.
    if (tokens_.size() == 2 * LOOK_BACK) {
        tokens_.erase(tokens_.begin(), tokens_.begin() + LOOK_BACK);
    }
    tokens_.push_back(token);
}

std::vector<Token> PromptLookup::recent() const {
    return {tokens_.end() - static_cast<std::ptrdiff_t>(std::min(tokens_.size(), LOOK_BACK)), tokens_.end()};
}

std::vector<Token> PromptLookup::draft(std::size_t most) const {
    const auto begin = tokens_.end() - static_cast<std::ptrdiff_t>(std::min(tokens_.size(), LOOK_BACK));
    for (std::ptrdiff_t n : {4, 3}) {
        if (most == 0 || tokens_.end() - begin <= n) {
            continue;
        }
        const auto last = tokens_.end() - n;
        // The end itself is not an earlier occurrence.
        const auto found = std::find_end(begin, tokens_.end() - 1, last, tokens_.end());
        if (found != tokens_.end() - 1) {
            const auto next = found + n;
            return {next, next + std::min<std::ptrdiff_t>(tokens_.end() - next, static_cast<std::ptrdiff_t>(most))};
        }
    }
    return {};
}

}  // namespace inflight
