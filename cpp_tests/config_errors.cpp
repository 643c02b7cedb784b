// Invalid configurations: skc_create_cache and skc_cache_bytes reject them with a text that names the value.
#include "support/host.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <functional>

namespace {

using Cache = skc_cache_config;
using Layer = skc_layer_config;

/** An array that starts with NaN, long enough for every list of a layer. */
const float NUMBERS[600] = {NAN};

void set_inv_freq(Layer &l, std::uint32_t n) {
    l.inv_freq = NUMBERS;
    l.n_inv_freq = n;
}

void set_alibi_slopes(Layer &l, std::uint32_t n) {
    l.alibi_slopes = NUMBERS;
    l.n_alibi_slopes = n;
}

void set_sink_logits(Layer &l, std::uint32_t n) {
    l.sink_logits = NUMBERS;
    l.n_sink_logits = n;
}


/** A change to a valid configuration, and a part of the error text. */
struct Case {
    const char *text;
    std::function<void(Cache &, Layer &)> change;
};

const std::vector<Case> CASES = {
    {"backend is 0", [](Cache &c, Layer &) { c.backend = 0; }},
    {"backend is 77", [](Cache &c, Layer &) { c.backend = 77; }},
    {"n_layers is 0", [](Cache &c, Layer &) { c.n_layers = 0; }},
    {"n_layers is 65537", [](Cache &c, Layer &) { c.n_layers = 65537; }},
    {"n_seqs is 0", [](Cache &c, Layer &) { c.n_seqs = 0; }},
    {"n_seqs is 16777217", [](Cache &c, Layer &) { c.n_seqs = (1u << 24) + 1; }},
    {"n_q_heads is 0", [](Cache &c, Layer &) { c.n_q_heads = 0; }},
    {"n_q_heads is 65537", [](Cache &c, Layer &) { c.n_q_heads = 65537; }},
    {"n_kv_heads is 0", [](Cache &c, Layer &) { c.n_kv_heads = 0; }},
    {"n_kv_heads 3", [](Cache &c, Layer &) { c.n_kv_heads = 3; }},
    {"head_dim is 0", [](Cache &c, Layer &) { c.head_dim = 0; }},
    {"head_dim is 12", [](Cache &c, Layer &) { c.head_dim = 12; }},
    {"head_dim is 520", [](Cache &c, Layer &) { c.head_dim = 520; }},
    {"head_dim_v is 4", [](Cache &c, Layer &) { c.head_dim_v = 4; }},
    {"head_dim_v is 4294967288", [](Cache &c, Layer &) { c.head_dim_v = UINT32_MAX - 7; }},
    {"in_dtype is 0", [](Cache &c, Layer &) { c.in_dtype = 0; }},
    {"in_dtype is 4", [](Cache &c, Layer &) { c.in_dtype = 4; }},
    {"out_dtype is 9", [](Cache &c, Layer &) { c.out_dtype = 9; }},
    {"kv_dtype is 0", [](Cache &c, Layer &) { c.kv_dtype = 0; }},
    {"kv_dtype is 6", [](Cache &c, Layer &) { c.kv_dtype = 6; }},
    {"k_dtype is 6", [](Cache &c, Layer &) { c.k_dtype = 6; }},
    {"v_dtype is 4294967295", [](Cache &c, Layer &) { c.v_dtype = UINT32_MAX; }},
    {"in_dtype is 4", [](Cache &c, Layer &) { c.in_dtype = SKC_DTYPE_Q8; }},
    {"out_dtype is 5", [](Cache &c, Layer &) { c.out_dtype = SKC_DTYPE_Q4; }},
    {"max_chunk is 0", [](Cache &c, Layer &) { c.max_chunk = 0; }},
    {"max_chunk is 1073741825", [](Cache &c, Layer &) { c.max_chunk = (1u << 30) + 1; }},
    {"max_rewind is 4294967295", [](Cache &c, Layer &) { c.max_rewind = UINT32_MAX; }},
    {"n_threads is 0", [](Cache &c, Layer &) { c.n_threads = 0; }},
    {"n_threads is 1025", [](Cache &c, Layer &) { c.n_threads = 1025; }},
    {"n_layer_configs is 0", [](Cache &c, Layer &) { c.n_layer_configs = 0; }},
    {"n_layer_configs is 65537", [](Cache &c, Layer &) { c.n_layer_configs = 65537; }},
    {"layer_stride is 8", [](Cache &c, Layer &) { c.layer_stride = 8; }},
    {"layer_stride is 129", [](Cache &c, Layer &) { c.layer_stride = 129; }},
    {"layer_stride is 18446744073709551615", [](Cache &c, Layer &) { c.layer_stride = UINT64_MAX; }},
    {"window is 0", [](Cache &, Layer &l) { l.window = 0; }},
    {"max_pinned is 16777217", [](Cache &, Layer &l) { l.max_pinned = (1u << 24) + 1; }},
    {"max_segments is 1025", [](Cache &, Layer &l) { l.max_segments = 1025; }},
    {"max_segments is 4294967295", [](Cache &, Layer &l) { l.max_segments = UINT32_MAX; }},
    {"position_mode is 0", [](Cache &, Layer &l) { l.position_mode = 0; }},
    {"position_mode is 5", [](Cache &, Layer &l) { l.position_mode = 5; }},
    {"rope_style is 3", [](Cache &, Layer &l) { l.rope_style = 3; }},
    {"rope_dim is 7", [](Cache &, Layer &l) { l.rope_dim = 7; }},
    {"rope_dim is 18", [](Cache &, Layer &l) { l.rope_dim = 18; }},
    {"rope_base is 0", [](Cache &, Layer &l) { l.rope_base = 0; }},
    {"rope_base is -1", [](Cache &, Layer &l) { l.rope_base = -1; }},
    {"rope_base is NaN", [](Cache &, Layer &l) { l.rope_base = NAN; }},
    {"rope_scale is inf", [](Cache &, Layer &l) { l.rope_scale = INFINITY; }},
    {"rope_mscale is 0", [](Cache &, Layer &l) { l.rope_mscale = 0; }},
    {"scale is -2", [](Cache &, Layer &l) { l.scale = -2; }},
    {"scale is NaN", [](Cache &, Layer &l) { l.scale = NAN; }},
    {"softcap is -1", [](Cache &, Layer &l) { l.softcap = -1; }},
    {"n_inv_freq is 7", [](Cache &, Layer &l) { set_inv_freq(l, 7); }},
    {"inv_freq[0] is NaN", [](Cache &, Layer &l) { set_inv_freq(l, 8); }},
    {"n_inv_freq is 4294967295", [](Cache &, Layer &l) { set_inv_freq(l, UINT32_MAX); }},
    {"alibi_slopes has 4", [](Cache &, Layer &l) { set_alibi_slopes(l, 4); }},
    {"alibi_slopes has 0", [](Cache &, Layer &l) { l.position_mode = SKC_POSITION_ALIBI; }},
    {"alibi_slopes[0] is NaN",
     [](Cache &, Layer &l) {
         l.position_mode = SKC_POSITION_ALIBI;
         set_alibi_slopes(l, 4);
     }},
    {"n_sink_logits is 3", [](Cache &, Layer &l) { set_sink_logits(l, 3); }},
    {"sink_logits[0] is NaN", [](Cache &, Layer &l) { set_sink_logits(l, 4); }},
};

TEST(ConfigErrors, EachValueIsNamed) {
    for (const Case &it : CASES) {
        SCOPED_TRACE(it.text);
        sinkcache::Layer layer;
        const auto owner = host::config();
        auto config = owner.get();
        config.layers = &layer;
        config.layer_stride = 0;
        it.change(config, layer);
        skc_cache *cache = nullptr;
        std::uint64_t host_bytes = 1, device_bytes = 2;
        EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_CONFIG, it.text);
        EXPECT_REJECTED(skc_cache_bytes(&config, &host_bytes, &device_bytes), SKC_STATUS_INVALID_CONFIG, it.text);
        EXPECT_EQ(cache, nullptr);
        EXPECT_EQ(host_bytes + device_bytes, 3u);
    }
}

