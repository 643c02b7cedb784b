// Scores a text of any length.
#ifndef LLAMA_STREAM_SCORE_HPP
#define LLAMA_STREAM_SCORE_HPP

#include "engine.hpp"

struct ScoreSetting {
    Setting common;
    std::string text;
    /** Tokens to stream; 0 = all. */
    std::uint64_t tokens = 0;
    /** Tokens at a time; 1 as in generation. */
    std::uint32_t chunk = 128;
    /** Tokens at a time until the window is full, not counted in the speed; 0 = no difference is made. */
    std::uint32_t prefill = 0;
    /** Every stride-th token's prediction is scored. */
    std::uint64_t stride = 1;
    bool json = false;
};

/** Runs it and prints the result. @throws UserError, sinkcache::Error */
void score(const ScoreSetting &setting);

#endif
