#include "sequences.hpp"

#include "errors.hpp"
#include "llama_api.hpp"

#include <algorithm>
#include <limits>
#include <random>
#include <string>

namespace sinkcache {
namespace llama_cpp {

Sequences::Sequences(llama_context *ctx, std::uint32_t n_seqs, Numbering numbering, llama_pos max_pos,
                     bool is_hybrid)
    : memory_(api().llama_get_memory(ctx)),
      numbering_(numbering),
      max_pos_(max_pos),
      is_hybrid_(is_hybrid),
      next_(n_seqs),
      newest_(n_seqs, -1),
      oldest_(n_seqs, -1),
      broken_(n_seqs, false) {
    for (llama_pos &next : next_) {
        next = first_position();
    }
}

llama_pos Sequences::first_position() const {
    return static_cast<llama_pos>(std::random_device()() % static_cast<std::uint32_t>(max_pos_ / 2));
}

std::size_t Sequences::existing(llama_seq_id seq_id) const {
    if (seq_id < 0 || seq_id >= count()) {
        throw Error(SKC_STATUS_OUT_OF_RANGE, "sequence " + std::to_string(seq_id) + " does not exist: there are " +
                                                 std::to_string(count()) + ", numbered from 0");
    }
    return static_cast<std::size_t>(seq_id);
}

std::size_t Sequences::usable(llama_seq_id seq_id) const {
    const std::size_t s = existing(seq_id);
    if (broken_[s]) {
        invalid_argument("sequence " + std::to_string(seq_id) +
                         " is unusable since an earlier error: clear() it first");
    }
    return s;
}

bool Sequences::is_unmodified(llama_seq_id seq_id) const {
    const auto s = static_cast<std::size_t>(seq_id);
    // A state of recurrent layers alone shows in one of both.
    return numbering_ == Numbering::OF_THE_HOST ||
           (api().llama_memory_seq_pos_max(memory_, seq_id) == newest_[s] &&
            (!is_hybrid_ || oldest(seq_id) == oldest_[s]));
}

void Sequences::check_unmodified() const {
    for (std::size_t s = 0; s < newest_.size(); ++s) {
        const auto seq_id = static_cast<llama_seq_id>(s);
        if (!is_unmodified(seq_id)) {
            invalid_argument(
                "llama.cpp's own cache was modified outside sinkcache::LlamaContext (llama_memory_ edit or "
                "llama_state_ load): "
                "sequence " +
                std::to_string(s) + " ends at position " +
                std::to_string(api().llama_memory_seq_pos_max(memory_, seq_id)) + ", not " +
                std::to_string(newest_[s]) + "; clear() makes it usable again");
        }
    }
}

void Sequences::assign_positions(BatchPlan &plan) {
    if (numbering_ == Numbering::OF_THE_HOST) {
        follow_host(plan);
    } else if (is_hybrid_) {
        check_end(plan);
    }
    for (BatchEntry &entry : plan.entries) {
        restart_positions(entry.seq_id, entry.n_tokens);
        // In a hybrid this is the smaller of two: -1 also if recurrent layers alone have a state.
        entry.n_cells = api().llama_memory_seq_pos_max(memory_, entry.seq_id) >= 0 ? 1 : 0;
        for (std::int32_t i = 0; i < entry.n_tokens; ++i) {
            plan.positions.push_back(next_[static_cast<std::size_t>(entry.seq_id)] + i);
        }
    }
    plan.order_rows();
}

void Sequences::check_end(const BatchPlan &plan) const {
    for (const BatchEntry &entry : plan.entries) {
        if (next_[static_cast<std::size_t>(entry.seq_id)] > max_pos_ - entry.n_tokens) {
            throw Error(SKC_STATUS_OUT_OF_RANGE,
                        "sequence " + std::to_string(entry.seq_id) + " would reach llama.cpp's position " +
                            std::to_string(max_pos_) + ", and a state of recurrent layers cannot go back: clear() it");
        }
    }
}

void Sequences::follow_host(const BatchPlan &plan) {
    constexpr std::uint64_t LAST = std::numeric_limits<llama_pos>::max();
    for (const BatchEntry &entry : plan.entries) {
        const std::uint64_t last = entry.position + static_cast<std::uint64_t>(entry.n_tokens) - 1;
        if (last > LAST - 1) {
            throw Error(SKC_STATUS_OUT_OF_RANGE, "sequence " + std::to_string(entry.seq_id) + " would reach position " +
                                                     std::to_string(last) + ": llama.cpp has positions below " +
                                                     std::to_string(LAST));
        }
    }
    for (const BatchEntry &entry : plan.entries) {
        next_[static_cast<std::size_t>(entry.seq_id)] = static_cast<llama_pos>(entry.position);
    }
}

void Sequences::restart_positions(llama_seq_id seq_id, std::int32_t n_tokens) {
    auto &next = next_[static_cast<std::size_t>(seq_id)];
    if (numbering_ == Numbering::OF_THE_STREAM && !is_hybrid_ && next > max_pos_ - n_tokens) {
        drop(seq_id);
        next = 0;
    }
}

llama_pos Sequences::uncommitted(llama_seq_id seq_id) const {
    return std::max(0, api().llama_memory_seq_pos_max(memory_, seq_id) + 1 - next_[static_cast<std::size_t>(seq_id)]);
}

void Sequences::commit(llama_seq_id seq_id, std::int64_t n) {
    auto &next = next_[static_cast<std::size_t>(seq_id)];
    next += static_cast<llama_pos>(n);
    api().llama_memory_seq_rm(memory_, seq_id, next, -1);
    // At once: the next batch may be another sequence's, and need the room.
    if (next > 1) {
        api().llama_memory_seq_rm(memory_, seq_id, 0, next - 1);
    }
    record_newest(seq_id);
}

void Sequences::drop(llama_seq_id seq_id) {
    api().llama_memory_seq_rm(memory_, seq_id, -1, -1);
    record_newest(seq_id);
}

void Sequences::copy(llama_seq_id src, llama_seq_id dst) {
    clear(dst);
    api().llama_memory_seq_cp(memory_, src, dst, -1, -1);
    next_[static_cast<std::size_t>(dst)] = next_[static_cast<std::size_t>(src)];
    record_newest(dst);
}

void Sequences::follow_state(llama_seq_id seq_id) {
    // Of recurrent layers alone: the smallest position is the greater of both parts'.
    const llama_pos last = oldest(seq_id);
    if (last >= 0) {
        next_[static_cast<std::size_t>(seq_id)] = last + 1;
    }
    record_newest(seq_id);
}

void Sequences::clear(llama_seq_id seq_id) {
    drop(seq_id);
    if (numbering_ == Numbering::OF_THE_STREAM && is_hybrid_) {
        // Any position may follow: no later state ends where this one did.
        next_[static_cast<std::size_t>(seq_id)] = first_position();
    }
    broken_[static_cast<std::size_t>(seq_id)] = false;
}

llama_pos Sequences::oldest(llama_seq_id seq_id) const {
    return api().llama_memory_seq_pos_min(memory_, seq_id);
}

void Sequences::record_newest(llama_seq_id seq_id) {
    newest_[static_cast<std::size_t>(seq_id)] = api().llama_memory_seq_pos_max(memory_, seq_id);
    oldest_[static_cast<std::size_t>(seq_id)] = is_hybrid_ ? oldest(seq_id) : -1;
}

}  // namespace llama_cpp
}  // namespace sinkcache
