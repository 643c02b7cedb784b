#include "thoughts.hpp"

#include <algorithm>

std::vector<TokenSpan> find_thoughts(const std::vector<std::string> &pieces, std::size_t answer,
                                     const ThoughtMarkers &markers) {
    std::string text;
    // Where each token's text ends.
    std::vector<std::size_t> ends;
    for (const std::string &piece : pieces) {
        text += piece;
        ends.push_back(text.size());
    }
    const auto token_of = [&](std::size_t byte) {
        return static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), byte) - ends.begin());
    };
    std::vector<TokenSpan> found;
    std::size_t at = 0;
    for (;;) {
        const std::size_t open = text.find(markers.open, at);
        if (open == std::string::npos) {
            return found;
        }
        const std::size_t close = text.find(markers.close, open + markers.open.size());
        if (close == std::string::npos) {
            return found;
        }
        at = close + markers.close.size();
        const TokenSpan span{token_of(open), token_of(at - 1) + 1};
        if (span.end > answer) {
            found.push_back(span);
        }
    }
}
