#include "batch.hpp"

#include "errors.hpp"
#include "sequences.hpp"

#include <algorithm>
#include <string>

namespace sinkcache {
namespace llama_cpp {
namespace {

/** The sequence of token `i`; 0 if the batch names none, as in llama.cpp. */
llama_seq_id sequence_of(const llama_batch &batch, std::int32_t i) {
    if (batch.n_seq_id && batch.n_seq_id[i] != 1) {
        invalid_argument("token " + std::to_string(i) + " of the batch is in " + std::to_string(batch.n_seq_id[i]) +
                         " sequences: allowed is 1");
    }
    if (!batch.seq_id) {
        return 0;
    }
    if (!batch.seq_id[i]) {
        invalid_argument("token " + std::to_string(i) + " of the batch: its seq_id is NULL");
    }
    return batch.seq_id[i][0];
}

// With one KV cache for all sequences (kv_unified), llama.cpp computes the tokens of a batch in order, n_ubatch at a
// time.
std::vector<Ubatch> split(const std::vector<BatchEntry> &entries, std::int32_t n_ubatch) {
    std::vector<Ubatch> ubatches;
    for (const BatchEntry &entry : entries) {
        for (std::int32_t left = entry.n_tokens; left > 0;) {
            if (ubatches.empty() || ubatches.back().n_rows == n_ubatch) {
                ubatches.emplace_back();
            }
            Ubatch &ubatch = ubatches.back();
            const std::int32_t n = std::min(left, n_ubatch - ubatch.n_rows);
            ubatch.seq_ids.push_back(entry.seq_id);
            ubatch.n_tokens.push_back(n);
            ubatch.n_rows += n;
            left -= n;
        }
    }
    return ubatches;
}

}  // namespace

BatchPlan plan_batch(const llama_batch &batch, const llama_context *ctx, const Cache &cache,
                     const Sequences &sequences) {
    const std::uint32_t n_batch = llama_n_batch(ctx);
    if (batch.n_tokens <= 0 || static_cast<std::uint32_t>(batch.n_tokens) > n_batch) {
        invalid_argument("a batch of " + std::to_string(batch.n_tokens) +
                         " tokens: allowed are 1 to n_batch = " + std::to_string(n_batch));
    }
    if (!batch.token == !batch.embd) {
        invalid_argument("a batch needs either token or embd");
    }
    if (!llama_get_causal_attn(ctx)) {
        invalid_argument("llama_set_causal_attn(false) is not supported: attention over a stream is causal");
    }
    BatchPlan plan;
    std::vector<bool> has_entry(static_cast<std::size_t>(sequences.count()), false);
    std::uint64_t next_position = 0;
    for (std::int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id seq_id = sequence_of(batch, i);
        const auto name = [&] { return "token " + std::to_string(i) + " of the batch"; };
        if (plan.entries.empty() || plan.entries.back().seq_id != seq_id) {
            const std::size_t s = sequences.usable(seq_id);
            if (has_entry[s]) {
                invalid_argument(name() + ": the tokens of sequence " + std::to_string(seq_id) +
                                 " are not consecutive");
            }
            has_entry[s] = true;
            const skc_sequence_info info = cache.info(seq_id);
            next_position = info.start_position + info.length_min;
            plan.entries.push_back({seq_id, 0, info.length_min});
        }
        if (batch.pos && (batch.pos[i] < 0 || static_cast<std::uint64_t>(batch.pos[i]) != next_position)) {
            invalid_argument(name() + " has position " + std::to_string(batch.pos[i]) + ": sequence " +
                             std::to_string(seq_id) + " continues at " + std::to_string(next_position) +
                             " (rewind or clear it to go back)");
        }
        ++next_position;
        ++plan.entries.back().n_tokens;
    }
    plan.ubatches = split(plan.entries, static_cast<std::int32_t>(llama_n_ubatch(ctx)));
    return plan;
}

}  // namespace llama_cpp
}  // namespace sinkcache
