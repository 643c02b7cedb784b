#include "cpu_model.hpp"
#include "float_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace inflight {

PluginConfig with_shape(PluginConfig config, const LlamaWeights &w) {
    // The casts are safe: counts were limited to 2^20 when the file was read.
    config.n_layers = static_cast<std::uint32_t>(w.config.n_layers);
    config.n_q_heads = static_cast<std::uint32_t>(w.q_heads());
    config.n_kv_heads = static_cast<std::uint32_t>(w.kv_heads());
    config.head_dim = static_cast<std::uint32_t>(w.config.head_dim);
    config.rope_dim = static_cast<std::uint32_t>(w.config.rope_dim);
    config.layers = w.config.layers;
    config.rope_neox = w.config.rope_neox;
    config.inv_freq = w.config.inv_freq;
    config.scale = w.config.attention_scale;
    config.softcap = w.config.attention_softcap;
    return config;
}

namespace {

PluginConfig with_team(PluginConfig config, ThreadTeam &team) {
    config.n_threads = static_cast<std::uint32_t>(team.size());
    config.team = team.size() > 1 ? &team : nullptr;
    return config;
}

/** The sum of squares, in lanes that a compiler can put into vectors. */
double sum_of_squares(const float *x, std::size_t n) {
    constexpr std::size_t LANES = 8;
    double lanes[LANES] = {};
    std::size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (std::size_t lane = 0; lane < LANES; lane++) {
            lanes[lane] += static_cast<double>(x[i + lane]) * static_cast<double>(x[i + lane]);
        }
    }
    for (; i < n; i++) {
        lanes[i % LANES] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    return std::accumulate(lanes, lanes + LANES, 0.0);
}

/** RMS norm; `out` may be `in`. */
void norm_row(const float *in, const std::vector<float> &weight, float eps, float *out) {
    const std::size_t n = weight.size();
    const auto mean = static_cast<float>(sum_of_squares(in, n) / static_cast<double>(n));
    const float factor = 1.0f / std::sqrt(mean + eps);
    for (std::size_t j = 0; j < n; j++) {
        out[j] = in[j] * factor * weight[j];
    }
}

void scale(float *x, std::size_t n, float factor) {
    for (std::size_t j = 0; factor != 1.0f && j < n; j++) {
        x[j] *= factor;
    }
}

float silu(float x) { return x / (1.0f + std::exp(-x)); }

/** With tanh in place of the error function, as models of these families were trained. */
float gelu(float x) {
    constexpr float ROOT_OF_2_OVER_PI = 0.79788456f;
    return 0.5f * x * (1.0f + std::tanh(ROOT_OF_2_OVER_PI * x * (1.0f + 0.044715f * x * x)));
}

/** out = activation(gate) * up, for n elements. */
void activate(Activation activation, const float *gate, const float *up, float *out, std::size_t n) {
    const FloatKernels *kernels = *float_kernels();
    if (activation == Activation::silu && kernels != nullptr) {
        kernels->silu_times(gate, up, out, n);
        return;
    }
    for (std::size_t j = 0; j < n; j++) {
        out[j] = (activation == Activation::silu ? silu(gate[j]) : gelu(gate[j])) * up[j];
    }
}

}  // namespace

CpuModel::CpuModel(LlamaWeights weights, PluginConfig plugin, Group &group, std::size_t threads)
    : weights_(std::move(weights)), group_(group), team_(threads), gemm_(team_),
      plugin_(with_shape(with_team(std::move(plugin), team_), weights_)), x_(weights_.config.width),
      normed_(weights_.config.width), qkv_(weights_.qkv_width()), attended_(weights_.q_width()),
      added_(weights_.config.width), gate_up_(2 * weights_.feed_forward()), inner_(weights_.feed_forward()),
      logits_(weights_.config.vocabulary) {}

void CpuModel::make_room(std::size_t rows, std::size_t output_rows) {
    for (Activations *a : {&x_, &normed_, &qkv_, &attended_, &added_, &gate_up_, &inner_}) {
        a->resize(rows);
    }
    logits_.resize(output_rows);
}

void CpuModel::embed(const std::vector<Token> &tokens) {
    for (std::size_t i = 0; i < tokens.size(); i++) {
        weights_.embeddings.unpack(static_cast<std::size_t>(tokens[i]), x_.row(i));
        scale(x_.row(i), x_.width(), weights_.config.embedding_scale);
    }
}

/** RMS norm of the rows of `x` into normed_. */
void CpuModel::norm(const float *x, std::size_t rows, const std::vector<float> &weight) {
    const std::size_t width = weight.size();
    team_.run(rows, [&](std::size_t i) {
        norm_row(x + i * width, weight, weights_.config.rms_eps, normed_.row(i));
    });
}

