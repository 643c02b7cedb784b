// A Llama on an accelerator: weights and activations stay there, steps are replayed graphs.
#pragma once

#include "device.hpp"
#include "group.hpp"
#include "model.hpp"

#include <map>
#include <vector>

namespace inflight {

class DeviceModel : public Model {
public:
    /**
     * At most `max_rows` tokens to a batch. Graphs are captured here, before any sequence begins: one for each power of two
     * up to the plugin's max_seqs, and one for that. Device and group must outlive the model.
     */
    DeviceModel(const LlamaWeights &weights, PluginConfig plugin, Group &group, Device &device, std::size_t max_rows);

    const LlamaConfig &config() const override { return config_; }
    AttentionPlugin &plugin() override { return plugin_; }
    std::vector<Token> forward(const Batch &batch) override;
    std::string describe() const override;
    /** Batches that were a replay. */
    std::uint64_t replays() const { return replays_; }

private:
    struct Weight {
        const float *values;
        std::size_t n, k;
    };
    struct Layer {
        const float *attention_norm, *feed_forward_norm;
        Weight qkv, attention_out, gate_up, down;
    };

    LlamaConfig config_;
    Group &group_;
    Device &device_;
    std::size_t max_rows_, q_width_;
    AttentionPlugin plugin_;
    const float *embeddings_, *out_norm_;
    Weight out_;
    std::vector<Layer> layers_;
    float *x_, *normed_, *qkv_, *attended_, *added_, *gate_up_, *inner_, *logits_;
    /** Tokens of the rows; rows wanted; what they give; ids and counts of a replayed step. */
    std::int32_t *tokens_, *wanted_, *best_, *seq_ids_, *n_tokens_;
    /** By entries. */
    std::map<std::size_t, Device::Graph> graphs_;
    std::uint64_t replays_ = 0;

    Weight upload(const Matrix &matrix);
    const float *upload(const std::vector<float> &values);
    float *room(std::size_t rows, std::size_t width);
    std::int32_t *ints(std::size_t n);
    template <class T>
    void put(T *to, const std::vector<T> &from) {
        device_.upload(to, from.data(), from.size() * sizeof(T));
    }
    void multiply(float *y, const float *x, std::size_t rows, const Weight &w) { device_.multiply(y, x, w.values, rows, w.n, w.k); }

    template <class Attend>
    void layers(std::size_t rows, std::size_t n_wanted, bool gathers, const Attend &attend);
    void capture(std::size_t entries);
    bool replay(const Batch &batch);
    void run(const Batch &batch);
    std::vector<Token> draw(const Batch &batch);
    void settle();
};

}  // namespace inflight
