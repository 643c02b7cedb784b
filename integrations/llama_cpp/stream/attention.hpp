// The custom op that replaces FLASH_ATTN_EXT nodes.
#ifndef SINKCACHE_LLAMA_ATTENTION_HPP
#define SINKCACHE_LLAMA_ATTENTION_HPP

#include "batch.hpp"
#include "errors.hpp"
#include "graph.hpp"
#include "op_loop.hpp"

#include "sinkcache.hpp"

#include <ggml.h>
#include <llama.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** The cache that a layer attends with, and its layer there. */
struct LayerCache {
    skc_cache *cache = nullptr;
    std::uint32_t layer = 0;
};

/**
 * Attention of all layers of one context. ggml runs an op in all its threads, with a barrier after the op and none
 * inside: each thread calls skc_step_part for its share of the KV heads. A layer that reads the K and V of an earlier
 * one calls skc_attend for what that has appended, and its threads are the cache's parallel loop.
 */
class Attention {
public:
    /** `n_layers`: at least as many as have attention. */
    explicit Attention(std::size_t n_layers);

    /** Whether the attention of a graph has been replaced already, of this object or another one. */
    static bool is_installed(ggml_cgraph *graph);
    /** Whether a node is an op of this class, for a layer on a CUDA device, or with ON_CPU on none. */
    static bool is_op_of(const ggml_tensor *node, std::int32_t device);
    /**
     * Replaces the attention nodes of a graph by ops of this object, which must outlive the graph. `with_masks`: ops
     * get their masks, for a probe. Those without positions get them always. All graphs have equally many layers.
     */
    void install(ggml_context *ctx, const std::vector<LayerNodes> &layers, bool with_masks);
    /** From begin_probe() on ops compute nothing, and count what their masks let the first row see. */
    void begin_probe();
    /** The counts, one for each layer. */
    std::vector<std::int64_t> end_probe();
    /** What ops compute with, one for each layer; the caches must live until the last graph has run. */
    void set_caches(const std::vector<LayerCache> &caches);
    /** The parallel loop of those caches. */
    OpLoop &loop() const { return *loop_; }

    /** Ops may run between begin() and end(), on `plan`, which must live until end(). */
    void begin(const BatchPlan &plan);
    /** @return Micro-batches that every layer has computed: the minimum over the layers */
    std::size_t end();

    /** The first error of an op. */
    DeferredError error;

private:
    struct Layer {
        Attention *owner = nullptr;
        std::uint32_t index = 0;
        LayerCache place;
        /** Whether it reads the K and V of an earlier layer. */
        bool shares = false;
        /** The CUDA device of its cache and of the tensors of its op, or ON_CPU. */
        std::int32_t device = ON_CPU;
        /** Whether its op gets positions. Otherwise it knows its rows by its mask. */
        bool has_positions = true;
        /** Micro-batches computed so far, changed by the last thread to finish an op. */
        std::atomic<std::size_t> n_ubatches{0};
        /** Threads that have finished the current op. */
        std::atomic<int> n_finished{0};
        /** Tokens that the mask of a probe shows. */
        std::atomic<std::int64_t> n_visible{0};
    };

    static const Layer *layer_of(const ggml_tensor *node);
    static void op(ggml_tensor *dst, int ith, int nth, void *layer);
    void run(Layer &layer, ggml_tensor *dst, int ith, int nth);
    bool attend(const Layer &layer, ggml_tensor *dst, int ith, int nth);
    template <class Args>
    static Args args_of(const Layer &layer, const Ubatch &ubatch, const ggml_tensor *dst);
    const Ubatch *ubatch_of(const Layer &layer, const ggml_tensor *dst);
    bool are_rows_of(const Layer &layer, const Ubatch &ubatch, const ggml_tensor *dst) const;

    std::unique_ptr<Layer[]> layers_;
    std::size_t n_layers_;
    std::unique_ptr<OpLoop> loop_ = std::make_unique<OpLoop>();
    /** NULL while no op may run. */
    const BatchPlan *plan_ = nullptr;
    bool probing_ = false;
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_ATTENTION_HPP