/** Biases, and norms of the heads of Q and K, in qkv_. */
void CpuModel::finish_qkv(const LayerWeights &layer, std::size_t rows) {
    if (layer.qkv_bias.empty() && layer.q_norm.empty()) {
        return;
    }
    team_.run(rows, [&](std::size_t i) {
        float *row = qkv_.row(i);
        for (std::size_t j = 0; j < layer.qkv_bias.size(); j++) {
            row[j] += layer.qkv_bias[j];
        }
        if (!layer.q_norm.empty()) {
            const std::size_t dim = layer.q_norm.size(), n_q = weights_.q_heads(), n = n_q + weights_.kv_heads();
            for (std::size_t head = 0; head < n; head++, row += dim) {
                norm_row(row, head < n_q ? layer.q_norm : layer.k_norm, weights_.config.rms_eps, row);
            }
        }
    });
}

/** Sums added_, a partial result of this shard, over the ranks, and adds the sum to x_. */
void CpuModel::add(std::size_t rows, const std::vector<float> &post_norm) {
    group_.all_reduce(added_.data(), rows * x_.width());
    const float factor = weights_.config.residual_scale;
    team_.run(rows, [&](std::size_t i) {
        float *added = added_.row(i), *x = x_.row(i);
        if (!post_norm.empty()) {
            norm_row(added, post_norm, weights_.config.rms_eps, added);
        }
        for (std::size_t j = 0; j < x_.width(); j++) {
            x[j] += factor * added[j];
        }
    });
}

void CpuModel::feed_forward(const LayerWeights &layer, std::size_t rows) {
    norm(x_.data(), rows, layer.feed_forward_norm);
    gemm_.multiply(normed_.data(), rows, layer.gate_up, gate_up_.data());
    team_.run(rows, [&](std::size_t i) {
        const float *gate = gate_up_.row(i), *up = gate + inner_.width();
        activate(weights_.config.activation, gate, up, inner_.row(i), inner_.width());
    });
    gemm_.multiply(inner_.data(), rows, layer.down, added_.data());
    add(rows, layer.feed_forward_post_norm);
}

/** From x_ to logits_. */
void CpuModel::output(std::size_t rows) {
    norm(x_.data(), rows, weights_.out_norm);
    gemm_.multiply(normed_.data(), rows, weights_.out, logits_.data());
    const float softcap = static_cast<float>(weights_.config.logit_softcap);
    team_.run(rows, [&](std::size_t i) {
        scale(logits_.row(i), logits_.width(), weights_.config.logit_scale);
        for (std::size_t j = 0; softcap > 0 && j < logits_.width(); j++) {
            logits_.row(i)[j] = softcap * std::tanh(logits_.row(i)[j] / softcap);
        }
    });
}

std::vector<Token> CpuModel::forward(const Batch &batch) {
    try {
        return run(batch);
    } catch (const std::exception &error) {
        group_.abort(error.what());
        throw;
    }
}

std::vector<Token> CpuModel::run(const Batch &batch) {
    std::size_t rows = batch.tokens.size();
    make_room(rows, batch.output_rows.size());
    embed(batch.tokens);
    for (std::size_t l = 0; l < weights_.layers.size(); l++) {
        const LayerWeights &layer = weights_.layers[l];
        norm(x_.data(), rows, layer.attention_norm);
        gemm_.multiply(normed_.data(), rows, layer.qkv, qkv_.data());
        finish_qkv(layer, rows);
        plugin_.enqueue({static_cast<std::uint32_t>(l), qkv_.data(), attended_.data()}, batch.seq_ids, batch.n_tokens);
        if (l + 1 == weights_.layers.size()) {
            // The last layer's keys and values are in the cache: from here on only the output rows are needed.
            rows = batch.output_rows.size();
            for (std::size_t i = 0; i < rows; i++) {
                // In place: output rows ascend, so a row moves up or stays.
                if (const std::size_t from = batch.output_rows[i].row; from != i) {
                    std::copy_n(x_.row(from), x_.width(), x_.row(i));
                    std::copy_n(attended_.row(from), attended_.width(), attended_.row(i));
                }
            }
        }
        if (rows == 0) {
            return {};
        }
        gemm_.multiply(attended_.data(), rows, layer.attention_out, added_.data());
        add(rows, layer.attention_post_norm);
        feed_forward(layer, rows);
    }
    output(rows);
    std::vector<Token> tokens;
    for (std::size_t i = 0; i < rows; i++) {
        if (observer_) {
            observer_(batch.output_rows[i], logits_.row(i));
        }
        tokens.push_back(
            sample(logits_.row(i), logits_.width(), batch.output_rows[i].sampling, batch.output_rows[i].index));
    }
    group_.broadcast(tokens);
    return tokens;
}

}  // namespace inflight
