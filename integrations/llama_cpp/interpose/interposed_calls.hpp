// The names of the functions of llama.cpp and ggml that this library calls beside those of a stream.
#ifndef SINKCACHE_INTERPOSE_INTERPOSED_CALLS_HPP
#define SINKCACHE_INTERPOSE_INTERPOSED_CALLS_HPP

/** Hosts call most of them, and reach this library's own. */
#define SINKCACHE_INTERPOSED_CALLS(CALL)                                                                               \
    CALL(ggml_op_name)                                                                                                 \
    CALL(ggml_tensor_overhead)                                                                                         \
    CALL(ggml_type_name)                                                                                               \
    CALL(llama_batch_ext_add)                                                                                          \
    CALL(llama_batch_ext_add_embd)                                                                                     \
    CALL(llama_batch_ext_add_seq)                                                                                      \
    CALL(llama_batch_ext_add_token)                                                                                    \
    CALL(llama_batch_ext_clear)                                                                                        \
    CALL(llama_batch_ext_free)                                                                                         \
    CALL(llama_batch_ext_init)                                                                                         \
    CALL(llama_batch_ext_set_pos)                                                                                      \
    CALL(llama_batch_free)                                                                                             \
    CALL(llama_batch_init)                                                                                             \
    CALL(llama_encode)                                                                                                 \
    CALL(llama_get_model)                                                                                              \
    CALL(llama_get_sampled_logits_count_ith)                                                                           \
    CALL(llama_get_sampled_token_ith)                                                                                  \
    CALL(llama_memory_can_shift)                                                                                       \
    CALL(llama_memory_clear)                                                                                           \
    CALL(llama_memory_seq_add)                                                                                         \
    CALL(llama_memory_seq_div)                                                                                         \
    CALL(llama_memory_seq_keep)                                                                                        \
    CALL(llama_model_default_params)                                                                                   \
    CALL(llama_model_free)                                                                                             \
    CALL(llama_model_get_vocab)                                                                                        \
    CALL(llama_model_load_from_file)                                                                                   \
    CALL(llama_model_load_from_splits)                                                                                 \
    CALL(llama_model_meta_count)                                                                                       \
    CALL(llama_model_meta_key_by_index)                                                                                \
    CALL(llama_model_meta_val_str_by_index)                                                                            \
    CALL(llama_model_n_ctx_train)                                                                                      \
    CALL(llama_model_size)                                                                                             \
    CALL(llama_n_ctx_seq)                                                                                              \
    CALL(llama_n_rs_seq)                                                                                               \
    CALL(llama_n_seq_max)                                                                                              \
    CALL(llama_process)                                                                                                \
    CALL(llama_set_abort_callback)                                                                                     \
    CALL(llama_set_n_threads)                                                                                          \
    CALL(llama_set_sampler)                                                                                            \
    CALL(llama_state_get_data)                                                                                         \
    CALL(llama_state_get_size)                                                                                         \
    CALL(llama_state_load_file)                                                                                        \
    CALL(llama_state_save_file)                                                                                        \
    CALL(llama_state_seq_load_file)                                                                                    \
    CALL(llama_state_seq_save_file)                                                                                    \
    CALL(llama_state_set_data)                                                                                         \
    CALL(llama_version)                                                                                                \
    CALL(llama_vocab_n_tokens)

#endif  // SINKCACHE_INTERPOSE_INTERPOSED_CALLS_HPP
