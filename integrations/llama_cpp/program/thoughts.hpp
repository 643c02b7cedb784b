// Thoughts of a reasoning model: what stands between two marker texts.
#ifndef LLAMA_STREAM_THOUGHTS_HPP
#define LLAMA_STREAM_THOUGHTS_HPP

#include <cstddef>
#include <string>
#include <vector>

struct ThoughtMarkers {
    std::string open = "<think>", close = "</think>";
};

/** Tokens `first` to `end` - 1. */
struct TokenSpan {
    std::size_t first, end;
};

/**
 * The thoughts that end in the answer, with all tokens that have a part of a marker. `pieces`: the texts of the tokens
 * of a prompt, and from `answer` on those of its answer. A template may open a thought at the end of the prompt. One
 * that is not closed is none.
 */
std::vector<TokenSpan> find_thoughts(const std::vector<std::string> &pieces, std::size_t answer,
                                     const ThoughtMarkers &markers);

#endif