TEST(ConfigErrors, TheLayerIsNamed) {
    std::vector<sinkcache::Layer> layers(3);
    layers[2].window = 0;
    const auto owner = host::config().layers(layers);
    const auto config = owner.get();
    skc_cache *cache = nullptr;
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_CONFIG, "layer 2: window is 0");
}

// An invalid number of layers is rejected before any element is read that may not exist.
TEST(ConfigErrors, NumberOfLayerConfigs) {
    std::vector<sinkcache::Layer> layers(4);
    for (std::size_t i = 1; i < layers.size(); i++) {
        std::memset(static_cast<void *>(&layers[i]), 0xCC, sizeof layers[i]);
    }
    const auto owner = host::config();
    auto config = owner.get();
    config.layers = layers.data();
    for (const auto &[n_layers, n_configs] : {std::pair{1u, 2u}, {3u, 2u}, {2u, 4u}, {1u, 65536u}}) {
        config.n_layers = n_layers;
        config.n_layer_configs = n_configs;
        skc_cache *cache = nullptr;
        EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_CONFIG, std::to_string(n_configs));
        EXPECT_EQ(cache, nullptr);
    }
}

TEST(ConfigErrors, Pointers) {
    const auto owner = host::config();
    auto config = owner.get();
    skc_cache *cache = nullptr;
    config.layers = nullptr;
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_NULL_POINTER, "skc_layer_config is NULL");
    sinkcache::Layer layer;
    config.layers = reinterpret_cast<const skc_layer_config *>(reinterpret_cast<std::uintptr_t>(&layer) + 4);
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_ARGUMENT, "not aligned");
    config.layers = &layer;
    layer.n_inv_freq = 8;
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_NULL_POINTER, "inv_freq is NULL");
    layer.inv_freq = reinterpret_cast<const float *>(reinterpret_cast<std::uintptr_t>(&NUMBERS[1]) + 2);
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_ARGUMENT, "inv_freq");
    const auto good = host::config();
    const auto fine = good.get();
    auto *misaligned = reinterpret_cast<skc_cache **>(reinterpret_cast<std::uintptr_t>(&cache) + 1);
    EXPECT_REJECTED(skc_create_cache(&fine, misaligned), SKC_STATUS_INVALID_ARGUMENT, "cache");
    EXPECT_EQ(cache, nullptr);
}

