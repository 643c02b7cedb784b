// Edits of sequences.
#include "exports.hpp"

using namespace sinkcache::interpose;

extern "C" {

void llama_memory_clear(llama_memory_t memory, bool data) {
    if (const auto s = served(memory)) {
        s->clear_all();
    } else {
        real().llama_memory_clear(memory, data);
    }
}

bool llama_memory_seq_rm(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const auto s = served(memory);
    return s ? s->seq_rm(seq_id, p0, p1) : real().llama_memory_seq_rm(memory, seq_id, p0, p1);
}

void llama_memory_seq_cp(llama_memory_t memory, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    const auto s = served(memory);
    s ? s->seq_cp(src, dst, p0, p1) : real().llama_memory_seq_cp(memory, src, dst, p0, p1);
}

void llama_memory_seq_keep(llama_memory_t memory, llama_seq_id seq_id) {
    const auto s = served(memory);
    s ? s->seq_keep(seq_id) : real().llama_memory_seq_keep(memory, seq_id);
}

void llama_memory_seq_add(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta) {
    const auto s = served(memory);
    if (!s) {
        real().llama_memory_seq_add(memory, seq_id, p0, p1, delta);
    } else if (delta != 0) {
        s->seq_move("llama_memory_seq_add", seq_id, p0, p1);
    }
}

void llama_memory_seq_div(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int divisor) {
    const auto s = served(memory);
    if (!s) {
        real().llama_memory_seq_div(memory, seq_id, p0, p1, divisor);
    } else if (divisor != 1) {
        s->seq_move("llama_memory_seq_div", seq_id, p0, p1);
    }
}

llama_pos llama_memory_seq_pos_min(llama_memory_t memory, llama_seq_id seq_id) {
    const auto s = served(memory);
    return s ? s->pos_min(seq_id) : real().llama_memory_seq_pos_min(memory, seq_id);
}

llama_pos llama_memory_seq_pos_max(llama_memory_t memory, llama_seq_id seq_id) {
    const auto s = served(memory);
    return s ? s->pos_max(seq_id) : real().llama_memory_seq_pos_max(memory, seq_id);
}

// A host that shifts its context would do so at a length that it never reaches.
bool llama_memory_can_shift(llama_memory_t memory) {
    return !served(memory) && real().llama_memory_can_shift(memory);
}

}  // extern "C"
