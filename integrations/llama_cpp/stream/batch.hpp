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

/** How llama.cpp cuts a batch into micro-batches. */
enum class Split {
    /** The tokens in order, n_ubatch at a time: one KV cache for all sequences (kv_unified). */
    IN_ORDER,
    /** Equally many tokens of each sequence that has some left: a hybrid, whose recurrent layers need that. */
    EQUAL,
    /** One sequence at a time: a hybrid that computes embeddings. */
    BY_SEQUENCE,
};

/** A micro-batch of llama.cpp as a ragged batch of sinkcache: entry i is n_tokens[i] rows of seq_ids[i]. */
struct Ubatch {
    /** Rows of the micro-batches before it. */
    std::size_t first_row = 0;
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
    /** Tokens of the sequence that llama.cpp's own cache holds before the batch. */
    std::int64_t n_cells = 0;
};

/** What one Stream::decode() computes. */
struct BatchPlan {
    /** One entry for each sequence of the batch, in the order of its tokens. */
    std::vector<BatchEntry> entries;
    std::vector<Ubatch> ubatches;
    /** The positions passed to llama.cpp, one for each row. */
    std::vector<llama_pos> positions;
    /** The same in the order of the rows of the micro-batches: an op identifies its rows by them. */
    std::vector<llama_pos> ubatch_positions;
    /** How many cells of llama.cpp's cache each of those rows sees, by which an op without positions identifies it. */
    std::vector<std::int64_t> ubatch_visible;

    /** Fills `ubatch_positions` and `ubatch_visible` from `positions` and the entries. */
    void order_rows();
};

/** The rows of a llama_batch. @throws Error for a batch without tokens, or without token and embd */
std::vector<BatchRow> rows_of(const llama_batch &batch);

/**
 * Validates a batch and plans its computation. Changes no state; `positions` stays empty, see
 * Sequences::assign_positions().
 *
 * @throws Error with the token and what is allowed
 */
BatchPlan plan_batch(const std::vector<BatchRow> &rows, const llama_context *ctx, Split split, const Caches &cache,
                     const Sequences &sequences);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_BATCH_HPP
