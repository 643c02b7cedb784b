#include "thoughts.hpp"

#include <optional>

namespace inflight {

std::vector<TokenRange> find_thoughts(const std::vector<Token> &tokens, std::size_t answer, ThoughtMarkers markers) {
    std::vector<TokenRange> found;
    std::optional<std::size_t> open;
    for (std::size_t i = 0; i < tokens.size(); i++) {
        // The markers may be the same token.
        if (open && tokens[i] == markers.close) {
            if (i >= answer) {
                found.push_back({*open, static_cast<std::uint32_t>(i + 1 - *open)});
            }
            open.reset();
        } else if (!open && tokens[i] == markers.open) {
            open = i;
        }
    }
    return found;
}

}  // namespace inflight
