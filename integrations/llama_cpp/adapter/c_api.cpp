#include "sinkcache_llama.h"

#include "sinkcache_llama.hpp"

#include "errors.hpp"
#include "llama_api.hpp"

#include <algorithm>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>

using sinkcache::Error;

struct skc_llama {
    sinkcache::LlamaContext context;
};

namespace {

thread_local std::string last_error;

skc_status failed(skc_status status, std::string text) noexcept {
    last_error = std::move(text);
    return status;
}

/** Runs `call`; what it throws becomes a status and the text of skc_llama_last_error(). */
template <class Call>
skc_status attempt(Call call) noexcept {
    try {
        call();
        return SKC_STATUS_OK;
    } catch (const Error &e) {
        // The name of the status is in the result.
        const std::string text = e.what(), name = std::string(skc_status_name(e.status())) + ": ";
        return failed(e.status(), text.rfind(name, 0) == 0 ? text.substr(name.size()) : text);
    } catch (const std::bad_alloc &) {
        return failed(SKC_STATUS_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception &e) {
        return failed(SKC_STATUS_INTERNAL, e.what());
    }
}

/** The same for a call on a stream and with pointers that must not be NULL. */
template <class Stream, class Call>
skc_status attempt_on(Stream *stream, std::initializer_list<const void *> pointers, Call call) noexcept {
    const bool null = !stream || std::find(pointers.begin(), pointers.end(), nullptr) != pointers.end();
    return null ? failed(SKC_STATUS_NULL_POINTER, "a pointer that must not be NULL is") : attempt(call);
}

sinkcache::HostTag tag_of(const uint8_t *host_tag) {
    sinkcache::HostTag tag{};
    if (host_tag) {
        std::copy(host_tag, host_tag + tag.size(), tag.begin());
    }
    return tag;
}

sinkcache::LlamaOptions read_options(const skc_llama_options *given) {
    skc_llama_options o = SKC_LLAMA_OPTIONS_INIT;
    if (given) {
        // The first version of the struct. A later library takes what a caller's struct has not from the defaults.
        if (given->struct_size != sizeof o) {
            sinkcache::llama_cpp::invalid_config("struct_size of skc_llama_options is " +
                                                 std::to_string(given->struct_size) + ": allowed is " +
                                                 std::to_string(sizeof o));
        }
        o = *given;
    }
    sinkcache::LlamaOptions options;
    options.n_sink = o.n_sink;
    options.window = o.window;
    options.k_dtype = o.k_dtype;
    options.v_dtype = o.v_dtype;
    options.n_seqs = o.n_seqs;
    options.max_rewind = o.max_rewind;
    options.max_pinned = o.max_pinned;
    options.max_segments = o.max_segments;
    options.gpu = o.gpu != 0;
    return options;
}

}  // namespace

extern "C" {

skc_status skc_llama_create(llama_model *model, const llama_context_params *params, const skc_llama_options *options,
                            skc_llama **stream) {
    return attempt_on(model, {stream}, [&] {
        const auto defaults = sinkcache::llama_cpp::api().llama_context_default_params;
        sinkcache::LlamaContext context(model, params ? *params : defaults(), read_options(options));
        *stream = new skc_llama{std::move(context)};
    });
}

void skc_llama_destroy(skc_llama *stream) { delete stream; }

llama_context *skc_llama_context(const skc_llama *stream) { return stream ? stream->context.get() : nullptr; }

skc_status skc_llama_decode(skc_llama *stream, const llama_batch *batch) {
    return attempt_on(stream, {batch}, [&] { stream->context.decode(*batch); });
}

skc_status skc_llama_rewind(skc_llama *stream, llama_seq_id seq_id, uint32_t n) {
    return attempt_on(stream, {}, [&] { stream->context.rewind(seq_id, n); });
}

skc_status skc_llama_clear(skc_llama *stream, llama_seq_id seq_id, uint64_t start_position) {
    return attempt_on(stream, {}, [&] { stream->context.clear(seq_id, start_position); });
}

skc_status skc_llama_fork(skc_llama *stream, llama_seq_id src, llama_seq_id dst) {
    return attempt_on(stream, {}, [&] { stream->context.fork(src, dst); });
}

skc_status skc_llama_pin(skc_llama *stream, llama_seq_id seq_id, uint64_t first, uint32_t n) {
    return attempt_on(stream, {}, [&] { stream->context.pin(seq_id, first, n); });
}

skc_status skc_llama_evict_range(skc_llama *stream, llama_seq_id seq_id, uint64_t first, uint32_t n) {
    return attempt_on(stream, {}, [&] { stream->context.evict_range(seq_id, first, n); });
}

skc_status skc_llama_length(const skc_llama *stream, llama_seq_id seq_id, uint64_t *length) {
    return attempt_on(stream, {length}, [&] { *length = stream->context.length(seq_id); });
}

skc_status skc_llama_cache_bytes(const skc_llama *stream, uint64_t *n_bytes) {
    return attempt_on(stream, {n_bytes}, [&] { *n_bytes = stream->context.cache_bytes(); });
}

skc_status skc_llama_saved_bytes(const skc_llama *stream, llama_seq_id seq_id, uint64_t *n_bytes) {
    return attempt_on(stream, {n_bytes}, [&] { *n_bytes = stream->context.saved_bytes(seq_id); });
}

skc_status skc_llama_save(const skc_llama *stream, llama_seq_id seq_id, const uint8_t *host_tag, void *data,
                          uint64_t n_bytes, uint64_t *n_written) {
    return attempt_on(stream, {data}, [&] {
        const std::size_t n =
            stream->context.save_to(seq_id, tag_of(host_tag), static_cast<std::uint8_t *>(data), n_bytes);
        if (n_written) {
            *n_written = n;
        }
    });
}

skc_status skc_llama_load(skc_llama *stream, llama_seq_id seq_id, const uint8_t *host_tag, const void *data,
                          uint64_t n_bytes) {
    return attempt_on(stream, {data}, [&] {
        stream->context.load(seq_id, {static_cast<const std::uint8_t *>(data), n_bytes}, tag_of(host_tag));
    });
}

const char *skc_llama_last_error(void) { return last_error.c_str(); }

}  // extern "C"
