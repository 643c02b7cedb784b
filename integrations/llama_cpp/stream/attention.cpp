#include "attention.hpp"

#include "accelerators.hpp"
#include "ggml_abi.hpp"
#include "llama_api.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

namespace sinkcache {
namespace llama_cpp {
namespace {

bool has_gpu() {
    for (std::size_t i = 0; i < api().ggml_backend_dev_count(); ++i) {
        const auto type = api().ggml_backend_dev_type(api().ggml_backend_dev_get(i));
        if (type != GGML_BACKEND_DEVICE_TYPE_CPU && type != GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            return true;
        }
    }
    return false;
}

/** How many cells a row of a mask shows: those of value 0. */
std::int64_t count_visible(const ggml_tensor *mask, std::size_t index = 0) {
    const auto n = static_cast<std::size_t>(mask->ne[0]);
    const std::size_t from = index * mask->nb[1];
    if (mask->type == GGML_TYPE_F16) {
        std::vector<std::uint16_t> row(n);
        api().ggml_backend_tensor_get(mask, row.data(), from, n * sizeof row[0]);
        // All bits but the sign's.
        return std::count_if(row.begin(), row.end(), [](std::uint16_t x) { return (x & 0x7FFFU) == 0; });
    }
    std::vector<float> row(n);
    api().ggml_backend_tensor_get(mask, row.data(), from, n * sizeof row[0]);
    return std::count(row.begin(), row.end(), 0.0F);
}

/**
 * Whether the positions in a graph are `expected`, [n]. With M-RoPE a token of text has its position three times, and
 * then 0: all first ones come first.
 */
bool are_positions(const ggml_tensor *t, std::int64_t n, const llama_pos *expected) {
    const auto *positions = static_cast<const llama_pos *>(t->data);
    const auto are = [&](int section) { return std::equal(expected, expected + n, positions + section * n); };
    if (t->ne[0] == n) {
        return are(0);
    }
    const llama_pos *fourth = positions + 3 * n;
    return are(0) && are(1) && are(2) && std::all_of(fourth, fourth + n, [](llama_pos p) { return p == 0; });
}

/** Fills an f32 tensor in any memory, in parts: without an allocation, which could fail. */
void fill(ggml_tensor *t, float value) {
    std::array<float, 1024> part;
    part.fill(value);
    const auto n = static_cast<std::size_t>(api().ggml_nelements(t));
    for (std::size_t at = 0; at < n; at += part.size()) {
        api().ggml_backend_tensor_set(t, part.data(), at * sizeof(float),
                                      std::min(part.size(), n - at) * sizeof(float));
    }
}

}  // namespace

Attention::Attention(std::size_t n_layers) : layers_(new Layer[n_layers]), n_layers_(n_layers) {
    for (std::size_t i = 0; i < n_layers; ++i) {
        layers_[i].owner = this;
        layers_[i].index = static_cast<std::uint32_t>(i);
    }
}

/** The layer of a node that is an op of this class; NULL for others. */
const Attention::Layer *Attention::layer_of(const ggml_tensor *node) {
    ggml_abi::CustomOp op;
    std::memcpy(&op, node->op_params, sizeof op);
    const bool is_ours = node->op == GGML_OP_CUSTOM && op.function == &Attention::op;
    return is_ours ? static_cast<const Layer *>(op.userdata) : nullptr;
}

bool Attention::is_op_of(const ggml_tensor *node, std::int32_t device) {
    const Layer *const layer = layer_of(node);
    return layer && layer->device == device;
}

bool Attention::is_installed(ggml_cgraph *graph) {
    for (int i = 0; i < api().ggml_graph_n_nodes(graph); ++i) {
        if (layer_of(api().ggml_graph_node(graph, i))) {
            return true;
        }
    }
    return false;
}

// The node keeps its place in the graph. Its new inputs are computed before it: they are what Q, K and V came from.
void Attention::install(ggml_context *ctx, const std::vector<LayerNodes> &layers, bool with_masks) {
    const bool gpu = has_gpu();
    n_layers_ = layers.size();
    for (std::size_t i = 0; i < layers.size(); ++i) {
        if (gpu) {
            // GPU backends fuse a norm with the RoPE after it and do not store the norm's result, unless it is an
            // output: they counted its users before this op became one. The CPU backend does not fuse these, and an
            // output would occupy its memory until the end of the graph.
            api().ggml_set_output(layers[i].q);
            if (layers[i].k) {
                api().ggml_set_output(layers[i].k);
            }
        }
        ggml_tensor *node = layers[i].attention;
        // A layer that reads the K and V of an earlier one has none: q takes their places.
        layers_[i].shares = layers[i].shape.shares();
        layers_[i].device = layers[i].shape.device;
        ggml_tensor *k = layers[i].k ? layers[i].k : layers[i].q, *v = layers[i].v ? layers[i].v : layers[i].q;
        layers_[i].has_positions = layers[i].positions != nullptr;
        ggml_tensor *positions = layers[i].positions ? layers[i].positions : layers[i].q;
        ggml_tensor *args[] = {layers[i].q, k, v, positions, layers[i].mask};
        const std::int64_t *ne = node->ne;
        const int n_args = with_masks || !layers_[i].has_positions ? 5 : 4;
        const ggml_tensor *donor = api().ggml_custom_4d(ctx, node->type, ne[0], ne[1], ne[2], ne[3], args, n_args,
                                                        &Attention::op, GGML_N_TASKS_MAX, &layers_[i]);
        node->op = donor->op;
        std::memcpy(node->op_params, donor->op_params, sizeof node->op_params);
        std::copy(std::begin(donor->src), std::end(donor->src), std::begin(node->src));
    }
}

void Attention::set_caches(const std::vector<LayerCache> &caches) {
    for (std::size_t i = 0; i < n_layers_; ++i) {
        layers_[i].place = caches[i];
    }
}

void Attention::begin_probe() {
    for (std::size_t i = 0; i < n_layers_; ++i) {
        layers_[i].n_visible = 0;
    }
    probing_ = true;
}

std::vector<std::int64_t> Attention::end_probe() {
    probing_ = false;
    std::vector<std::int64_t> visible;
    for (std::size_t i = 0; i < n_layers_; ++i) {
        visible.push_back(layers_[i].n_visible);
    }
    return visible;
}

void Attention::begin(const BatchPlan &plan) {
    for (std::size_t i = 0; i < n_layers_; ++i) {
        layers_[i].n_ubatches = 0;
        layers_[i].n_finished = 0;
    }
    plan_ = &plan;
}

std::size_t Attention::end() {
    plan_ = nullptr;
    std::size_t n = std::numeric_limits<std::size_t>::max();
    for (std::size_t i = 0; i < n_layers_; ++i) {
        n = std::min(n, layers_[i].n_ubatches.load());
    }
    return n;
}

void Attention::op(ggml_tensor *dst, int ith, int nth, void *layer) {
    auto &self = *static_cast<Layer *>(layer);
    self.owner->run(self, dst, ith, nth);
}

void Attention::run(Layer &layer, ggml_tensor *dst, int ith, int nth) {
    if (probing_) {
        if (ith == 0) {
            layer.n_visible = count_visible(dst->src[4]);
            fill(dst, 0.0F);
        }
        return;
    }
    const auto compute = [&] {
        bool done = false;
        try {
            done = attend(layer, dst, ith, nth);
        } catch (const std::exception &e) {
            error.set(SKC_STATUS_INTERNAL, e.what());
        }
        if (!done && ith == 0) {
            // The abort callback ends the graph, unless the host has replaced it, or the graph is on a GPU: then no
            // logit may look valid.
            fill(dst, std::numeric_limits<float>::quiet_NaN());
        }
    };
    if (layer.shares) {
        // The first thread alone decides whether there is anything to do.
        loop_->run(ith, nth, compute);
    } else {
        compute();
    }
    // Every thread has read n_ubatches before it gets here, and ggml's barrier comes before the next op of this layer.
    if (layer.n_finished.fetch_add(1, std::memory_order_acq_rel) + 1 == nth) {
        layer.n_finished.store(0, std::memory_order_relaxed);
        if (!error.is_set()) {
            layer.n_ubatches.fetch_add(1, std::memory_order_relaxed);
        }
    }
}

/** Whether the rows that an op gets are those of a micro-batch, as far as its positions or its mask show it. */
bool Attention::are_rows_of(const Layer &layer, const Ubatch &ubatch, const ggml_tensor *dst) const {
    const std::int64_t n = dst->ne[2];
    if (ubatch.n_rows != n) {
        return false;
    }
    if (layer.has_positions) {
        return are_positions(dst->src[3], n, &plan_->ubatch_positions[ubatch.first_row]);
    }
    // All layers have the same rows and the same mask. One sequence can have no other order.
    for (std::size_t i = 0; layer.index == 0 && ubatch.seq_ids.size() > 1 && i < std::size_t(n); ++i) {
        if (count_visible(dst->src[4], i) != plan_->ubatch_visible[ubatch.first_row + i]) {
            return false;
        }
    }
    return true;
}

/** The micro-batch whose rows an op gets; NULL, with `error` set, if there is none. */
const Ubatch *Attention::ubatch_of(const Layer &layer, const ggml_tensor *dst) {
    if (!plan_) {
        error.set(SKC_STATUS_INVALID_ARGUMENT,
                  "llama_decode was called directly: batches must go through sinkcache::LlamaContext::decode()");
        return nullptr;
    }
    if (error.is_set()) {
        return nullptr;
    }
    const std::size_t index = layer.n_ubatches.load(std::memory_order_relaxed);
    if (index >= plan_->ubatches.size() || !are_rows_of(layer, plan_->ubatches[index], dst)) {
        error.set(SKC_STATUS_INTERNAL, "layer " + std::to_string(layer.index) + ": llama.cpp computes " +
                                           std::to_string(dst->ne[2]) +
                                           " tokens that do not match micro-batch " + std::to_string(index) +
                                           " of the batch");
        return nullptr;
    }
    return &plan_->ubatches[index];
}

namespace {

std::int64_t stride(const ggml_tensor *t, int dim) { return static_cast<std::int64_t>(t->nb[dim] / sizeof(float)); }

/** Waits for what a CUDA cache has begun. */
skc_status wait_for(const LayerCache &place, llama_seq_id seq_id) {
    skc_sequence_info info{};
    info.struct_size = sizeof info;
    info.flags = SKC_READ_BACK;
    return skc_seq_info(place.cache, place.layer, seq_id, &info);
}

}  // namespace

/** Arguments of skc_attend, and of skc_step without k and v. */
template <class Args>
Args Attention::args_of(const Layer &layer, const Ubatch &ubatch, const ggml_tensor *dst) {
    Args args{};
    args.struct_size = sizeof args;
    args.layer = layer.place.layer;
    args.n_entries = static_cast<std::uint32_t>(ubatch.seq_ids.size());
    args.seq_ids = ubatch.seq_ids.data();
    args.n_tokens = ubatch.n_tokens.data();
    args.q = dst->src[0]->data;
    args.q_head_stride = stride(dst->src[0], 1);
    args.q_token_stride = stride(dst->src[0], 2);
    args.out = dst->data;
    args.out_head_stride = stride(dst, 1);
    args.out_token_stride = stride(dst, 2);
    return args;
}

/** One thread's share of an op. @return false, with `error` set, if it was not computed */
bool Attention::attend(const Layer &layer, ggml_tensor *dst, int ith, int nth) {
    const Ubatch *const ubatch = ubatch_of(layer, dst);
    if (!ubatch) {
        return false;
    }
    const LayerCache &place = layer.place;
    const bool on_device = layer.device != ON_CPU;
    // Kernels would read the host's memory.
    const ggml_tensor *const tensors[] = {dst, dst->src[0], dst->src[1], dst->src[2]};
    for (const ggml_tensor *t : tensors) {
        if (on_device && cuda_device_of(t) != layer.device) {
            error.set(SKC_STATUS_INTERNAL, "layer " + std::to_string(layer.index) + ": llama.cpp has put '" + t->name +
                                               "' elsewhere than the layer's weights, which are on a GPU");
            return false;
        }
    }
    skc_status status = SKC_STATUS_OK;
    if (layer.shares) {
        const auto args = args_of<skc_attend_args>(layer, *ubatch, dst);
        status = skc_attend(place.cache, &args);
    } else {
        const ggml_tensor *k = dst->src[1], *v = dst->src[2];
        auto args = args_of<skc_step_args>(layer, *ubatch, dst);
        args.k = k->data;
        args.k_head_stride = stride(k, 1);
        args.k_token_stride = stride(k, 2);
        args.v = v->data;
        args.v_head_stride = dst->ne[0];
        args.v_token_stride = stride(v, 1);
        status = on_device ? skc_step(place.cache, &args)
                                 : skc_step_part(place.cache, &args, static_cast<std::uint32_t>(ith),
                                                 static_cast<std::uint32_t>(nth));
    }
    if (status == SKC_STATUS_OK && on_device) {
        status = wait_for(place, ubatch->seq_ids.front());
    }
    if (status != SKC_STATUS_OK) {
        error.set(status, "layer " + std::to_string(layer.index) + ": " + skc_last_error());
        return false;
    }
    return true;
}

}  // namespace llama_cpp
}  // namespace sinkcache
