#include "drafts.hpp"

#include <algorithm>

namespace inflight {

void Recent::push(Token token) {
    // Halved now and then: pushing is O(1) on average.
    if (tokens_.size() == 2 * LOOK_BACK) {
        tokens_.erase(tokens_.begin(), tokens_.begin() + LOOK_BACK);
    }
    tokens_.push_back(token);
}

std::vector<Token> Recent::draft(std::size_t most) const {
    const auto begin = tokens_.end() - static_cast<std::ptrdiff_t>(std::min(tokens_.size(), LOOK_BACK));
    for (std::ptrdiff_t n : {4, 3}) {
        if (most == 0 || tokens_.end() - begin <= n) {
            continue;
        }
        const auto last = tokens_.end() - n;
        // The end itself does not count as an earlier place.
        const auto found = std::find_end(begin, tokens_.end() - 1, last, tokens_.end());
        if (found != tokens_.end() - 1) {
            const auto next = found + n;
            return {next, next + std::min<std::ptrdiff_t>(tokens_.end() - next, static_cast<std::ptrdiff_t>(most))};
        }
    }
    return {};
}

}  // namespace inflight
