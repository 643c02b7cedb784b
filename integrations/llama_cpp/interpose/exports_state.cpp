// States and files of states.
#include "exports.hpp"

#include "states.hpp"

using namespace sinkcache::interpose;

// Flags are ignored: a part of a state, and one that stays on a device, are whole states in host memory here.
extern "C" {

std::size_t llama_state_get_size(llama_context *ctx) {
    const auto s = served(ctx);
    return s ? all_state_bytes(*s) : real().llama_state_get_size(ctx);
}
std::size_t llama_get_state_size(llama_context *ctx) { return llama_state_get_size(ctx); }

std::size_t llama_state_get_data(llama_context *ctx, std::uint8_t *to, std::size_t n_bytes) {
    const auto s = served(ctx);
    return s ? save_all_states(*s, to, n_bytes) : real().llama_state_get_data(ctx, to, n_bytes);
}
std::size_t llama_copy_state_data(llama_context *ctx, std::uint8_t *to) {
    return llama_state_get_data(ctx, to, SIZE_MAX);
}

std::size_t llama_state_set_data(llama_context *ctx, const std::uint8_t *from, std::size_t n_bytes) {
    const auto s = served(ctx);
    return s ? load_all_states(*s, from, n_bytes) : real().llama_state_set_data(ctx, from, n_bytes);
}
std::size_t llama_set_state_data(llama_context *ctx, const std::uint8_t *from) {
    return llama_state_set_data(ctx, from, SIZE_MAX);
}

bool llama_state_load_file(llama_context *ctx, const char *path, llama_token *tokens, std::size_t capacity,
                           std::size_t *n_tokens) {
    const auto s = served(ctx);
    return s ? load_file(*s, path, {tokens, capacity}, n_tokens)
             : real().llama_state_load_file(ctx, path, tokens, capacity, n_tokens);
}
bool llama_load_session_file(llama_context *ctx, const char *path, llama_token *tokens, std::size_t capacity,
                             std::size_t *n_tokens) {
    return llama_state_load_file(ctx, path, tokens, capacity, n_tokens);
}

bool llama_state_save_file(llama_context *ctx, const char *path, const llama_token *tokens, std::size_t n_tokens) {
    const auto s = served(ctx);
    return s ? save_file(*s, path, tokens, n_tokens) : real().llama_state_save_file(ctx, path, tokens, n_tokens);
}
bool llama_save_session_file(llama_context *ctx, const char *path, const llama_token *tokens, std::size_t n_tokens) {
    return llama_state_save_file(ctx, path, tokens, n_tokens);
}

std::size_t llama_state_seq_get_size_ext(llama_context *ctx, llama_seq_id seq_id, llama_state_seq_flags flags) {
    const auto s = served(ctx);
    return s ? s->state_bytes(seq_id) : real().llama_state_seq_get_size_ext(ctx, seq_id, flags);
}
std::size_t llama_state_seq_get_size(llama_context *ctx, llama_seq_id seq_id) {
    return llama_state_seq_get_size_ext(ctx, seq_id, 0);
}

std::size_t llama_state_seq_get_data_ext(llama_context *ctx, std::uint8_t *to, std::size_t n_bytes, llama_seq_id seq_id,
                                         llama_state_seq_flags flags) {
    const auto s = served(ctx);
    return s ? s->save_state(seq_id, to, n_bytes)
             : real().llama_state_seq_get_data_ext(ctx, to, n_bytes, seq_id, flags);
}
std::size_t llama_state_seq_get_data(llama_context *ctx, std::uint8_t *to, std::size_t n_bytes, llama_seq_id seq_id) {
    return llama_state_seq_get_data_ext(ctx, to, n_bytes, seq_id, 0);
}

std::size_t llama_state_seq_set_data_ext(llama_context *ctx, const std::uint8_t *from, std::size_t n_bytes,
                                         llama_seq_id seq_id, llama_state_seq_flags flags) {
    const auto s = served(ctx);
    return s ? s->load_state(seq_id, from, n_bytes)
             : real().llama_state_seq_set_data_ext(ctx, from, n_bytes, seq_id, flags);
}
std::size_t llama_state_seq_set_data(llama_context *ctx, const std::uint8_t *from, std::size_t n_bytes,
                                     llama_seq_id seq_id) {
    return llama_state_seq_set_data_ext(ctx, from, n_bytes, seq_id, 0);
}

std::size_t llama_state_seq_save_file(llama_context *ctx, const char *path, llama_seq_id seq_id,
                                      const llama_token *tokens, std::size_t n_tokens) {
    const auto s = served(ctx);
    return s ? seq_save_file(*s, path, seq_id, tokens, n_tokens)
             : real().llama_state_seq_save_file(ctx, path, seq_id, tokens, n_tokens);
}

std::size_t llama_state_seq_load_file(llama_context *ctx, const char *path, llama_seq_id seq_id, llama_token *tokens,
                                      std::size_t capacity, std::size_t *n_tokens) {
    const auto s = served(ctx);
    return s ? seq_load_file(*s, path, seq_id, {tokens, capacity}, n_tokens)
             : real().llama_state_seq_load_file(ctx, path, seq_id, tokens, capacity, n_tokens);
}

}  // extern "C"
