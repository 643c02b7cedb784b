#include "device_model.hpp"

#include "cpu_model.hpp"

#include <algorithm>
#include <stdexcept>

namespace inflight {
namespace {

/** Rejects what the kernels of a device lack. */
const LlamaConfig &plain(const LlamaWeights &w) {
    const bool biased = !w.layers.empty() && !w.layers[0].qkv_bias.empty();
    if (!w.config.is_plain() || biased) {
        throw std::runtime_error("the model is no plain Llama (it has biases, windows, norms or factors of its own): "
                                 "only the CPU runs it");
    }
    return w.config;
}

}  // namespace

DeviceModel::DeviceModel(const LlamaWeights &w, PluginConfig plugin, Group &group, Device &device, std::size_t max_rows)
    : config_(plain(w)), group_(group), device_(device), max_rows_(std::max<std::size_t>(max_rows, plugin.max_seqs)),
      q_width_(w.q_width()), plugin_(with_shape(plugin, w)), embeddings_(upload(Weight({w.embeddings})).values),
      out_norm_(upload(w.out_norm)), out_(upload(w.out)) {
    for (const LayerWeights &l : w.layers) {
        layers_.push_back({upload(l.attention_norm), upload(l.feed_forward_norm), upload(l.qkv),
                           upload(l.attention_out), upload(l.gate_up), upload(l.down)});
    }
    const std::size_t rows = max_rows_;
    x_ = allocate_rows(rows, config_.width);
    normed_ = allocate_rows(rows, config_.width);
    added_ = allocate_rows(rows, config_.width);
    qkv_ = allocate_rows(rows, w.qkv_width());
    attended_ = allocate_rows(rows, q_width_);
    gate_up_ = allocate_rows(rows, 2 * w.feed_forward());
    inner_ = allocate_rows(rows, w.feed_forward());
    logits_ = allocate_rows(rows, config_.vocabulary);
    tokens_ = allocate_ints(rows);
    output_rows_ = allocate_ints(rows);
    argmax_ = allocate_ints(rows);
    seq_ids_ = allocate_ints(plugin.max_seqs);
    n_tokens_ = allocate_ints(plugin.max_seqs);
    for (std::size_t n_entries = 1; n_entries < plugin.max_seqs; n_entries *= 2) {
        capture(n_entries);
    }
    capture(plugin.max_seqs);
}

DeviceModel::DeviceWeight DeviceModel::upload(const Weight &weight) {
    float *const to = allocate_rows(weight.n, weight.k);
    float *row = to;
    for (const Matrix &part : weight.parts) {
        std::vector<float> values(part.n * part.k);
        for (std::size_t i = 0; i < part.n; i++) {
            part.unpack(i, values.data() + i * part.k);
        }
        upload_to(row, values);
        row += values.size();
    }
    return {to, weight.n, weight.k};
}

const float *DeviceModel::upload(const std::vector<float> &values) {
    float *p = allocate_rows(1, values.size());
    upload_to(p, values);
    return p;
}

float *DeviceModel::allocate_rows(std::size_t rows, std::size_t width) {
    return static_cast<float *>(device_.allocate(rows * width * sizeof(float)));
}

std::int32_t *DeviceModel::allocate_ints(std::size_t n) {
    return static_cast<std::int32_t *>(device_.allocate(n * sizeof(std::int32_t)));
}

/** The forward pass from tokens_ to logits_ and argmax_. `attend(layer)` enqueues attention from qkv_ to attended_. */
template <class Attend>
void DeviceModel::forward_layers(Rows rows, const Attend &attend) {
    const std::size_t width = config_.width;
    device_.gather(x_, embeddings_, tokens_, rows.n, width);
    std::size_t n = rows.n;
    float *attended = attended_;
    for (std::size_t i = 0; i < layers_.size(); i++) {
        const Layer &l = layers_[i];
        device_.norm(normed_, x_, l.attention_norm, n, width, config_.rms_eps);
        multiply(qkv_, normed_, n, l.qkv);
        attend(static_cast<std::uint32_t>(i));
        if (rows.gathers && i + 1 == layers_.size()) {
            // Not in place: blocks of a gather would read rows that other blocks have overwritten. qkv_ and normed_ are
            // unused here.
            n = rows.n_outputs;
            device_.gather(qkv_, attended_, output_rows_, n, q_width_);
            device_.gather(normed_, x_, output_rows_, n, width);
            std::swap(x_, normed_);
            attended = qkv_;
        }
        if (n == 0) {
            return;
        }
        multiply(added_, attended, n, l.attention_out);
        device_.all_reduce(added_, n * width);
        device_.add(x_, added_, n * width);
        feed_forward(l, n);
    }
    device_.norm(normed_, x_, out_norm_, n, width, config_.rms_eps);
    multiply(logits_, normed_, n, out_);
    device_.argmax(argmax_, logits_, n, config_.vocabulary);
}

void DeviceModel::feed_forward(const Layer &l, std::size_t rows) {
    const std::size_t width = config_.width;
    device_.norm(normed_, x_, l.feed_forward_norm, rows, width, config_.rms_eps);
    multiply(gate_up_, normed_, rows, l.gate_up);
    device_.swiglu(inner_, gate_up_, rows, l.down.k);
    multiply(added_, inner_, rows, l.down);
    device_.all_reduce(added_, rows * width);
    device_.add(x_, added_, rows * width);
}

/** Captures a step of up to `n_entries` sequences: those in seq_ids_ and n_tokens_ when the graph is launched. */
void DeviceModel::capture(std::size_t n_entries) {
    const auto step = [&] {
        forward_layers({n_entries, n_entries, false}, [&](std::uint32_t layer) {
            plugin_.enqueue_decode({layer, qkv_, attended_, nullptr, device_.stream()}, seq_ids_, n_tokens_,
                                   static_cast<std::uint32_t>(n_entries));
        });
    };
    // First without capture, with counts of 0: libraries load modules and allocate at their first call.
    step();
    device_.begin_capture();
    step();
    graphs_[n_entries] = device_.end_capture();
}

/** Returns false, and does nothing, unless the batch is one token for each sequence, all of them output rows. */
bool DeviceModel::launch_graph(const Batch &batch) {
    const std::size_t n = batch.seq_ids.size();
    const auto graph = graphs_.lower_bound(n);
    if (batch.tokens.size() != n || batch.output_rows.size() != n || graph == graphs_.end()) {
        return false;
    }
    for (std::size_t i = 0; i < n; i++) {
        if (batch.n_tokens[i] != 1 || batch.output_rows[i].row != i) {
            return false;
        }
    }
    auto ids = batch.seq_ids, counts = batch.n_tokens;
    auto tokens = batch.tokens;
    ids.resize(graph->first, SKC_PADDING);
    counts.resize(graph->first, 0);
    tokens.resize(graph->first, 0);
    upload_to(seq_ids_, ids);
    upload_to(n_tokens_, counts);
    upload_to(tokens_, tokens);
    device_.launch(graph->second);
    plugin_.note_launch(batch.seq_ids, batch.n_tokens);
    graph_launches_++;
    return true;
}

void DeviceModel::run_eager(const Batch &batch) {
    std::vector<std::int32_t> rows;
    for (const OutputRow &output : batch.output_rows) {
        rows.push_back(static_cast<std::int32_t>(output.row));
    }
    upload_to(tokens_, batch.tokens);
    upload_to(output_rows_, rows);
    forward_layers({batch.tokens.size(), rows.size(), true}, [&](std::uint32_t layer) {
        plugin_.enqueue({layer, qkv_, attended_, nullptr, device_.stream()}, batch.seq_ids, batch.n_tokens);
    });
}

/** A token for each output row. Logits are downloaded only for rows with a temperature. */
std::vector<Token> DeviceModel::sample_outputs(const Batch &batch) {
    std::vector<Token> tokens(batch.output_rows.size());
    if (tokens.empty()) {
        return tokens;
    }
    device_.download(tokens.data(), argmax_, tokens.size() * sizeof(Token));
    std::vector<float> logits(config_.vocabulary);
    for (std::size_t i = 0; i < tokens.size(); i++) {
        const OutputRow &output = batch.output_rows[i];
        if (output.sampling.temperature > 0) {
            device_.download(logits.data(), logits_ + i * logits.size(), logits.size() * sizeof(float));
            tokens[i] = sample(logits.data(), logits.size(), output.sampling, output.index);
        }
    }
    return tokens;
}

std::vector<Token> DeviceModel::forward(const Batch &batch) {
    try {
        if (batch.tokens.size() > max_rows_) {
            throw std::runtime_error("a batch of " + std::to_string(batch.tokens.size()) + " tokens: at most " +
                                     std::to_string(max_rows_) + " fit");
        }
        if (!launch_graph(batch)) {
            run_eager(batch);
        }
        auto tokens = sample_outputs(batch);
        plugin_.check_device();
        group_.broadcast(tokens);
        return tokens;
    } catch (const std::exception &error) {
        group_.abort(error.what());
        discard_device_error();
        throw;
    }
}

/** After a failure: entries that the device skipped belong to this batch, and must not be reported for the next. */
void DeviceModel::discard_device_error() {
    try {
        Token ignored;
        device_.download(&ignored, argmax_, sizeof ignored);
        plugin_.check_device();
    } catch (const std::runtime_error &) {
        // The caller reports the original failure.
    }
}

std::string DeviceModel::describe() const {
    std::string text = "device, decode steps as graphs of";
    for (const auto &[n_entries, graph] : graphs_) {
        text += " " + std::to_string(n_entries);
    }
    return text + " sequences";
}

}  // namespace inflight
