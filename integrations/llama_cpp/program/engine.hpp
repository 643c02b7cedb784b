// One stream of tokens through a model: with sinkcache, or as stock llama.cpp does it.
#ifndef LLAMA_STREAM_ENGINE_HPP
#define LLAMA_STREAM_ENGINE_HPP

#include <llama.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

/** What is wrong with a command line or a file. */
struct UserError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/** What both subcommands are asked. */
struct Setting {
    std::string model;
    std::uint32_t sink = 4;
    std::uint32_t window = 2044;
    std::string kv_dtype = "f16";
    std::uint32_t threads = 1;
    /** Most tokens of a decode. */
    std::uint32_t n_batch = 512;
    /** Weights laid out anew for the processor's matrix units, as llama.cpp does by itself. */
    bool repack = true;
    bool stock = false;
    /** Tokens stock drops at its limit; 0 = half of those that are no sinks, as llama.cpp's programs do. */
    std::uint32_t discard = 0;
    /** Flash attention of stock. */
    bool flash = true;
};

/** A model in one context. */
class Engine {
public:
    virtual ~Engine() = default;
    virtual llama_context *context() const = 0;
    /** Appends tokens; logits of all of them, or of the last one. At most n_batch. */
    virtual void decode(const std::vector<llama_token> &tokens, bool all_logits) = 0;
    /** Bytes of K and V. */
    virtual std::uint64_t cache_bytes() const = 0;
    /** "sink" or "stock". */
    virtual const char *mode() const = 0;

    const llama_model *model() const { return llama_get_model(context()); }
    const llama_vocab *vocab() const { return llama_model_get_vocab(model()); }
};

struct FreeModel {
    void operator()(llama_model *m) const { llama_model_free(m); }
};
using Model = std::unique_ptr<llama_model, FreeModel>;

/** Loads a GGUF. @throws UserError */
Model load_model(const Setting &setting);
/** @throws UserError, sinkcache::Error */
std::unique_ptr<Engine> make_engine(llama_model *model, const Setting &setting);

/** Tokens of a text. @throws UserError */
std::vector<llama_token> tokenize(const llama_vocab *vocab, const std::string &text, bool start, bool special);

/** The arrays of a llama_batch of sequence 0, reused. */
class Batch {
public:
    /** Valid until the next call. */
    llama_batch fill(const std::vector<llama_token> &tokens, bool all_logits);

private:
    std::vector<llama_token> tokens_;
    std::vector<std::int8_t> wanted_;
};

#endif
