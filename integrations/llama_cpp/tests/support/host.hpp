// Models, batches and logits: through the adapter, and with stock llama.cpp for comparison.
#ifndef SINKCACHE_TESTS_HOST_HPP
#define SINKCACHE_TESTS_HOST_HPP

#include "stock.hpp"

#include "sinkcache_llama.hpp"

#include <functional>
#include <string>

sinkcache::LlamaOptions options(std::uint32_t n_sink, std::uint32_t window, std::uint32_t kv_dtype = SKC_DTYPE_F32);
/** Decodes `tokens` in chunks through the adapter; returns the logits of all. */
Rows run(sinkcache::LlamaContext &ctx, const Tokens &tokens, std::size_t chunk, llama_seq_id seq_id = 0);
/** The text of the sinkcache::Error that a call throws; "no error" if it throws none. */
std::string error_text(const std::function<void()> &call);

#endif
