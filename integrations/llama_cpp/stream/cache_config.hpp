// The configuration of a stream's caches.
#ifndef SINKCACHE_LLAMA_CACHE_CONFIG_HPP
#define SINKCACHE_LLAMA_CACHE_CONFIG_HPP

#include "graph.hpp"

#include "sinkcache.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

class OpLoop;

/** Settings of the caches that do not follow from the model or its context. */
struct CacheSettings {
    std::uint32_t n_sink = 4;
    std::uint32_t window = 2044;
    /** SKC_DTYPE_ that K and V are stored in. */
    std::uint32_t k_dtype = SKC_DTYPE_F16, v_dtype = SKC_DTYPE_F16;
    std::uint32_t n_seqs = 1;
    /** Raised to n_ubatch if that is more. */
    std::uint32_t max_rewind = 64;
    std::uint32_t max_pinned = 0, max_segments = 0;
};

/** Of a context: rows of a micro-batch, cells of llama.cpp's own cache, and threads of an op. */
struct ContextSizes {
    std::uint32_t n_ubatch = 1, n_ctx = 0, n_threads = 1;
};

/** Where the attention of a layer finds its K and V. */
struct LayerPlace {
    std::size_t cache = 0;
    std::uint32_t layer = 0;
};

/**
 * Configurations of the caches, with the arrays that they point to: one for all layers on one device whose heads have
 * the same counts and dims. A layer that reads another's K and V has none of its own.
 */
class CacheConfigs {
public:
    /**
     * `windows`: of each layer, the model's own sliding window, or 0. `loop`: the parallel loop of caches with layers
     * that read another's; it must live as long as the caches.
     *
     * @throws Error SKC_STATUS_INVALID_CONFIG with the layer and the reason
     */
    CacheConfigs(const std::vector<LayerShape> &shapes, const std::vector<std::uint32_t> &windows,
                 const CacheSettings &settings, const ContextSizes &sizes, OpLoop &loop);

    const std::vector<Config> &configs() const { return configs_; }
    /** One for each layer of the model. */
    const std::vector<LayerPlace> &places() const { return places_; }
    /** Bytes that the caches will allocate, on the host and on devices. @throws Error as Config::bytes() */
    std::uint64_t bytes() const;

private:
    struct LayerArrays {
        std::vector<float> inv_freq, sink_logits;
    };

    static skc_layer_config layer_config(const LayerShape &shape, std::uint32_t sliding_window,
                                         const CacheSettings &settings, LayerArrays &arrays);

    std::vector<LayerArrays> arrays_;
    std::vector<Config> configs_;
    std::vector<LayerPlace> places_;
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_CACHE_CONFIG_HPP
