#include "sequences.hpp"

#include <algorithm>
#include <random>
#include <string>

namespace sinkcache {
namespace llama_cpp {

Sequences::Sequences(llama_context *ctx, std::uint32_t n_seqs, llama_pos last)
    : memory_(llama_get_memory(ctx)),
      last_(last),
      next_(n_seqs, static_cast<llama_pos>(std::random_device()() % static_cast<std::uint32_t>(last / 2))),
      newest_(n_seqs, -1),
      broken_(n_seqs, false) {}

std::size_t Sequences::known(llama_seq_id seq_id) const {
    if (seq_id < 0 || seq_id >= count()) {
        throw Error(SKC_STATUS_OUT_OF_RANGE,
                    "sequence " + std::to_string(seq_id) + ": there are " + std::to_string(count()) + ", from 0 on");
    }
    return static_cast<std::size_t>(seq_id);
}

std::size_t Sequences::usable(llama_seq_id seq_id) const {
    const std::size_t s = known(seq_id);
    if (broken_[s]) {
        throw Error(SKC_STATUS_INVALID_ARGUMENT,
                    "sequence " + std::to_string(seq_id) + " was left half done by an error: clear() it first");
    }
    return s;
}

void Sequences::check_untouched() const {
    for (std::size_t s = 0; s < newest_.size(); ++s) {
        const llama_pos found = llama_memory_seq_pos_max(memory_, static_cast<llama_seq_id>(s));
        if (found != newest_[s]) {
            throw Error(SKC_STATUS_INVALID_ARGUMENT,
                        "llama.cpp's own cache was changed past sinkcache::LlamaContext (llama_memory_ edit or llama_state_ "
                        "load): sequence " +
                            std::to_string(s) + " ends at position " + std::to_string(found) + ", not " +
                            std::to_string(newest_[s]) + "; clear() makes it usable again");
        }
    }
}

void Sequences::place(Job &job) {
    for (const Run &run : job.runs) {
        make_room(run.seq_id, run.n_tokens);
        for (std::int32_t i = 0; i < run.n_tokens; ++i) {
            job.positions.push_back(next_[static_cast<std::size_t>(run.seq_id)] + i);
        }
    }
}

void Sequences::make_room(llama_seq_id seq_id, std::int32_t n_tokens) {
    auto &next = next_[static_cast<std::size_t>(seq_id)];
    if (next > last_ - n_tokens) {
        forget(seq_id);
        next = 0;
    } else if (next > 1) {
        llama_memory_seq_rm(memory_, seq_id, 0, next - 1);
        note(seq_id);
    }
}

llama_pos Sequences::held(llama_seq_id seq_id) const {
    return std::max(0, llama_memory_seq_pos_max(memory_, seq_id) + 1 - next_[static_cast<std::size_t>(seq_id)]);
}

void Sequences::advance(llama_seq_id seq_id, std::int64_t n) {
    auto &next = next_[static_cast<std::size_t>(seq_id)];
    next += static_cast<llama_pos>(n);
    llama_memory_seq_rm(memory_, seq_id, next, -1);
    note(seq_id);
}

void Sequences::forget(llama_seq_id seq_id) {
    llama_memory_seq_rm(memory_, seq_id, -1, -1);
    note(seq_id);
}

void Sequences::clear(llama_seq_id seq_id) {
    forget(seq_id);
    broken_[static_cast<std::size_t>(seq_id)] = false;
}

void Sequences::note(llama_seq_id seq_id) {
    newest_[static_cast<std::size_t>(seq_id)] = llama_memory_seq_pos_max(memory_, seq_id);
}

}  // namespace llama_cpp
}  // namespace sinkcache
