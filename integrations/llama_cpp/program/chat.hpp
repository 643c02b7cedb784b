// A conversation of any number of rounds.
#ifndef LLAMA_STREAM_CHAT_HPP
#define LLAMA_STREAM_CHAT_HPP

#include "engine.hpp"

struct ChatSetting {
    Setting common;
    /** Prompts, one a line; empty = standard input. */
    std::string file;
    /** First message of the conversation, where the template has a place for it. */
    std::string system;
    /** Most tokens of an answer. */
    std::uint32_t predict = 256;
    /** Sampling temperature; 0 = the most likely token. */
    float temperature = 0.8F;
    std::uint32_t seed = 1;
    /** Prompts as they are, even if the model has a template. */
    bool raw = false;
    bool json = false;
};

/** Runs it and prints answers and timings. @throws UserError, sinkcache::Error */
void chat(const ChatSetting &setting);

#endif