TEST(ConfigErrors, ExtremesThatAreAllowed) {
    sinkcache::Layer layer(0, 1);
    layer.rope_dim = 2;
    sinkcache::Config c;
    c.heads(1, 1, 8, 512).max_chunk(1).max_rewind(0).layers(1, layer);
    sinkcache::Cache cache(c);
    EXPECT_EQ(host::info(cache.handle()).room, 1u);
}

/** `n` floats that end where no memory is mapped. */
class AtTheEndOfMemory {
public:
    explicit AtTheEndOfMemory(std::size_t n) : n_(n) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        bytes_ = 2 * page;
        memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory_ == MAP_FAILED || mprotect(static_cast<char *>(memory_) + page, page, PROT_NONE) != 0) {
            std::abort();
        }
        end_ = static_cast<char *>(memory_) + page;
    }
    AtTheEndOfMemory(const AtTheEndOfMemory &) = delete;
    AtTheEndOfMemory &operator=(const AtTheEndOfMemory &) = delete;
    ~AtTheEndOfMemory() { munmap(memory_, bytes_); }
    const float *floats() const { return reinterpret_cast<const float *>(end_) - n_; }

private:
    std::size_t n_, bytes_;
    void *memory_;
    char *end_;
};

// A wrong count does not say how long the array is: it is rejected before an element is read.
TEST(ConfigErrors, CountsAreCheckedBeforeArraysAreRead) {
    const AtTheEndOfMemory heads(host::Q_HEADS), pairs(host::DIM / 2);
    const auto expect_rejected = [](const char *text, const Layer &layer) {
        const auto owner = host::config();
        auto config = owner.get();
        config.layers = &layer;
        skc_cache *cache = nullptr;
        std::uint64_t host_bytes, device_bytes;
        EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_CONFIG, text);
        EXPECT_REJECTED(skc_cache_bytes(&config, &host_bytes, &device_bytes), SKC_STATUS_INVALID_CONFIG, text);
    };
    for (const std::uint32_t n : {9u, 4096u, 65536u, UINT32_MAX}) {
        sinkcache::Layer sinks, alibi, frequencies;
        sinks.sink_logits = heads.floats();
        sinks.n_sink_logits = n;
        expect_rejected("n_sink_logits is", sinks);
        alibi.position_mode = SKC_POSITION_ALIBI;
        alibi.alibi_slopes = heads.floats();
        alibi.n_alibi_slopes = n;
        expect_rejected("n_alibi_slopes is", alibi);
        frequencies.inv_freq = pairs.floats();
        frequencies.n_inv_freq = n;
        expect_rejected("n_inv_freq is", frequencies);
        frequencies.rope_dim = 2 * n;
        expect_rejected("n_inv_freq is", frequencies);
    }
}

// The numbers that say how long the arrays of a layer are come first.
TEST(ConfigErrors, WrongHeadCountsAreFoundBeforeArraysAreRead) {
    const AtTheEndOfMemory four(host::Q_HEADS);
    sinkcache::Layer layer;
    layer.sink_logits = four.floats();
    const auto owner = host::config();
    for (const std::uint32_t n : {65537u, UINT32_MAX}) {
        auto config = owner.get();
        config.layers = &layer;
        config.n_q_heads = layer.n_sink_logits = n;
        skc_cache *cache = nullptr;
        EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_CONFIG, "n_q_heads is");
    }
}

}  // namespace
