// The names of the functions of llama.cpp and ggml that a stream calls.
#ifndef SINKCACHE_LLAMA_STREAM_CALLS_HPP
#define SINKCACHE_LLAMA_STREAM_CALLS_HPP

/** The list that the table LlamaApi, and whatever fills it, is made from. */
#define SINKCACHE_STREAM_CALLS(CALL)                                                                                   \
    CALL(ggml_backend_buffer_get_type)                                                                                 \
    CALL(ggml_backend_buft_is_host)                                                                                    \
    CALL(ggml_backend_dev_backend_reg)                                                                                 \
    CALL(ggml_backend_dev_buffer_type)                                                                                 \
    CALL(ggml_backend_dev_count)                                                                                       \
    CALL(ggml_backend_dev_get)                                                                                         \
    CALL(ggml_backend_dev_get_props)                                                                                   \
    CALL(ggml_backend_dev_name)                                                                                        \
    CALL(ggml_backend_dev_type)                                                                                        \
    CALL(ggml_backend_reg_name)                                                                                        \
    CALL(ggml_backend_register)                                                                                        \
    CALL(ggml_backend_tensor_get)                                                                                      \
    CALL(ggml_backend_tensor_set)                                                                                      \
    CALL(ggml_custom_4d)                                                                                               \
    CALL(ggml_graph_n_nodes)                                                                                           \
    CALL(ggml_graph_node)                                                                                              \
    CALL(ggml_is_contiguous)                                                                                           \
    CALL(ggml_nelements)                                                                                               \
    CALL(ggml_op_desc)                                                                                                 \
    CALL(ggml_rope_yarn_corr_dims)                                                                                     \
    CALL(ggml_set_output)                                                                                              \
    CALL(llama_context_default_params)                                                                                 \
    CALL(llama_decode)                                                                                                 \
    CALL(llama_free)                                                                                                   \
    CALL(llama_get_causal_attn)                                                                                        \
    CALL(llama_get_memory)                                                                                             \
    CALL(llama_init_from_model)                                                                                        \
    CALL(llama_max_parallel_sequences)                                                                                 \
    CALL(llama_memory_seq_cp)                                                                                          \
    CALL(llama_memory_seq_pos_max)                                                                                     \
    CALL(llama_memory_seq_pos_min)                                                                                     \
    CALL(llama_memory_seq_rm)                                                                                          \
    CALL(llama_model_has_decoder)                                                                                      \
    CALL(llama_model_has_encoder)                                                                                      \
    CALL(llama_model_is_diffusion)                                                                                     \
    CALL(llama_model_is_hybrid)                                                                                        \
    CALL(llama_model_is_recurrent)                                                                                     \
    CALL(llama_model_meta_val_str)                                                                                     \
    CALL(llama_model_n_layer)                                                                                          \
    CALL(llama_model_n_swa)                                                                                            \
    CALL(llama_model_rope_type)                                                                                        \
    CALL(llama_n_batch)                                                                                                \
    CALL(llama_n_ctx)                                                                                                  \
    CALL(llama_n_threads)                                                                                              \
    CALL(llama_n_threads_batch)                                                                                        \
    CALL(llama_n_ubatch)                                                                                               \
    CALL(llama_perf_context_reset)                                                                                     \
    CALL(llama_sampler_chain_add)                                                                                      \
    CALL(llama_sampler_chain_default_params)                                                                           \
    CALL(llama_sampler_chain_init)                                                                                     \
    CALL(llama_sampler_free)                                                                                           \
    CALL(llama_sampler_init)                                                                                           \
    CALL(llama_state_seq_get_data_ext)                                                                                 \
    CALL(llama_state_seq_get_size_ext)                                                                                 \
    CALL(llama_state_seq_set_data_ext)                                                                                 \
    CALL(llama_synchronize)

#endif  // SINKCACHE_LLAMA_STREAM_CALLS_HPP
