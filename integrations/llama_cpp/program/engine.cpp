#include "engine.hpp"

#include "llama_log.hpp"
#include "model_checks.hpp"
#include "sinkcache_llama.hpp"
#include "storage_types.hpp"

#include <algorithm>
#include <limits>
#include <map>

namespace {

/** An error text with llama.cpp's reason. */
std::string with_reason(const std::string &what) {
    const std::string reason = first_kept_error();
    return reason.empty() ? what : what + ": " + reason;
}

/** llama.cpp ends the process, or crashes, at some of what a damaged file may hold. */
void check_file(const std::string &path) {
    const programs::GgufFile file(path);
    programs::check_model(file);
}

llama_context_params context_params(const Settings &s) {
    llama_context_params p = llama_context_default_params();
    p.n_batch = s.n_batch;
    p.n_ubatch = std::min<std::uint32_t>(s.n_batch, 512);
    p.n_threads = static_cast<std::int32_t>(s.threads);
    p.n_threads_batch = p.n_threads;
    p.no_perf = true;
    return p;
}

class SinkEngine : public Engine {
public:
    SinkEngine(llama_model *model, const Settings &s) : context_(model, context_params(s), options(s)) {}

    llama_context *context() const override { return context_.get(); }
    void decode(const std::vector<llama_token> &tokens, bool all_logits) override {
        context_.decode(batch_.fill(tokens, all_logits));
    }
    void forget(std::uint32_t n) override { context_.rewind(0, n); }
    std::uint64_t cache_bytes() const override { return context_.cache_bytes(); }
    std::vector<std::uint8_t> save(const sinkcache::HostTag &tag) const override { return context_.save(0, tag); }
    void load(const std::vector<std::uint8_t> &saved, const sinkcache::HostTag &tag) override {
        context_.load(0, saved, tag);
    }
    void pin(std::uint64_t first, std::uint32_t n) override { context_.pin(0, first, n); }
    void evict_range(std::uint64_t first, std::uint32_t n) override { context_.evict_range(0, first, n); }
    const char *mode() const override { return "sink"; }

private:
    static sinkcache::LlamaOptions options(const Settings &s) {
        const auto types = programs::storage_types(s.kv_dtype);
        if (!types) {
            throw UserError("--kv-dtype " + s.kv_dtype + ": with sinkcache " + programs::STORAGE_TYPES_ALLOWED);
        }
        sinkcache::LlamaOptions o;
        o.n_sink = s.sink;
        o.window = s.window;
        o.max_pinned = s.max_pinned;
        o.max_segments = s.max_segments;
        o.k_dtype = types->k;
        o.v_dtype = types->v;
        return o;
    }

    sinkcache::LlamaContext context_;
    TokenBatch batch_;
};

/** llama.cpp's own cache of sink + window tokens, with context shift when it is full. */
class StockEngine : public Engine {
public:
    StockEngine(llama_model *model, const Settings &s)
        : sink_(s.sink), capacity_(s.sink + s.window), discard_(s.discard) {
        static const std::map<std::string, ggml_type> types = {
            {"f32", GGML_TYPE_F32},   {"f16", GGML_TYPE_F16},   {"bf16", GGML_TYPE_BF16}, {"q8_0", GGML_TYPE_Q8_0},
            {"q5_1", GGML_TYPE_Q5_1}, {"q5_0", GGML_TYPE_Q5_0}, {"q4_1", GGML_TYPE_Q4_1}, {"q4_0", GGML_TYPE_Q4_0}};
        const auto type = types.find(s.kv_dtype);
        if (type == types.end()) {
            throw UserError("--kv-dtype " + s.kv_dtype +
                            ": with --stock f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0");
        }
        llama_context_params p = context_params(s);
        p.n_ctx = capacity_;
        p.flash_attn_type = s.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        p.type_k = type->second;
        p.type_v = type->second;
        context_.reset(llama_init_from_model(model, p));
        if (!context_) {
            throw UserError(with_reason("llama.cpp cannot create a context for this model"));
        }
        if (!llama_memory_can_shift(llama_get_memory(context_.get()))) {
            throw UserError("--stock: llama.cpp cannot shift the context of this model");
        }
        bytes_ = bytes(model, type->second);
    }

    llama_context *context() const override { return context_.get(); }
    void decode(const std::vector<llama_token> &tokens, bool all_logits) override {
        make_room(static_cast<std::uint32_t>(tokens.size()));
        const std::int32_t status = llama_decode(context_.get(), batch_.fill(tokens, all_logits));
        if (status != 0) {
            throw UserError(with_reason("llama_decode returned " + std::to_string(status)));
        }
        n_past_ += static_cast<std::uint32_t>(tokens.size());
    }
    void forget(std::uint32_t n) override {
        n_past_ -= std::min(n, n_past_);
        llama_memory_seq_rm(llama_get_memory(context_.get()), 0, static_cast<llama_pos>(n_past_), -1);
    }
    std::uint64_t cache_bytes() const override { return bytes_; }
    const char *mode() const override { return "stock"; }

private:
    /** Shifts the context so that `n` more tokens fit. */
    void make_room(std::uint32_t n) {
        if (n_past_ + n <= capacity_) {
            return;
        }
        const std::uint32_t n_left = n_past_ > sink_ ? n_past_ - sink_ : 0;
        const std::uint32_t n_shift = std::max(discard_ ? discard_ : n_left / 2, n_past_ + n - capacity_);
        if (n_shift > n_left) {
            throw UserError("a batch of " + std::to_string(n) + " tokens does not fit into a window of " +
                            std::to_string(capacity_ - sink_));
        }
        llama_memory_t memory = llama_get_memory(context_.get());
        const auto from = static_cast<llama_pos>(sink_), n_discard = static_cast<llama_pos>(n_shift);
        llama_memory_seq_rm(memory, 0, from, from + n_discard);
        llama_memory_seq_add(memory, 0, from + n_discard, static_cast<llama_pos>(n_past_), -n_discard);
        n_past_ -= n_shift;
    }

