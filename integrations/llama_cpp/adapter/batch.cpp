#include "batch.hpp"

#include "sequences.hpp"

#include <algorithm>
#include <string>

namespace sinkcache {
namespace llama_cpp {
namespace {

[[noreturn]] void refuse(const std::string &reason) { throw Error(SKC_STATUS_INVALID_ARGUMENT, reason); }

llama_seq_id sequence_of(const llama_batch &batch, std::int32_t i) {
    if (batch.n_seq_id && batch.n_seq_id[i] != 1) {
        refuse("token " + std::to_string(i) + " of the batch is in " + std::to_string(batch.n_seq_id[i]) +
               " sequences: allowed is 1");
    }
    if (!batch.seq_id) {
        return 0;
    }
    if (!batch.seq_id[i]) {
        refuse("token " + std::to_string(i) + " of the batch: its seq_id is NULL");
    }
    return batch.seq_id[i][0];
}

// llama.cpp takes the tokens of a batch in order, n_ubatch at a time, where all sequences share one cache.
std::vector<Piece> cut(const std::vector<Run> &runs, std::int32_t n_ubatch) {
    std::vector<Piece> pieces;
    for (const Run &run : runs) {
        for (std::int32_t left = run.n_tokens; left > 0;) {
            if (pieces.empty() || pieces.back().n_rows == n_ubatch) {
                pieces.emplace_back();
            }
            Piece &piece = pieces.back();
            const std::int32_t n = std::min(left, n_ubatch - piece.n_rows);
            piece.seq_ids.push_back(run.seq_id);
            piece.n_tokens.push_back(n);
            piece.n_rows += n;
            left -= n;
        }
    }
    return pieces;
}

}  // namespace

Job check_batch(const llama_batch &batch, const llama_context *ctx, const Cache &cache, const Sequences &sequences) {
    const std::uint32_t n_batch = llama_n_batch(ctx);
    if (batch.n_tokens <= 0 || static_cast<std::uint32_t>(batch.n_tokens) > n_batch) {
        refuse("a batch of " + std::to_string(batch.n_tokens) + " tokens: allowed are 1 to n_batch = " +
               std::to_string(n_batch));
    }
    if (!batch.token == !batch.embd) {
        refuse("a batch needs either token or embd");
    }
    if (!llama_get_causal_attn(ctx)) {
        refuse("llama_set_causal_attn(false): a stream is causal");
    }
    Job job;
    std::vector<bool> seen(static_cast<std::size_t>(sequences.count()), false);
    std::uint64_t expected = 0;
    for (std::int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id seq_id = sequence_of(batch, i);
        const auto token = [&] { return "token " + std::to_string(i) + " of the batch"; };
        if (job.runs.empty() || job.runs.back().seq_id != seq_id) {
            const std::size_t s = sequences.usable(seq_id);
            if (seen[s]) {
                refuse(token() + ": the tokens of sequence " + std::to_string(seq_id) + " are not side by side");
            }
            seen[s] = true;
            const skc_sequence_info info = cache.info(seq_id);
            expected = info.start_position + info.length_min;
            job.runs.push_back({seq_id, 0, info.length_min});
        }
        if (batch.pos && (batch.pos[i] < 0 || static_cast<std::uint64_t>(batch.pos[i]) != expected)) {
            refuse(token() + " has position " + std::to_string(batch.pos[i]) + ": sequence " + std::to_string(seq_id) +
                   " continues at " + std::to_string(expected) + " (rewind or clear it to go back)");
        }
        ++expected;
        ++job.runs.back().n_tokens;
    }
    job.pieces = cut(job.runs, static_cast<std::int32_t>(llama_n_ubatch(ctx)));
    return job;
}

}  // namespace llama_cpp
}  // namespace sinkcache
