// Contexts that libsinkcache_llama.so serves, beside stock ones in the same process.
#ifndef SINKCACHE_TESTS_SERVED_HPP
#define SINKCACHE_TESTS_SERVED_HPP

#include "support/stock.hpp"

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <vector>

/** An environment variable; its name without SINKCACHE_LLAMA_. */
struct Variable {
    std::string name, value;
};

/** Environment variables for the time of this object. */
class Environment {
public:
    Environment(std::initializer_list<Variable> variables);
    ~Environment();
    Environment(const Environment &) = delete;
    Environment &operator=(const Environment &) = delete;

private:
    std::vector<Variable> variables_;
};

/** What a call writes to stderr. */
template <class Call>
std::string log_of(Call call) {
    testing::internal::CaptureStderr();
    call();
    return testing::internal::GetCapturedStderr();
}

/** Parameters with which a context of K and V in f32 is served: by default 4 sinks and the last 60 tokens. */
llama_context_params served_params(std::uint32_t n_batch = 64, std::uint32_t n_ctx = 64, std::uint32_t n_seqs = 1);
/** A context as a host creates it. Throws std::runtime_error if there is none. */
llama_context_ptr serve(llama_model *model, const llama_context_params &params);

/** Decodes tokens in chunks; returns the logits of all. `from` < 0: without positions. */
Rows decode(llama_context *ctx, const Tokens &tokens, std::size_t chunk, llama_seq_id seq_id = 0, llama_pos from = -1);
/** The same by llama_process and llama_batch_ext, with positions. */
Rows process(llama_context *ctx, const Tokens &tokens, std::size_t chunk, llama_seq_id seq_id, llama_pos from);

/** A model, tokens, and what a served context makes of them, in chunks of 20. */
class ServedTest : public testing::Test {
protected:
    ServedTest();

    llama_model_ptr model;
    Tokens tokens;
    Rows want;

    /** Position of the next token. */
    static llama_pos next(llama_context *ctx, llama_seq_id seq_id = 0);
    /** The sequence has `from` tokens, and the rest gives the same logits as without interruption. */
    void expect_continues(llama_context *ctx, std::size_t from, llama_seq_id seq_id = 0);
};

#endif
