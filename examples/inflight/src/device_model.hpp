// A Llama on an accelerator: weights, unpacked to f32, and activations stay there; decode steps are graph launches.
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
     * At most `max_rows` tokens to a batch. Graphs are captured here, before any sequence begins: one for each power of
     * two below the plugin's max_seqs, and one for max_seqs. Device and group must outlive the model.
     */
    DeviceModel(const LlamaWeights &weights, PluginConfig plugin, Group &group, Device &device, std::size_t max_rows);

    const LlamaConfig &config() const override { return config_; }
    AttentionPlugin &plugin() override { return plugin_; }
    std::vector<Token> forward(const Batch &batch) override;
    std::string describe() const override;
    /** Batches that ran as a graph launch. */
    std::uint64_t graph_launches() const { return graph_launches_; }

private:
    /** A weight in the device's memory, as f32. */
    struct DeviceWeight {
        const float *values;
        std::size_t n, k;
    };
    struct Layer {
        const float *attention_norm, *feed_forward_norm;
        DeviceWeight qkv, attention_out, gate_up, down;
    };
    /** Rows of a forward pass. With `gathers` the last layer keeps only the `n_outputs` rows in output_rows_. */
    struct Rows {
        std::size_t n;
        std::size_t n_outputs;
        bool gathers;
    };

    LlamaConfig config_;
    Group &group_;
    Device &device_;
    std::size_t max_rows_, q_width_;
    AttentionPlugin plugin_;
    const float *embeddings_, *out_norm_;
    DeviceWeight out_;
    std::vector<Layer> layers_;
    float *x_, *normed_, *qkv_, *attended_, *added_, *gate_up_, *inner_, *logits_;
    /** The token of each row; indices of output rows, the argmax of each; ids and counts of a captured step. */
    std::int32_t *tokens_, *output_rows_, *argmax_, *seq_ids_, *n_tokens_;
    /** By the number of batch entries. */
    std::map<std::size_t, Device::Graph> graphs_;
    std::uint64_t graph_launches_ = 0;

    DeviceWeight upload(const Weight &weight);
    const float *upload(const std::vector<float> &values);
    float *allocate_rows(std::size_t rows, std::size_t width);
    std::int32_t *allocate_ints(std::size_t n);
    template <class T>
    void upload_to(T *to, const std::vector<T> &from) {
        device_.upload(to, from.data(), from.size() * sizeof(T));
    }
    void multiply(float *y, const float *x, std::size_t rows, const DeviceWeight &w) {
        device_.multiply(y, x, w.values, rows, w.n, w.k);
    }

    template <class Attend>
    void forward_layers(Rows rows, const Attend &attend);
    void feed_forward(const Layer &layer, std::size_t rows);
    void capture(std::size_t n_entries);
    bool launch_graph(const Batch &batch);
    void run_eager(const Batch &batch);
    std::vector<Token> sample_outputs(const Batch &batch);
    void discard_device_error();
};

}  // namespace inflight
