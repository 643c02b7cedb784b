// Models and contexts.
#include "exports.hpp"

#include "errors.hpp"
#include "log.hpp"
#include "model_tag.hpp"
#include "settings.hpp"

#include <string>
#include <utility>
#include <vector>

namespace sinkcache {
namespace interpose {
namespace {

/** Why a context is none of this library's business; empty if it is to be served. */
std::string reason_to_leave(const llama_model *model, const llama_context_params &params) {
    if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return "it is of type " + std::to_string(params.ctx_type) + ", which uses another context's cache";
    }
    if (registry().model(model).without_data) {
        return "its model was loaded without data, to measure memory";
    }
    if (params.embeddings) {
        return "it computes embeddings";
    }
    const std::string arch = llama_cpp::metadata(model, "general.architecture");
    const std::string causal = llama_cpp::metadata(model, arch + ".attention.causal");
    if (params.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL || causal == "false") {
        return "its attention is not causal";
    }
    if (real().llama_model_has_encoder(model) || !real().llama_model_has_decoder(model)) {
        return "its model has an encoder";
    }
    return {};
}

llama_context *create_context(llama_model *model, Oversized<llama_context_params> params) {
    const auto own = [&] {
        return pass_on<llama_context *>(real().llama_init_from_model, params, model);
    };
    registry().note_context();
    Settings settings;
    try {
        settings = read_settings();
    } catch (const Error &e) {
        log(LogLevel::ERRORS, e.what());
        return nullptr;
    }
    set_log_level(settings.log);
    const auto unsupported = [&](const std::string &reason) -> llama_context * {
        const bool stock = settings.unsupported == Unsupported::STOCK;
        log(LogLevel::ERRORS, reason + (stock ? "; llama.cpp goes on with its own cache"
                                              : "; SINKCACHE_LLAMA_UNSUPPORTED=stock goes on with llama.cpp's own "
                                                "cache"));
        return stock ? own() : nullptr;
    };
    if (!host().problem.empty()) {
        return unsupported(host().library + " is not the llama.cpp that this library was built for: " +
                           host().problem);
    }
    if (!model) {
        return own();
    }
    // What a host was told is not what it needs memory for.
    params.known.n_ctx = registry().meant_length(params.known.n_ctx);
    const std::string reason = reason_to_leave(model, params.known);
    if (!reason.empty()) {
        // Hosts measure memory at every start: no news.
        log(registry().model(model).without_data ? LogLevel::DEBUG : LogLevel::INFO,
            "a context is left to llama.cpp: " + reason);
        return own();
    }
    const auto n_ctx_train = static_cast<std::uint32_t>(real().llama_model_n_ctx_train(model));
    const std::uint32_t n_ctx = params.known.n_ctx ? params.known.n_ctx : n_ctx_train;
    try {
        auto served = std::make_shared<Served>(model, params.known, n_ctx, settings, registry().model(model).tag);
        llama_context *ctx = served->context();
        registry().add(std::move(served));
        return ctx;
    } catch (const std::exception &e) {
        return unsupported(e.what());
    }
}

/** Notes a model that llama.cpp has loaded, if it has. */
llama_model *keep_model(llama_model *model, const std::vector<std::string> &files,
                        const Oversized<llama_model_params> &params) {
    if (model && host().problem.empty()) {
        registry().add_model(model, {std::make_shared<ModelTag>(model, files), params.known.no_alloc});
    }
    return model;
}

llama_model *load_model(const char *path, Oversized<llama_model_params> params) {
    auto *model = pass_on<llama_model *>(real().llama_model_load_from_file, params, path);
    return path ? keep_model(model, model_files(path), params) : model;
}

}  // namespace
}  // namespace interpose
}  // namespace sinkcache

using namespace sinkcache;
using namespace sinkcache::interpose;

