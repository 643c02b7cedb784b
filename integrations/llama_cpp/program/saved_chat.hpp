// A conversation of llama-stream chat in a file.
#ifndef LLAMA_STREAM_SAVED_CHAT_HPP
#define LLAMA_STREAM_SAVED_CHAT_HPP

#include "bytes.hpp"
#include "hash.hpp"
#include "template.hpp"

#include <cstdint>
#include <string>
#include <vector>

struct SavedChat {
    std::uint64_t rounds = 0;
    /** Tokens decoded so far. */
    std::uint64_t processed = 0;
    /** Sampled and printed, not yet decoded. */
    std::vector<std::int32_t> pending;
    /** Without a chat template. */
    bool raw = false;
    ChatTemplate::State text;
    /** What the adapter saved of the sequence. */
    programs::Bytes sequence;
};

/** Of the model's file: a chat is loaded only into the model that it was saved from. @throws std::runtime_error */
programs::Digest tag_of_model(const std::string &path);

/** Throws unless a chat can be written to `path`, as far as can be known before. @throws std::runtime_error */
void check_writable(const std::string &path);

/**
 * Replaces the file as a whole, or leaves it as it is. It has mode 0600, since it holds the conversation. @throws
 * UserError
 */
void save_chat(const std::string &path, const programs::Digest &tag, const SavedChat &chat);

/** @throws UserError with the reason: not a saved chat, damaged, of another model */
SavedChat load_chat(const std::string &path, const programs::Digest &tag);

#endif
