// A llama_batch, checked and cut the way llama.cpp will cut it.
#ifndef SINKCACHE_LLAMA_BATCH_HPP
#define SINKCACHE_LLAMA_BATCH_HPP

#include "sinkcache.hpp"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

class Sequences;

/** Tokens that llama.cpp computes together, as sinkcache takes them. */
struct Piece {
    std::int32_t n_rows = 0;
    std::vector<std::int32_t> seq_ids;
    std::vector<std::int32_t> n_tokens;
};

/** The tokens of one sequence. */
struct Run {
    llama_seq_id seq_id = 0;
    std::int32_t n_tokens = 0;
    /** Length of the sequence before. */
    std::uint64_t length = 0;
};

/** A batch on its way through the graph. */
struct Job {
    std::vector<Run> runs;
    /** Of n_ubatch rows each, but for the last. */
    std::vector<Piece> pieces;
    /** Positions that llama.cpp gets: the only sign, inside the graph, of what a micro-batch holds. */
    std::vector<llama_pos> positions;
};

/** @throws Error that names the token and what was allowed. Changes nothing; positions are left for Sequences. */
Job check_batch(const llama_batch &batch, const llama_context *ctx, const Cache &cache, const Sequences &sequences);

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_BATCH_HPP
