// Batches, and decoding them.
#include "exports.hpp"

#include "errors.hpp"
#include "log.hpp"

#include <vector>

namespace sinkcache {
namespace interpose {
namespace {

std::int32_t refuse_encoding() {
    log(LogLevel::ERRORS, "encoding is refused: the context decodes over a stream");
    return -1;
}

/** Keeps a row that llama.cpp has added, at `index` or, where it reports an error of the row, at the end. */
std::int32_t keep_row(const llama_batch_ext *batch, llama_seq_id seq_id, std::int32_t index,
                      bool is_embedding = false) {
    constexpr std::int32_t ADDED_ALL_THE_SAME = -2;
    llama_cpp::BatchRow row;
    row.seq_id = seq_id;
    row.is_embedding = is_embedding;
    if (index >= 0) {
        registry().set_row(batch, static_cast<std::size_t>(index), row);
    } else if (index == ADDED_ALL_THE_SAME) {
        registry().append_row(batch, row);
    }
    return index;
}

}  // namespace
}  // namespace interpose
}  // namespace sinkcache

using namespace sinkcache;
using namespace sinkcache::interpose;

extern "C" {

std::int32_t skc_decode(llama_context *, Oversized<llama_batch>) SINKCACHE_EXPORTED_AS("llama_decode");
std::int32_t skc_encode(llama_context *, Oversized<llama_batch>) SINKCACHE_EXPORTED_AS("llama_encode");
std::int32_t skc_batch_ext_add_embd(llama_batch_ext *, llama_seq_id, Oversized<llama_embd>)
    SINKCACHE_EXPORTED_AS("llama_batch_ext_add_embd");

std::int32_t skc_decode(llama_context *ctx, Oversized<llama_batch> batch) {
    const auto s = served(ctx);
    if (!s || batch.known.n_tokens == 0) {
        return pass_on<std::int32_t>(real().llama_decode, batch, ctx);
    }
    std::vector<llama_cpp::BatchRow> rows;
    try {
        rows = llama_cpp::rows_of(batch.known);
    } catch (const Error &e) {
        log(LogLevel::ERRORS, std::string("decoding: ") + e.what());
        return -1;
    }
    return s->decode(rows, [&](const std::vector<llama_pos> &positions) {
        batch.known.pos = const_cast<llama_pos *>(positions.data());
        return real().llama_decode(ctx, batch.known);
    });
}

std::int32_t skc_encode(llama_context *ctx, Oversized<llama_batch> batch) {
    return served(ctx) ? refuse_encoding() : pass_on<std::int32_t>(real().llama_encode, batch, ctx);
}

std::int32_t llama_process(llama_context *ctx, llama_process_type type, llama_batch_ext *batch) {
    const auto s = served(ctx);
    const std::vector<llama_cpp::BatchRow> rows = s ? registry().rows(batch) : std::vector<llama_cpp::BatchRow>();
    if (s && type == LLAMA_PROCESS_TYPE_ENCODE) {
        return refuse_encoding();
    }
    // llama.cpp has its own answer to a batch without tokens.
    if (!s || rows.empty()) {
        return real().llama_process(ctx, type, batch);
    }
    return s->decode(rows, [&](const std::vector<llama_pos> &positions) {
        for (std::size_t i = 0; i < rows.size(); ++i) {
            if (rows[i].pos == llama_cpp::BatchRow::NEXT) {
                real().llama_batch_ext_set_pos(batch, static_cast<std::int32_t>(i), &positions[i]);
            }
        }
        return real().llama_process(ctx, type, batch);
    });
}

llama_batch_ext *llama_batch_ext_init(llama_context *ctx) {
    llama_batch_ext *batch = real().llama_batch_ext_init(ctx);
    registry().clear_rows(batch);
    return batch;
}

void llama_batch_ext_free(llama_batch_ext *batch) {
    registry().forget_rows(batch);
    real().llama_batch_ext_free(batch);
}

void llama_batch_ext_clear(llama_batch_ext *batch) {
    registry().clear_rows(batch);
    real().llama_batch_ext_clear(batch);
}

std::int32_t llama_batch_ext_add(llama_batch_ext *batch, llama_seq_id seq_id) {
    // Without a token: an embedding may be set later.
    return keep_row(batch, seq_id, real().llama_batch_ext_add(batch, seq_id), true);
}

std::int32_t llama_batch_ext_add_token(llama_batch_ext *batch, llama_seq_id seq_id, llama_token token) {
    return keep_row(batch, seq_id, real().llama_batch_ext_add_token(batch, seq_id, token));
}

std::int32_t skc_batch_ext_add_embd(llama_batch_ext *batch, llama_seq_id seq_id, Oversized<llama_embd> embd) {
    const auto index = pass_on<std::int32_t>(real().llama_batch_ext_add_embd, embd, batch, seq_id);
    return keep_row(batch, seq_id, index, true);
}

bool llama_batch_ext_add_seq(llama_batch_ext *batch, std::int32_t index, llama_seq_id seq_id) {
    const bool added = real().llama_batch_ext_add_seq(batch, index, seq_id);
    if (added) {
        registry().add_sequence(batch, static_cast<std::size_t>(index), seq_id);
    }
    return added;
}

bool llama_batch_ext_set_pos(llama_batch_ext *batch, std::int32_t index, const llama_pos *pos) {
    const bool set = real().llama_batch_ext_set_pos(batch, index, pos);
    if (set) {
        registry().set_position(batch, static_cast<std::size_t>(index), pos[0]);
    }
    return set;
}

}  // extern "C"
