// One sequence of tokens through a model, with sinkcache or with stock llama.cpp.
#ifndef LLAMA_STREAM_ENGINE_HPP
#define LLAMA_STREAM_ENGINE_HPP

#include "sinkcache.hpp"

#include <llama-cpp.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

/** An error in the command line or in a file. */
struct UserError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/** Options of both subcommands. */
struct Settings {
    std::string model;
    std::uint32_t sink = 4;
    std::uint32_t window = 2044;
    std::string kv_dtype = "f16";
    /** Room for pinned tokens, and for pinned runs and dropped ranges. */
    std::uint32_t max_pinned = 0, max_segments = 0;
    std::uint32_t threads = 1;
    /** Most tokens of one Engine::decode(). */
    std::uint32_t n_batch = 512;
    /** llama.cpp's repacking of weights for the processor's matrix instructions. */
    bool repack = true;
    /** Stock llama.cpp instead of sinkcache. */
    bool stock = false;
    /**
     * With `stock`, tokens that a context shift discards; 0 = half of those after the sinks, as in llama.cpp's
     * programs.
     */
    std::uint32_t discard = 0;
    /** With `stock`, flash attention. */
    bool flash = true;
};

/** A context of a model, with one sequence. */
class Engine {
public:
    virtual ~Engine() = default;
    virtual llama_context *context() const = 0;
    /** Appends at most n_batch tokens and computes the logits of all of them, or of the last one. */
    virtual void decode(const std::vector<llama_token> &tokens, bool all_logits) = 0;
    /** Removes the newest `n` tokens. @throws sinkcache::Error for more than can be taken back */
    virtual void forget(std::uint32_t n) = 0;
    /** Bytes of K and V. */
    virtual std::uint64_t cache_bytes() const = 0;
    /** The sequence as bytes, under a tag that load() must name, too. Only with sinkcache. @throws sinkcache::Error */
    virtual std::vector<std::uint8_t> save(const sinkcache::HostTag &tag) const;
    /** Replaces the sequence by a saved one. @throws sinkcache::Error */
    virtual void load(const std::vector<std::uint8_t> &saved, const sinkcache::HostTag &tag);
    /** Holds tokens of the sequence permanently, by their index. Only with sinkcache. @throws sinkcache::Error */
    virtual void pin(std::uint64_t first, std::uint32_t n);
    /** Drops what is held of them. Only with sinkcache. @throws sinkcache::Error */
    virtual void evict_range(std::uint64_t first, std::uint32_t n);
    /** "sink" or "stock". */
    virtual const char *mode() const = 0;

    const llama_model *model() const { return llama_get_model(context()); }
    const llama_vocab *vocab() const { return llama_model_get_vocab(model()); }
};

/** Loads a GGUF. @throws UserError */
llama_model_ptr load_model(const Settings &settings);
/** An engine for a model, which must outlive it. @throws UserError, sinkcache::Error */
std::unique_ptr<Engine> make_engine(llama_model *model, const Settings &settings);

/** Tokens of a text. `add_special` and `parse_special` are those of llama_tokenize. @throws UserError */
std::vector<llama_token> tokenize(const llama_vocab *vocab, const std::string &text, bool add_special,
                                  bool parse_special);

/** A llama_batch of sequence 0 that owns its arrays. */
class TokenBatch {
public:
    /** Valid until the next call. */
    llama_batch fill(const std::vector<llama_token> &tokens, bool all_logits);

private:
    std::vector<llama_token> tokens_;
    std::vector<std::int8_t> outputs_;
};

#endif
