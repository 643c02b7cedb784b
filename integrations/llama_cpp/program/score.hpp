// llama-stream: perplexity and speed over a text of any length.
#ifndef LLAMA_STREAM_SCORE_HPP
#define LLAMA_STREAM_SCORE_HPP

#include "engine.hpp"

struct ScoreSettings {
    Settings common;
    /** File of the text. */
    std::string text;
    /** Tokens to stream; 0 = all. */
    std::uint64_t tokens = 0;
    /** Tokens per decode; 1 as in generation. */
    std::uint32_t chunk = 128;
    /** Tokens per decode until the window is full, excluded from the speed; 0 = no different from the rest. */
    std::uint32_t prefill = 0;
    /** The prediction of every stride-th token is scored. */
    std::uint64_t stride = 1;
    bool json = false;
};

/** Scores the text and prints the result. @throws UserError, sinkcache::Error */
void score(const ScoreSettings &settings);

#endif
