// What llama.cpp's own cache, kept for book-keeping, holds of each sequence.
#ifndef SINKCACHE_LLAMA_SEQUENCES_HPP
#define SINKCACHE_LLAMA_SEQUENCES_HPP

#include "batch.hpp"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/**
 * llama.cpp insists that a sequence's positions follow those in its cache, and counts them in 32 bits. Attention does not see
 * them, so they are our own: the last token of each sequence stays there, positions start anywhere, never go back, not even
 * when a sequence does, and start again from 0 before they run out. So a state that somebody loads, from this context or from
 * another, does not end where it must.
 */
class Sequences {
public:
    /** `last`: positions stay below it. */
    Sequences(llama_context *ctx, std::uint32_t n_seqs, llama_pos last = 1 << 30);

    std::int32_t count() const { return static_cast<std::int32_t>(next_.size()); }
    /** Its index. @throws Error if there is no such sequence. */
    std::size_t known(llama_seq_id seq_id) const;
    /** Its index. @throws Error if there is no such sequence, or an error has left it half done. */
    std::size_t usable(llama_seq_id seq_id) const;
    /** Until it is cleared. */
    void mark_broken(llama_seq_id seq_id) { broken_[static_cast<std::size_t>(seq_id)] = true; }
    /** @throws Error if somebody else has edited llama.cpp's cache. */
    void check_untouched() const;
    /** Drops all but the last token of each sequence of a batch, and gives the batch its positions. */
    void place(Job &job);
    /** Tokens beyond those that count which llama.cpp holds. */
    llama_pos held(llama_seq_id seq_id) const;
    /** After `n` tokens more; llama.cpp forgets those beyond. */
    void advance(llama_seq_id seq_id, std::int64_t n);
    /** Drops what llama.cpp holds of it. */
    void forget(llama_seq_id seq_id);
    /** Empties it and makes it usable. */
    void clear(llama_seq_id seq_id);

private:
    void note(llama_seq_id seq_id);
    void make_room(llama_seq_id seq_id, std::int32_t n_tokens);

    llama_memory_t memory_;
    llama_pos last_;
    /** llama.cpp's position of the next token. */
    std::vector<llama_pos> next_;
    /** What llama_memory_seq_pos_max must say. */
    std::vector<llama_pos> newest_;
    /** Their layers could not be brought to one length. */
    std::vector<bool> broken_;
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_SEQUENCES_HPP
