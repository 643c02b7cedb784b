// llama-stream chat: a conversation of any number of rounds.
#ifndef LLAMA_STREAM_CHAT_HPP
#define LLAMA_STREAM_CHAT_HPP

#include "engine.hpp"
#include "thoughts.hpp"

#include <optional>

struct ChatSettings {
    Settings common;
    /** File of prompts, one per line; empty = standard input. */
    std::string file;
    /** File to write the conversation to at its end, and file to go on from; empty = none. */
    std::string save, load;
    /** System message at the beginning of the conversation; empty = none. */
    std::string system;
    /** The system message stays in the cache permanently. */
    bool pin_system = false;
    /** Room for pins is what the system message needs; otherwise what `common` says. */
    bool measure_pinned = true;
    /** Thoughts are dropped from the cache when their answer is complete. */
    std::optional<ThoughtMarkers> drop_thoughts;
    /** Most tokens of an answer. */
    std::uint32_t predict = 256;
    /** Sampling temperature; 0 or below = the most likely token, as in llama.cpp. */
    float temperature = 0.8F;
    std::uint32_t seed = 1;
    /** Passes prompts to the model without a chat template, even if it has one. */
    bool raw = false;
    bool json = false;
};

/** Runs the conversation and prints answers and timings. @throws UserError, sinkcache::Error */
void chat(const ChatSettings &settings);

#endif
