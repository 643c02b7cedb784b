// The bytes of llama_state_ functions and files: headers around the cache's snapshots, as docs/llama-hosts.md says.
#ifndef SINKCACHE_INTERPOSE_STATE_FORMAT_HPP
#define SINKCACHE_INTERPOSE_STATE_FORMAT_HPP

#include "sinkcache.hpp"

#include <cstddef>
#include <cstdint>

namespace sinkcache {
namespace interpose {

/** What follows a header. */
enum class StateKind : std::uint32_t {
    /** A snapshot of the cache. */
    SEQUENCE = 1,
    /** Nothing: the sequence was unusable when it was saved, and will be when it is loaded. */
    UNUSABLE = 2,
    /** The states of `n_seqs` sequences, one after the other. */
    CONTEXT = 3,
};

struct StateHeader {
    StateKind kind = StateKind::SEQUENCE;
    /** For CONTEXT, else 0. */
    std::uint32_t n_seqs = 0;
    /** Of the whole state, this header included. */
    std::uint64_t n_bytes = 0;
};

constexpr std::size_t STATE_HEADER_BYTES = 32;

/** `to` has room for STATE_HEADER_BYTES. */
void write_header(const StateHeader &header, std::uint8_t *to);

/**
 * @throws Error SKC_STATUS_INVALID_SNAPSHOT for bytes that are no state of this library, such as llama.cpp's own, or
 * end before the state does
 */
StateHeader read_header(const std::uint8_t *from, std::size_t n_bytes);

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_STATE_FORMAT_HPP
