// llama-stream compare: a token's time in a window, by four ways to stay within it and by one that does not.
#ifndef LLAMA_STREAM_COMPARE_HPP
#define LLAMA_STREAM_COMPARE_HPP

#include "engine.hpp"

#include <cstdint>
#include <string>
#include <vector>

struct CompareSettings {
    Settings common;
    /** File of the text. */
    std::string text;
    /** Tokens that each way holds, sinks included. */
    std::vector<std::uint32_t> windows = {256, 512, 1024, 2048, 4096};
    /** In each round: tokens of each way one by one, and one token by recomputing its window. */
    std::uint32_t tokens = 16, rounds = 5;
    bool json = false;
};

/** Measures all ways in turns and prints the results. @throws UserError, sinkcache::Error */
void compare(const CompareSettings &settings);

#endif
