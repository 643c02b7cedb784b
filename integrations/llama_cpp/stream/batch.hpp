// A batch, validated and split into the micro-batches in which llama.cpp will compute it.
#ifndef SINKCACHE_LLAMA_BATCH_HPP
#define SINKCACHE_LLAMA_BATCH_HPP

#include "sinkcache.hpp"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

class Caches;
class Sequences;

/** A token of a host's batch, as far as the cache needs to know it. */
struct BatchRow {
    llama_seq_id seq_id = 0;
    /** The position that the host gives it, or NEXT. */
    llama_pos pos = NEXT;
    /** Sequences that the host puts it in; more than 1 is refused. */
    std::int32_t n_seq_ids = 1;
    /** Whether the host gives its embedding in place of a token's number. */
    bool is_embedding = false;

    /** The position after the sequence's last token. */
    static constexpr llama_pos NEXT = -1;
};

/** A micro-batch of llama.cpp as a ragged batch of sinkcache: entry i is n_tokens[i] rows of seq_ids[i]. */
struct Ubatch {
    /** Sum of n_tokens. */
    std::int32_t n_rows = 0;
    std::vector<std::int32_t> seq_ids;
    std::vector<std::int32_t> n_tokens;
};

/** The tokens of one sequence in a batch. */
struct BatchEntry {
    llama_seq_id seq_id = 0;
    std::int32_t n_tokens = 0;
    /** Length of the sequence before the batch. */
    std::uint64_t length_before = 0;
    /** Stream position of the first of the tokens. */
    std::uint64_t position = 0;
};

/** What one Stream::decode() computes. */
struct BatchPlan {
    /** One entry for each sequence of the batch, in the order of its tokens. */
    std::vector<BatchEntry> entries;
    /** All but the last have n_ubatch rows. */
    std::vector<Ubatch> ubatches;
    /** The positions passed to llama.cpp, one for each row. An op identifies the rows of a micro-batch by them. */
    std::vector<llama_pos> positions;
};

/** The rows of a llama_batch. @throws Error for a batch without tokens, or without token and embd */
std::vector<BatchRow> rows_of(const llama_batch &batch);

/**
 * Validates a batch and plans its computation. Changes no state; `positions` stays empty, see
 * Sequences::assign_positions().
 *
 * @throws Error with the token and what is allowed
 */
BatchPlan plan_batch(const std::vector<BatchRow> &rows, const llama_context *ctx, const Caches &cache,
                     const Sequences &sequences);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_BATCH_HPP