extern "C" {

llama_context *skc_init_from_model(llama_model *, Oversized<llama_context_params>)
    SINKCACHE_EXPORTED_AS("llama_init_from_model");
llama_context *skc_new_context_with_model(llama_model *, Oversized<llama_context_params>)
    SINKCACHE_EXPORTED_AS("llama_new_context_with_model");
llama_model *skc_model_load_from_file(const char *, Oversized<llama_model_params>)
    SINKCACHE_EXPORTED_AS("llama_model_load_from_file");
llama_model *skc_load_model_from_file(const char *, Oversized<llama_model_params>)
    SINKCACHE_EXPORTED_AS("llama_load_model_from_file");
llama_model *skc_model_load_from_splits(const char **, std::size_t, Oversized<llama_model_params>)
    SINKCACHE_EXPORTED_AS("llama_model_load_from_splits");

llama_context *skc_init_from_model(llama_model *model, Oversized<llama_context_params> params) {
    return create_context(model, params);
}
llama_context *skc_new_context_with_model(llama_model *model, Oversized<llama_context_params> params) {
    return create_context(model, params);
}
llama_model *skc_model_load_from_file(const char *path, Oversized<llama_model_params> params) {
    return load_model(path, params);
}
llama_model *skc_load_model_from_file(const char *path, Oversized<llama_model_params> params) {
    return load_model(path, params);
}
llama_model *skc_model_load_from_splits(const char **paths, std::size_t n, Oversized<llama_model_params> params) {
    auto *model = pass_on<llama_model *>(real().llama_model_load_from_splits, params, paths, n);
    return model ? keep_model(model, {paths, paths + n}, params) : nullptr;
}

void llama_model_free(llama_model *model) {
    registry().remove_model(model);
    real().llama_model_free(model);
}
void llama_free_model(llama_model *model) { llama_model_free(model); }

void llama_free(llama_context *ctx) {
    // Destroyed here if it was served, with the context.
    if (!registry().remove(ctx)) {
        real().llama_free(ctx);
    }
}

std::int32_t llama_model_n_ctx_train(const llama_model *model) {
    const auto told = registry().length_told(model);
    return told ? static_cast<std::int32_t>(*told) : real().llama_model_n_ctx_train(model);
}
// Windows of the model are the cache's matter: a host has nothing to keep for them.
std::int32_t llama_model_n_swa(const llama_model *model) {
    return registry().length_told(model) ? 0 : real().llama_model_n_swa(model);
}
std::int32_t llama_n_ctx_train(const llama_model *model) { return llama_model_n_ctx_train(model); }

std::uint32_t llama_n_ctx(const llama_context *ctx) {
    const auto s = served(ctx);
    return s ? s->length() : real().llama_n_ctx(ctx);
}
std::uint32_t llama_n_ctx_seq(const llama_context *ctx) {
    const auto s = served(ctx);
    return s ? s->length() : real().llama_n_ctx_seq(ctx);
}
std::uint32_t llama_n_seq_max(const llama_context *ctx) {
    const auto s = served(ctx);
    return s ? s->n_seqs() : real().llama_n_seq_max(ctx);
}
std::uint32_t llama_n_rs_seq(const llama_context *ctx) {
    const auto s = served(ctx);
    return s ? s->n_rs_seq() : real().llama_n_rs_seq(ctx);
}

void llama_set_n_threads(llama_context *ctx, std::int32_t n_threads, std::int32_t n_threads_batch) {
    const auto s = served(ctx);
    s ? s->set_n_threads(n_threads, n_threads_batch) : real().llama_set_n_threads(ctx, n_threads, n_threads_batch);
}

void llama_set_abort_callback(llama_context *ctx, ggml_abort_callback callback, void *data) {
    const auto s = served(ctx);
    s ? s->set_abort_callback(callback, data) : real().llama_set_abort_callback(ctx, callback, data);
}

bool llama_set_sampler(llama_context *ctx, llama_seq_id seq_id, llama_sampler *sampler) {
    const auto s = served(ctx);
    // The sequence after the host's own has the sampler that sees the graphs.
    return (!s || (seq_id >= 0 && static_cast<std::uint32_t>(seq_id) < s->n_seqs())) &&
           real().llama_set_sampler(ctx, seq_id, sampler);
}

// The sampler that sees the graphs makes llama.cpp answer 0 for tokens that no backend has sampled. Without samplers it
// answers with the size of the vocabulary, and hosts read as many logits.
std::uint32_t llama_get_sampled_logits_count_ith(llama_context *ctx, std::int32_t i) {
    const std::uint32_t count = real().llama_get_sampled_logits_count_ith(ctx, i);
    if (count > 0 || !served(ctx) || real().llama_get_sampled_token_ith(ctx, i) != LLAMA_TOKEN_NULL) {
        return count;
    }
    const llama_vocab *vocab = real().llama_model_get_vocab(real().llama_get_model(ctx));
    return static_cast<std::uint32_t>(real().llama_vocab_n_tokens(vocab));
}

}  // extern "C"
