// States of whole contexts, and files of states.
#ifndef SINKCACHE_INTERPOSE_STATES_HPP
#define SINKCACHE_INTERPOSE_STATES_HPP

#include "served.hpp"

#include <llama.h>

#include <cstddef>
#include <cstdint>

namespace sinkcache {
namespace interpose {

/** As Served::state_bytes(), save_state() and load_state(), of all sequences. */
std::size_t all_state_bytes(Served &served);
std::size_t save_all_states(Served &served, std::uint8_t *to, std::size_t n_bytes);
/** A sequence whose state cannot be loaded ends the call: it and those after it stay as they were. */
std::size_t load_all_states(Served &served, const std::uint8_t *from, std::size_t n_bytes);

/** Tokens of a file: what is written, or room for what is read. */
struct FileTokens {
    llama_token *data;
    std::size_t n;
};

/**
 * The functions of llama.cpp's names without `llama_state_`. Files are those of llama.cpp with another state behind the
 * tokens, so that each of both refuses the other's.
 */
bool save_file(Served &served, const char *path, const llama_token *tokens, std::size_t n_tokens);
bool load_file(Served &served, const char *path, const FileTokens &room, std::size_t *n_tokens);
std::size_t seq_save_file(Served &served, const char *path, llama_seq_id seq_id, const llama_token *tokens,
                          std::size_t n_tokens);
std::size_t seq_load_file(Served &served, const char *path, llama_seq_id seq_id, const FileTokens &room,
                          std::size_t *n_tokens);

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_STATES_HPP
