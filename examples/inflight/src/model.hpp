// The interface between executor and model: a forward pass of a ragged batch.
#pragma once

#include "attention_plugin.hpp"
#include "sampling.hpp"
#include "weights.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace inflight {

/** A row of a batch whose logits are sampled. */
struct OutputRow {
    std::uint32_t row;
    Sampling sampling;
    /** Index of the sampled token in its request's output. */
    std::uint64_t index;
};

/** Entry i is n_tokens[i] tokens of sequence seq_ids[i]; tokens are packed in the order of the entries. */
struct Batch {
    AttentionPlugin::Ids seq_ids, n_tokens;
    std::vector<Token> tokens;
    /** Ascending by row. */
    std::vector<OutputRow> output_rows;
};

class Model {
public:
    virtual ~Model() = default;
    virtual const LlamaConfig &config() const = 0;
    virtual AttentionPlugin &plugin() = 0;
    /** Runs the batch and samples a token for each of output_rows. After an exception, the plugin's abort_step undoes
     * it. */
    virtual std::vector<Token> forward(const Batch &batch) = 0;
    /** How it computes, for a log. */
    virtual std::string describe() const = 0;
};

}  // namespace inflight
