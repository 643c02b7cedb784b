// GGUF files with random weights, written by the tests.
#ifndef SINKCACHE_TESTS_RANDOM_MODEL_HPP
#define SINKCACHE_TESTS_RANDOM_MODEL_HPP

#include <ggml.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

/** A tensor with normally distributed values. */
struct RandomTensor {
    std::string name;
    std::vector<std::int64_t> dims;
    float deviation;
    float mean = 0;
};

/** Contents of a GGUF. Keys other than "general." and "tokenizer." get the architecture as prefix. */
struct RandomModel {
    std::string arch = "llama";
    std::map<std::string, std::uint32_t> integers;
    std::map<std::string, float> reals;
    std::map<std::string, std::string> strings;
    std::map<std::string, std::vector<std::int32_t>> arrays;
    std::vector<RandomTensor> tensors;
    /** GGUF to copy the tokenizer from; empty = a vocabulary without texts. */
    std::string tokenizer_of;
    /** Type of matrices: F32, F16 or Q8_0. */
    ggml_type type = GGML_TYPE_F32;

    /** Writes the file; the same seed gives the same weights. Throws std::runtime_error. */
    void write(const std::string &path, std::uint32_t seed = 1) const;
};

/** Shape of a decoder in the form that most architectures share. */
struct Shape {
    std::int64_t n_layers = 3;
    std::int64_t n_embd = 64;
    std::int64_t n_heads = 4;
    std::int64_t n_kv_heads = 2;
    std::int64_t head_dim = 16;
    std::int64_t n_ff = 96;
    std::int64_t n_vocab = 128;
    /** Q, K and V in one matrix. */
    bool fused_qkv = false;
    /** Biases of Q, K and V. */
    bool qkv_bias = false;
    /** Norms over the heads of Q and K. */
    bool qk_norm = false;
    /** A separate output matrix, instead of the token embeddings. */
    bool output = true;
    /** Norms with biases. */
    bool norm_bias = false;
    /** Feed-forward with a gate. */
    bool gate = true;
};

/** A decoder of that form for an architecture. */
RandomModel decoder(const std::string &arch, const Shape &shape = Shape());

/** Models that the adapter supports, by name. */
std::map<std::string, RandomModel> supported_models();

/**
 * The model with which stock llama.cpp is a reference past the window for the model of that name, if there is one. A
 * shift multiplies keys by YaRN's mscale again, and rotates keys of layers that have no RoPE; with M-RoPE it ends the
 * process, but for text a model with plain RoPE and the same weights is the same.
 */
std::optional<RandomModel> shift_reference(const std::string &name);

/** A model that the adapter must reject, and a part of the error text. */
struct Unsupported {
    RandomModel model;
    std::string reason;
};
std::map<std::string, Unsupported> unsupported_models();

/** The names of such a map. */
template <class T>
std::vector<std::string> names(const std::map<std::string, T> &models) {
    std::vector<std::string> all;
    for (const auto &model : models) {
        all.push_back(model.first);
    }
    return all;
}

#endif
