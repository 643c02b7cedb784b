// Positions of sequences in llama.cpp's own KV cache, which the adapter keeps only because llama_decode needs it.
#ifndef SINKCACHE_LLAMA_SEQUENCES_HPP
#define SINKCACHE_LLAMA_SEQUENCES_HPP

#include "batch.hpp"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** Who chooses the positions of the tokens in llama.cpp's own KV cache. */
enum class Numbering {
    /**
     * The host: they are the stream positions, of 31 bits. What the host reads there is true, and models that use
     * positions outside of attention get the right ones. Edits of that cache must come through the stream, which does
     * not notice others.
     */
    OF_THE_HOST,
    /**
     * The stream: they start at a random number, another one in each sequence, increase with every token, do not
     * decrease when a sequence is rewound or cleared, and restart at 0 before they reach `max_pos`. A state that the
     * host loads with llama_state_ therefore ends at an unexpected position, and check_unmodified() detects it. Stream
     * positions may have 64 bits.
     */
    OF_THE_STREAM,
};

/**
 * llama.cpp's KV cache holds the last token of each sequence, since llama_decode requires that the positions of a batch
 * follow those in its cache. Attention does not use these positions.
 */
class Sequences {
public:
    /**
     * Positions that the stream chooses stay below `max_pos`. `is_hybrid`: the cache also holds the states of recurrent
     * layers, which cannot be dropped while a sequence goes on; its positions end there. `ctx` must outlive this
     * object.
     */
    Sequences(llama_context *ctx, std::uint32_t n_seqs, Numbering numbering, llama_pos max_pos = 1 << 30,
              bool is_hybrid = false);

    Numbering numbering() const { return numbering_; }
    std::int32_t count() const { return static_cast<std::int32_t>(next_.size()); }
    /** Index of a sequence. @throws Error if it does not exist */
    std::size_t existing(llama_seq_id seq_id) const;
    /** Index of a sequence. @throws Error if it does not exist or is broken */
    std::size_t usable(llama_seq_id seq_id) const;
    bool is_broken(llama_seq_id seq_id) const { return broken_[static_cast<std::size_t>(seq_id)]; }
    /** Makes a sequence unusable until it is cleared: its layers could not be brought to one length. */
    void mark_broken(llama_seq_id seq_id) { broken_[static_cast<std::size_t>(seq_id)] = true; }
    void mark_usable(llama_seq_id seq_id) { broken_[static_cast<std::size_t>(seq_id)] = false; }
    /** Whether the host has left a sequence of llama.cpp's cache alone, unless the numbering is the host's. */
    bool is_unmodified(llama_seq_id seq_id) const;
    /** @throws Error if the host has edited llama.cpp's cache or loaded a state, unless the numbering is the host's */
    void check_unmodified() const;
    /**
     * Before a batch: sets the positions.
     *
     * @throws Error SKC_STATUS_OUT_OF_RANGE, and changes nothing, if the numbering ends: the host's beyond 2^31 - 1,
     * the stream's in a hybrid before `max_pos`
     */
    void assign_positions(BatchPlan &plan);
    /** Tokens of the current batch that llama.cpp's cache holds. */
    llama_pos uncommitted(llama_seq_id seq_id) const;
    /** After a batch: `n` tokens were appended; removes all but the last of them from llama.cpp's cache. */
    void commit(llama_seq_id seq_id, std::int64_t n);
    /** Makes `dst` a copy of `src` in llama.cpp's cache, the states of recurrent layers included, and usable. */
    void copy(llama_seq_id src, llama_seq_id dst);
    /** After a state of recurrent layers was loaded into a sequence: the next token follows it. */
    void follow_state(llama_seq_id seq_id);
    /** Removes a sequence from llama.cpp's cache, as after a rewind. */
    void drop(llama_seq_id seq_id);
    /** Removes a sequence from llama.cpp's cache and makes it usable. */
    void clear(llama_seq_id seq_id);

private:
    void follow_host(const BatchPlan &plan);
    void check_end(const BatchPlan &plan) const;
    llama_pos first_position() const;
    llama_pos oldest(llama_seq_id seq_id) const;
    void record_newest(llama_seq_id seq_id);
    void restart_positions(llama_seq_id seq_id, std::int32_t n_tokens);

    llama_memory_t memory_;
    Numbering numbering_;
    llama_pos max_pos_;
    bool is_hybrid_;
    /** Position of the next token. */
    std::vector<llama_pos> next_;
    /** What llama_memory_seq_pos_max must return. */
    std::vector<llama_pos> newest_;
    /** In a hybrid, what llama_memory_seq_pos_min must return. */
    std::vector<llama_pos> oldest_;
    std::vector<bool> broken_;
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_SEQUENCES_HPP
