// A model in host memory: matrix products by Gemm, attention by the plugin, the rest in plain loops.
#pragma once

#include "gemm.hpp"
#include "group.hpp"
#include "model.hpp"

#include <functional>

namespace inflight {

class CpuModel : public Model {
public:
    /** Called with the logits [vocabulary] of every output row, before a token is sampled. */
    using Observer = std::function<void(const OutputRow &, const float *)>;

    /** `plugin` without the model's shape, which is filled in here. The group must outlive the model. */
    CpuModel(LlamaWeights weights, PluginConfig plugin, Group &group, std::size_t threads);

    const LlamaConfig &config() const override { return weights_.config; }
    AttentionPlugin &plugin() override { return plugin_; }
    std::vector<Token> forward(const Batch &batch) override;
    std::string describe() const override { return gemm_.describe(weights_.types()); }
    const LlamaWeights &weights() const { return weights_; }
    void observe(Observer observer) { observer_ = std::move(observer); }

private:
    LlamaWeights weights_;
    Group &group_;
    ThreadTeam team_;
    Gemm gemm_;
    AttentionPlugin plugin_;
    Observer observer_;
    Activations x_, normed_, qkv_, attended_, added_, gate_up_, inner_, logits_;

    std::vector<Token> run(const Batch &batch);
    void make_room(std::size_t rows, std::size_t output_rows);
    void embed(const std::vector<Token> &tokens);
    void norm(const float *x, std::size_t rows, const std::vector<float> &weight);
    void finish_qkv(const LayerWeights &layer, std::size_t rows);
    void feed_forward(const LayerWeights &layer, std::size_t rows);
    void add(std::size_t rows, const std::vector<float> &post_norm);
    void output(std::size_t rows);
};

/** The plugin's configuration with the shape of a model's shard filled in. */
PluginConfig with_shape(PluginConfig config, const LlamaWeights &weights);

}  // namespace inflight
