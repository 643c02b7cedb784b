#include "batch.hpp"

#include "caches.hpp"
#include "errors.hpp"
#include "llama_api.hpp"
#include "sequences.hpp"

#include <algorithm>
#include <string>

namespace sinkcache {
namespace llama_cpp {
namespace {

std::string name_of(std::size_t i) { return "token " + std::to_string(i) + " of the batch"; }

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

std::vector<BatchRow> rows_of(const llama_batch &batch) {
    if (batch.n_tokens < 0) {
        invalid_argument("a batch of " + std::to_string(batch.n_tokens) + " tokens: at least 1 is needed");
    }
    if (batch.n_tokens > 0 && !batch.token == !batch.embd) {
        invalid_argument("a batch needs either token or embd");
    }
    std::vector<BatchRow> rows(static_cast<std::size_t>(batch.n_tokens));
    for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i].is_embedding = !batch.token;
        if (batch.n_seq_id) {
            rows[i].n_seq_ids = batch.n_seq_id[i];
        }
        // Without seq_id a token is in sequence 0, as in llama.cpp.
        if (batch.seq_id && !batch.seq_id[i]) {
            invalid_argument(name_of(i) + ": its seq_id is NULL");
        }
        if (batch.seq_id && rows[i].n_seq_ids > 0) {
            rows[i].seq_id = batch.seq_id[i][0];
        }
        if (batch.pos && batch.pos[i] < 0) {
            invalid_argument(name_of(i) + " has position " + std::to_string(batch.pos[i]) +
                             ": it must not be negative");
        }
        if (batch.pos) {
            rows[i].pos = batch.pos[i];
        }
    }
    return rows;
}

BatchPlan plan_batch(const std::vector<BatchRow> &rows, const llama_context *ctx, const Caches &cache,
                     const Sequences &sequences) {
    const std::uint32_t n_batch = api().llama_n_batch(ctx);
    if (rows.empty() || rows.size() > n_batch) {
        invalid_argument("a batch of " + std::to_string(rows.size()) +
                         " tokens: allowed are 1 to n_batch = " + std::to_string(n_batch));
    }
    if (!api().llama_get_causal_attn(ctx)) {
        invalid_argument("llama_set_causal_attn(false) is not supported: attention over a stream is causal");
    }
    BatchPlan plan;
    std::vector<bool> has_entry(static_cast<std::size_t>(sequences.count()), false);
    std::uint64_t next_position = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const BatchRow &row = rows[i];
        if (row.n_seq_ids != 1) {
            invalid_argument(name_of(i) + " is in " + std::to_string(row.n_seq_ids) + " sequences: allowed is 1");
        }
        if (plan.entries.empty() || plan.entries.back().seq_id != row.seq_id) {
            const std::size_t s = sequences.usable(row.seq_id);
            if (has_entry[s]) {
                invalid_argument(name_of(i) + ": the tokens of sequence " + std::to_string(row.seq_id) +
                                 " are not consecutive");
            }
            has_entry[s] = true;
            const skc_sequence_info info = cache.info(row.seq_id);
            next_position = info.start_position + info.length_min;
            if (info.length_min == 0 && row.pos >= 0 && sequences.numbering() == Numbering::OF_THE_HOST) {
                next_position = static_cast<std::uint64_t>(row.pos);
            }
            plan.entries.push_back({row.seq_id, 0, info.length_min, next_position});
        }
        if (row.pos != BatchRow::NEXT && (row.pos < 0 || static_cast<std::uint64_t>(row.pos) != next_position)) {
            invalid_argument(name_of(i) + " has position " + std::to_string(row.pos) + ": sequence " +
                             std::to_string(row.seq_id) + " continues at " + std::to_string(next_position) +
                             " (rewind or clear it to go back)");
        }
        ++next_position;
        ++plan.entries.back().n_tokens;
    }
    plan.ubatches = split(plan.entries, static_cast<std::int32_t>(api().llama_n_ubatch(ctx)));
    return plan;
}

}  // namespace llama_cpp
}  // namespace sinkcache
