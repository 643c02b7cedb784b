// A Llama in host memory: matrix products by OpenBLAS, attention by the plugin, the rest in plain loops.
#pragma once

#include "gemm.hpp"
#include "group.hpp"
#include "model.hpp"

#include <functional>

namespace inflight {

class CpuModel : public Model {
public:
    /** Sees the logits [vocabulary] of every row wanted, before a token is drawn. */
    using Observer = std::function<void(const Wanted &, const float *)>;

    /** `plugin` gives everything but the model's shape. The group must outlive the model. */
    CpuModel(LlamaWeights weights, PluginConfig plugin, Group &group, int threads);

    const LlamaConfig &config() const override { return weights_.config; }
    AttentionPlugin &plugin() override { return plugin_; }
    std::vector<Token> forward(const Batch &batch) override;
    std::string describe() const override { return gemm_.describe(); }
    const LlamaWeights &weights() const { return weights_; }
    void observe(Observer observer) { observer_ = std::move(observer); }

private:
    LlamaWeights weights_;
    Group &group_;
    Gemm gemm_;
    AttentionPlugin plugin_;
    Observer observer_;
    Activations x_, normed_, qkv_, attended_, added_, gate_up_, inner_, logits_;

    std::vector<Token> run(const Batch &batch);
    void make_room(std::size_t rows);
    void norm(const float *x, std::size_t rows, const std::vector<float> &weight);
    void feed_forward(const LayerWeights &layer, std::size_t rows);
    void add(std::size_t rows);
};

/** The plugin's configuration with a model's shape (of its shard) filled in. */
PluginConfig shaped(PluginConfig config, const LlamaWeights &weights);

}  // namespace inflight
