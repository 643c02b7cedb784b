#include "batch.hpp"

#include "caches.hpp"
#include "errors.hpp"
#include "llama_api.hpp"
#include "sequences.hpp"

#include <algorithm>
#include <string>
#include <unordered_map>

namespace sinkcache {
namespace llama_cpp {
namespace {

std::string name_of(std::size_t i) { return "token " + std::to_string(i) + " of the batch"; }

void add_rows(Ubatch &ubatch, llama_seq_id seq_id, std::int32_t n) {
    ubatch.seq_ids.push_back(seq_id);
    ubatch.n_tokens.push_back(n);
    ubatch.n_rows += n;
}

/** `by_sequence`: no micro-batch has tokens of two. */
std::vector<Ubatch> split_in_order(const std::vector<BatchEntry> &entries, std::int32_t n_ubatch, bool by_sequence) {
    std::vector<Ubatch> ubatches;
    for (const BatchEntry &entry : entries) {
        bool begins = true;
        for (std::int32_t left = entry.n_tokens; left > 0;) {
            if (ubatches.empty() || ubatches.back().n_rows == n_ubatch || (by_sequence && begins)) {
                ubatches.emplace_back();
            }
            const std::int32_t n = std::min(left, n_ubatch - ubatches.back().n_rows);
            add_rows(ubatches.back(), entry.seq_id, n);
            left -= n;
            begins = false;
        }
    }
    return ubatches;
}

// As llama_batch_allocr::split_equal() with neither `sequential` nor a tail. There are at most n_ubatch sequences.
std::vector<Ubatch> split_equally(const std::vector<BatchEntry> &entries, std::int32_t n_ubatch) {
    std::vector<Ubatch> ubatches;
    std::vector<BatchEntry> left = entries;
    while (!left.empty()) {
        std::int32_t n = n_ubatch / static_cast<std::int32_t>(left.size());
        for (const BatchEntry &entry : left) {
            n = std::min(n, entry.n_tokens);
        }
        n = std::max(n, 1);
        ubatches.emplace_back();
        for (BatchEntry &entry : left) {
            add_rows(ubatches.back(), entry.seq_id, n);
            entry.n_tokens -= n;
        }
        const auto is_done = [](const BatchEntry &entry) { return entry.n_tokens == 0; };
        left.erase(std::remove_if(left.begin(), left.end(), is_done), left.end());
    }
    return ubatches;
}

std::vector<Ubatch> split_batch(const std::vector<BatchEntry> &entries, std::int32_t n_ubatch, Split split) {
    auto ubatches = split == Split::EQUAL ? split_equally(entries, n_ubatch)
                                          : split_in_order(entries, n_ubatch, split == Split::BY_SEQUENCE);
    std::size_t row = 0;
    for (Ubatch &ubatch : ubatches) {
        ubatch.first_row = row;
        row += static_cast<std::size_t>(ubatch.n_rows);
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

void BatchPlan::order_rows() {
    struct Next {
        std::size_t row;
        std::int64_t n_visible;
    };
    std::unordered_map<llama_seq_id, Next> next;
    std::size_t row = 0;
    for (const BatchEntry &entry : entries) {
        next[entry.seq_id] = {row, entry.n_cells + 1};
        row += static_cast<std::size_t>(entry.n_tokens);
    }
    for (const Ubatch &ubatch : ubatches) {
        for (std::size_t e = 0; e < ubatch.seq_ids.size(); ++e) {
            Next &of = next[ubatch.seq_ids[e]];
            for (std::int32_t i = 0; i < ubatch.n_tokens[e]; ++i) {
                ubatch_positions.push_back(positions[of.row++]);
                ubatch_visible.push_back(of.n_visible++);
            }
        }
    }
}

BatchPlan plan_batch(const std::vector<BatchRow> &rows, const llama_context *ctx, Split split, const Caches &cache,
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
            plan.entries.push_back({row.seq_id, 0, info.length_min, next_position, 0});
        }
        if (row.pos != BatchRow::NEXT && (row.pos < 0 || static_cast<std::uint64_t>(row.pos) != next_position)) {
            invalid_argument(name_of(i) + " has position " + std::to_string(row.pos) + ": sequence " +
                             std::to_string(row.seq_id) + " continues at " + std::to_string(next_position) +
                             " (rewind or clear it to go back)");
        }
        ++next_position;
        ++plan.entries.back().n_tokens;
    }
    plan.ubatches = split_batch(plan.entries, static_cast<std::int32_t>(api().llama_n_ubatch(ctx)), split);
    return plan;
}

}  // namespace llama_cpp
}  // namespace sinkcache
