// The states of recurrent layers, which llama.cpp keeps, as a part of a saved sequence.
#ifndef SINKCACHE_LLAMA_RECURRENT_STATE_HPP
#define SINKCACHE_LLAMA_RECURRENT_STATE_HPP

#include "sinkcache.hpp"

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** A saved sequence of a hybrid: a header, llama.cpp's state of the recurrent layers, and the caches' snapshot. */
struct HybridSnapshot {
    Span<std::uint8_t> recurrent, caches;

    /** Bytes in front of the two parts. */
    static constexpr std::size_t HEADER_BYTES = 32;

    /** Writes the header of two parts that lie behind it, the second behind the first. */
    static void write_header(std::uint8_t *to, std::size_t n_recurrent, std::size_t n_caches);
    /** @throws Error SKC_STATUS_INVALID_SNAPSHOT for bytes that write_header() has not seen */
    static HybridSnapshot read(Span<std::uint8_t> saved);
};

/** Bytes of llama.cpp's state of the recurrent layers of a sequence. */
std::size_t recurrent_state_bytes(llama_context *ctx, llama_seq_id seq_id);

/** Writes that many. @throws Error SKC_STATUS_INTERNAL if llama.cpp cannot */
void save_recurrent_state(llama_context *ctx, llama_seq_id seq_id, std::uint8_t *to, std::size_t n_bytes);
std::vector<std::uint8_t> save_recurrent_state(llama_context *ctx, llama_seq_id seq_id);

/** @return false if llama.cpp refuses the state: the sequence then has none */
bool load_recurrent_state(llama_context *ctx, llama_seq_id seq_id, Span<std::uint8_t> saved);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_RECURRENT_STATE_HPP
