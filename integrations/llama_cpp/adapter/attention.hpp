// The custom op that takes the place of FLASH_ATTN_EXT, and what it shares with the threads that run it.
#ifndef SINKCACHE_LLAMA_ATTENTION_HPP
#define SINKCACHE_LLAMA_ATTENTION_HPP

#include "batch.hpp"
#include "graph.hpp"

#include "sinkcache.hpp"

#include <ggml.h>
#include <llama.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** An error that waits for the caller: an op cannot return one. */
class Failure {
public:
    /** Keeps the first one. Any thread. */
    void set(skc_status status, const std::string &text);
    bool is_set() const noexcept { return set_.load(std::memory_order_acquire); }
    /** Throws it if there is one, and forgets it. */
    void take();

private:
    std::atomic<bool> set_{false};
    std::mutex mutex_;
    skc_status status_ = SKC_STATUS_OK;
    std::string text_;
};

/**
 * Attention of all layers of one context. Ops run in several threads at once, each with a share of the KV heads; ggml puts
 * a barrier behind every op, and none inside.
 */
class Attention {
public:
    explicit Attention(std::size_t n_layers);

    /** Turns the attention nodes of a graph into ops of this object. */
    void install(ggml_context *ctx, const std::vector<LayerNodes> &layers);
    void use(skc_cache *cache) { cache_ = cache; }

    /** Between begin and end ops may run, on `job`, which must live as long. `n_ubatch`: rows of a full micro-batch. */
    void begin(const Job &job, std::uint32_t n_ubatch);
    /** @return Rows that the layer with the fewest has seen. */
    std::int64_t end();

    Failure failure;

private:
    struct Layer {
        Attention *self = nullptr;
        std::uint32_t index = 0;
        /** Rows of the job that have been done, changed by the last thread to leave an op. */
        std::atomic<std::int64_t> rows{0};
        std::atomic<int> left{0};
    };

    static void op(ggml_tensor *dst, int ith, int nth, void *layer);
    void run(Layer &layer, ggml_tensor *dst, int ith, int nth);
    bool step(Layer &layer, ggml_tensor *dst, int ith, int nth);

    std::unique_ptr<Layer[]> layers_;
    std::size_t n_layers_;
    skc_cache *cache_ = nullptr;
    /** NULL where no op may run. */
    const Job *job_ = nullptr;
    std::int64_t n_ubatch_ = 1;
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_ATTENTION_HPP
