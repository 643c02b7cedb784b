#include "device_model.hpp"

#include "cpu_model.hpp"

#include <algorithm>
#include <stdexcept>

namespace inflight {

DeviceModel::DeviceModel(const LlamaWeights &w, PluginConfig plugin, Group &group, Device &device, std::size_t max_rows)
    : config_(w.config), group_(group), device_(device), max_rows_(std::max<std::size_t>(max_rows, plugin.max_seqs)),
      q_width_(w.q_width()), plugin_(shaped(plugin, w)), embeddings_(upload(w.embeddings).values), out_norm_(upload(w.out_norm)),
      out_(upload(w.out)) {
    for (const LayerWeights &l : w.layers) {
        layers_.push_back({upload(l.attention_norm), upload(l.feed_forward_norm), upload(l.qkv), upload(l.attention_out),
                           upload(l.gate_up), upload(l.down)});
    }
    const std::size_t rows = max_rows_;
    x_ = room(rows, config_.width), normed_ = room(rows, config_.width), added_ = room(rows, config_.width);
    qkv_ = room(rows, w.qkv_width()), attended_ = room(rows, q_width_);
    gate_up_ = room(rows, 2 * w.feed_forward()), inner_ = room(rows, w.feed_forward());
    logits_ = room(rows, config_.vocabulary);
    tokens_ = ints(rows), wanted_ = ints(rows), best_ = ints(rows);
    seq_ids_ = ints(plugin.max_seqs), n_tokens_ = ints(plugin.max_seqs);
    for (std::size_t entries = 1; entries < plugin.max_seqs; entries *= 2) {
        capture(entries);
    }
    capture(plugin.max_seqs);
}

DeviceModel::Weight DeviceModel::upload(const Matrix &matrix) { return {upload(matrix.values), matrix.n, matrix.k}; }

const float *DeviceModel::upload(const std::vector<float> &values) {
    void *p = device_.allocate(values.size() * sizeof(float));
    device_.upload(p, values.data(), values.size() * sizeof(float));
    return static_cast<float *>(p);
}

float *DeviceModel::room(std::size_t rows, std::size_t width) {
    return static_cast<float *>(device_.allocate(rows * width * sizeof(float)));
}

std::int32_t *DeviceModel::ints(std::size_t n) { return static_cast<std::int32_t *>(device_.allocate(n * sizeof(std::int32_t))); }

/**
 * The pass from tokens_ to logits_, `rows` wide. With `gathers` the last layer leaves the `n_wanted` rows of wanted_, else all
 * are wanted.
 */
template <class Attend>
void DeviceModel::layers(std::size_t rows, std::size_t n_wanted, bool gathers, const Attend &attend) {
    const std::size_t width = config_.width;
    device_.gather(x_, embeddings_, tokens_, rows, width);
    float *attended = attended_;
    for (std::size_t i = 0; i < layers_.size(); i++) {
        const Layer &l = layers_[i];
        device_.norm(normed_, x_, l.attention_norm, rows, width, config_.rms_eps);
        multiply(qkv_, normed_, rows, l.qkv);
        attend(static_cast<std::uint32_t>(i));
        if (gathers && i + 1 == layers_.size()) {
            // Into buffers that are free here: a gather in place would read rows that others have written.
            rows = n_wanted;
            device_.gather(qkv_, attended_, wanted_, rows, q_width_);
            device_.gather(normed_, x_, wanted_, rows, width);
            std::swap(x_, normed_);
            attended = qkv_;
        }
        if (rows == 0) {
            return;
        }
        multiply(added_, attended, rows, l.attention_out);
        device_.sum_ranks(added_, rows * width);
        device_.add(x_, added_, rows * width);
        device_.norm(normed_, x_, l.feed_forward_norm, rows, width, config_.rms_eps);
        multiply(gate_up_, normed_, rows, l.gate_up);
        device_.swiglu(inner_, gate_up_, rows, l.down.k);
        multiply(added_, inner_, rows, l.down);
        device_.sum_ranks(added_, rows * width);
        device_.add(x_, added_, rows * width);
    }
    device_.norm(normed_, x_, out_norm_, rows, width, config_.rms_eps);
    multiply(logits_, normed_, rows, out_);
    device_.argmax(best_, logits_, rows, config_.vocabulary);
}

/** A step of up to `entries` sequences, whichever those in seq_ids_ and n_tokens_ are when it is replayed. */
void DeviceModel::capture(std::size_t entries) {
    const auto step = [&] {
        layers(entries, entries, false, [&](std::uint32_t layer) {
            plugin_.enqueue_decode(layer, qkv_, attended_, seq_ids_, n_tokens_, static_cast<std::uint32_t>(entries), nullptr,
                                   device_.stream());
        });
    };
    // Once with counts of 0, so that what libraries load at a first call is there before anything is recorded.
    step();
    device_.begin_capture();
    step();
    graphs_[entries] = device_.end_capture();
}

/** False if the batch is not one of single steps whose tokens are all wanted. */
bool DeviceModel::replay(const Batch &batch) {
    const std::size_t n = batch.seq_ids.size();
    const auto graph = graphs_.lower_bound(n);
    if (batch.tokens.size() != n || batch.wanted.size() != n || graph == graphs_.end()) {
        return false;
    }
    for (std::size_t i = 0; i < n; i++) {
        if (batch.n_tokens[i] != 1 || batch.wanted[i].row != i) {
            return false;
        }
    }
    auto ids = batch.seq_ids, counts = batch.n_tokens;
    auto tokens = batch.tokens;
    ids.resize(graph->first, SKC_PADDING), counts.resize(graph->first, 0), tokens.resize(graph->first, 0);
    put(seq_ids_, ids), put(n_tokens_, counts), put(tokens_, tokens);
    device_.launch(graph->second);
    plugin_.replayed(batch.seq_ids, batch.n_tokens);
    replays_++;
    return true;
}

void DeviceModel::run(const Batch &batch) {
    std::vector<std::int32_t> rows;
    for (const Wanted &wanted : batch.wanted) {
        rows.push_back(static_cast<std::int32_t>(wanted.row));
    }
    put(tokens_, batch.tokens), put(wanted_, rows);
    layers(batch.tokens.size(), rows.size(), true, [&](std::uint32_t layer) {
        plugin_.enqueue(layer, qkv_, attended_, batch.seq_ids, batch.n_tokens, nullptr, device_.stream());
    });
}

/** Tokens of the rows wanted; logits leave the device only where something is drawn from them. */
std::vector<Token> DeviceModel::draw(const Batch &batch) {
    std::vector<Token> tokens(batch.wanted.size());
    if (tokens.empty()) {
        return tokens;
    }
    device_.download(tokens.data(), best_, tokens.size() * sizeof(Token));
    std::vector<float> logits(config_.vocabulary);
    for (std::size_t i = 0; i < tokens.size(); i++) {
        const Wanted &wanted = batch.wanted[i];
        if (wanted.sampling.temperature > 0) {
            device_.download(logits.data(), logits_ + i * logits.size(), logits.size() * sizeof(float));
            tokens[i] = sample(logits.data(), logits.size(), wanted.sampling, wanted.index);
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
        if (!replay(batch)) {
            run(batch);
        }
        auto tokens = draw(batch);
        plugin_.check_device();
        group_.from_first(tokens);
        return tokens;
    } catch (const std::exception &error) {
        group_.failed(error.what());
        settle();
        throw;
    }
}

/** After a failure: what the device has skipped is this batch's, and not to be told of the next. */
void DeviceModel::settle() {
    try {
        Token ignored;
        device_.download(&ignored, best_, sizeof ignored);
        plugin_.check_device();
    } catch (const std::runtime_error &) {
        // The failure itself is what is told.
    }
}

std::string DeviceModel::describe() const {
    std::string text = "device, steps replayed as graphs of";
    for (const auto &[entries, graph] : graphs_) {
        text += " " + std::to_string(entries);
    }
    return text + " sequences";
}

}  // namespace inflight
