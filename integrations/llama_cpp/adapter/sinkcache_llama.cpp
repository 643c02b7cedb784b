#include "sinkcache_llama.hpp"

#include "llama_api.hpp"
#include "stream.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace sinkcache {
namespace {

using namespace llama_cpp;

StreamSettings settings_of(const LlamaOptions &options) {
    StreamSettings settings;
    settings.n_sink = options.n_sink;
    settings.window = options.window;
    settings.k_dtype = options.k_dtype ? options.k_dtype : options.kv_dtype;
    settings.v_dtype = options.v_dtype ? options.v_dtype : options.kv_dtype;
    settings.n_seqs = options.n_seqs;
    settings.max_rewind = options.max_rewind;
    settings.max_pinned = options.max_pinned;
    settings.max_segments = options.max_segments;
    settings.use_gpu = options.gpu;
    return settings;
}

/** Tokens whose logits or embeddings llama.cpp computes: those marked in `logits`, which if NULL means the last one. */
std::uint32_t count_outputs(const llama_batch &batch, bool embeddings) {
    if (embeddings) {
        return static_cast<std::uint32_t>(batch.n_tokens);
    }
    if (!batch.logits) {
        return 1;
    }
    const auto n = std::count_if(batch.logits, batch.logits + batch.n_tokens, [](auto x) { return x != 0; });
    return static_cast<std::uint32_t>(n);
}

}  // namespace

struct LlamaContext::Impl {
    Stream stream;
    bool embeddings;
    std::uint64_t bytes;

    Impl(llama_model *model, const llama_context_params &params, const LlamaOptions &options)
        : stream(model, settings_of(options)), embeddings(params.embeddings) {
        stream.create_context(params);
        bytes = stream.cache_bytes();
        stream.create_cache();
    }
};

LlamaContext::LlamaContext(llama_model *model, llama_context_params params, const LlamaOptions &options) {
    if (!model) {
        invalid_config("the model is NULL");
    }
    if (params.ctx_other) {
        invalid_config("ctx_other is not supported: the two contexts would share a cache");
    }
    impl_ = std::make_unique<Impl>(model, params, options);
}
LlamaContext::~LlamaContext() = default;
LlamaContext::LlamaContext(LlamaContext &&) noexcept = default;
LlamaContext &LlamaContext::operator=(LlamaContext &&) noexcept = default;

llama_context *LlamaContext::get() const noexcept { return impl_->stream.context(); }
std::uint64_t LlamaContext::cache_bytes() const noexcept { return impl_->bytes; }

void LlamaContext::decode(const llama_batch &batch) {
    Stream &stream = impl_->stream;
    const std::vector<BatchRow> rows = rows_of(batch);
    const std::uint32_t n_outputs = count_outputs(batch, impl_->embeddings);
    if (n_outputs > stream.n_outputs_max() && rows.size() <= api().llama_n_batch(get())) {
        invalid_argument("logits of " + std::to_string(n_outputs) +
                         " tokens: allowed are n_outputs_max = " + std::to_string(stream.n_outputs_max()));
    }
    const std::int32_t result = stream.decode(rows, [&](const std::vector<llama_pos> &positions) {
        llama_batch positioned = batch;
        positioned.pos = const_cast<llama_pos *>(positions.data());
        return api().llama_decode(get(), positioned);
    });
    if (result != 0) {
        invalid_argument("llama_decode returned " + std::to_string(result) +
                         (result == 2 ? ": aborted by an abort callback" : ": llama.cpp's log has the reason"));
    }
}

void LlamaContext::rewind(llama_seq_id seq_id, std::uint32_t n) { impl_->stream.rewind(seq_id, n); }

void LlamaContext::pin(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n) {
    impl_->stream.pin(seq_id, first, n);
}

void LlamaContext::evict_range(llama_seq_id seq_id, std::uint64_t first, std::uint32_t n) {
    impl_->stream.evict_range(seq_id, first, n);
}

void LlamaContext::clear(llama_seq_id seq_id, std::uint64_t start_position) {
    impl_->stream.clear(seq_id, start_position);
}

void LlamaContext::fork(llama_seq_id src, llama_seq_id dst) { impl_->stream.fork(src, dst); }

std::vector<std::uint8_t> LlamaContext::save(llama_seq_id seq_id, const HostTag &tag) const {
    std::vector<std::uint8_t> saved(saved_bytes(seq_id));
    save_to(seq_id, tag, saved.data(), saved.size());
    return saved;
}

std::size_t LlamaContext::saved_bytes(llama_seq_id seq_id) const { return impl_->stream.snapshot_bytes(seq_id); }

std::size_t LlamaContext::save_to(llama_seq_id seq_id, const HostTag &tag, std::uint8_t *data,
                                  std::size_t n_bytes) const {
    return impl_->stream.save(seq_id, tag, data, n_bytes);
}

void LlamaContext::load(llama_seq_id seq_id, Span<std::uint8_t> saved, const HostTag &tag) {
    impl_->stream.load(seq_id, saved, tag);
}

std::uint64_t LlamaContext::length(llama_seq_id seq_id) const { return impl_->stream.info(seq_id).length_min; }

}  // namespace sinkcache