    /** Bytes of K and V of all layers. */
    std::uint64_t bytes(const llama_model *model, ggml_type type) const {
        const auto number = [&](const std::string &key, std::int64_t fallback) {
            char arch[64], text[64];
            llama_model_meta_val_str(model, "general.architecture", arch, sizeof arch);
            const auto got = llama_model_meta_val_str(model, (arch + key).c_str(), text, sizeof text);
            return got < 0 ? fallback : std::stoll(text);
        };
        const std::int64_t dim = llama_model_n_embd(model) / std::max(1, llama_model_n_head(model));
        const std::int64_t heads = llama_model_n_head_kv(model);
        const std::uint64_t row = ggml_row_size(type, heads * number(".attention.key_length", dim)) +
                                  ggml_row_size(type, heads * number(".attention.value_length", dim));
        return row * llama_n_ctx(context_.get()) * static_cast<std::uint64_t>(llama_model_n_layer(model));
    }

    std::uint32_t sink_;
    std::uint32_t capacity_;
    std::uint32_t discard_;
    std::uint32_t n_past_ = 0;
    std::uint64_t bytes_ = 0;
    llama_context_ptr context_;
    TokenBatch batch_;
};

}  // namespace

std::vector<std::uint8_t> Engine::save(const sinkcache::HostTag &) const {
    throw UserError("--save needs sinkcache: not --stock");
}

void Engine::load(const std::vector<std::uint8_t> &, const sinkcache::HostTag &) {
    throw UserError("--load needs sinkcache: not --stock");
}

void Engine::pin(std::uint64_t, std::uint32_t) { throw UserError("--pin-system needs sinkcache: not --stock"); }

void Engine::evict_range(std::uint64_t, std::uint32_t) {
    throw UserError("--drop-thoughts needs sinkcache: not --stock");
}

llama_model_ptr load_model(const Settings &settings) {
    check_file(settings.model);
    llama_model_params p = llama_model_default_params();
    p.use_extra_bufts = settings.repack;
    llama_model_ptr model(llama_model_load_from_file(settings.model.c_str(), p));
    if (!model) {
        throw UserError(with_reason("model '" + settings.model + "' cannot be loaded by llama.cpp"));
    }
    return model;
}

std::unique_ptr<Engine> make_engine(llama_model *model, const Settings &settings) {
    if (settings.window == 0 || settings.window > (1U << 30) || settings.sink > (1U << 30)) {
        throw UserError("--window 1 to 2^30, --sink 0 to 2^30");
    }
    if (settings.stock && settings.n_batch > settings.window) {
        throw UserError("--stock: " + std::to_string(settings.n_batch) +
                        " tokens at a time do not fit into a window of " + std::to_string(settings.window));
    }
    if (settings.stock) {
        return std::make_unique<StockEngine>(model, settings);
    }
    return std::make_unique<SinkEngine>(model, settings);
}

std::vector<llama_token> tokenize(const llama_vocab *vocab, const std::string &text, bool add_special,
                                  bool parse_special) {
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        throw UserError("the model has no tokenizer");
    }
    if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
        throw UserError("a text of " + std::to_string(text.size()) + " bytes: llama.cpp tokenizes at most 2 GiB");
    }
    const auto length = static_cast<std::int32_t>(text.size());
    // At most one token per byte, and the tokens of the beginning and the end.
    std::vector<llama_token> tokens(text.size() + 8);
    std::int32_t n = llama_tokenize(vocab, text.data(), length, tokens.data(), static_cast<std::int32_t>(tokens.size()),
                                    add_special, parse_special);
    if (n < 0 && n != std::numeric_limits<std::int32_t>::min()) {
        tokens.resize(static_cast<std::size_t>(-n));
        n = llama_tokenize(vocab, text.data(), length, tokens.data(), -n, add_special, parse_special);
    }
    if (n < 0) {
        throw UserError("llama.cpp cannot tokenize the text");
    }
    tokens.resize(static_cast<std::size_t>(n));
    tokens.shrink_to_fit();
    return tokens;
}

llama_batch TokenBatch::fill(const std::vector<llama_token> &tokens, bool all_logits) {
    tokens_ = tokens;
    outputs_.assign(tokens.size(), all_logits);
    outputs_.back() = 1;
    llama_batch batch{};
    batch.n_tokens = static_cast<std::int32_t>(tokens_.size());
    batch.token = tokens_.data();
    batch.logits = outputs_.data();
    return batch;
}
