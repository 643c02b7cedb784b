/*
 * sinkcache for C++17: ownership, exceptions and spans over sinkcache.h, which says what every call does.
 * MIT OR Apache-2.0.
 */
#ifndef SINKCACHE_HPP
#define SINKCACHE_HPP

#include "sinkcache.h"

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sinkcache {

/** A call that failed: its status, and as what() the library's text. */
class Error : public std::runtime_error {
public:
    Error(skc_status status, const std::string &text)
        : std::runtime_error(std::string(skc_status_name(status)) + ": " + text), status_(status) {}

    skc_status status() const noexcept { return status_; }

private:
    skc_status status_;
};

/** Throws what a failed call has left as its text. */
inline void check(skc_status status) {
    if (status != SKC_STATUS_OK) {
        throw Error(status, skc_last_error());
    }
}

/** Elements of somebody else, read during one call. */
template <class T>
class Span {
public:
    constexpr Span() = default;
    constexpr Span(const T *data, std::size_t size) : data_(data), size_(size) {}
    /** Lives as long as the expression it is written in: pass it, do not keep it. */
    constexpr Span(std::initializer_list<T> list) : size_(list.size()) {
        // Not an initializer: GCC takes every span of a list for one that is kept.
        data_ = list.begin();
    }
    template <class C, class = decltype(std::declval<const C &>().data(), std::declval<const C &>().size())>
    constexpr Span(const C &container) : data_(container.data()), size_(container.size()) {}

    constexpr const T *data() const { return data_; }
    constexpr std::size_t size() const { return size_; }

private:
    const T *data_ = nullptr;
    std::size_t size_ = 0;
};

/** Input rows; strides in elements, 0 = packed. */
struct In {
    const void *data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;
};

/** Output rows; strides in elements, 0 = packed. */
struct Out {
    void *data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;
};

/** Where log-sum-exps go; the default wants none. */
struct Lse {
    float *data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;
};

/** A ragged batch: entry i is n_tokens[i] rows of sequence seq_ids[i]. */
struct Batch {
    Span<std::int32_t> seq_ids;
    Span<std::int32_t> n_tokens;
};

/**
 * A ragged batch whose ids and counts lie in device memory (SKC_ON_DEVICE), `n_entries` of each. The tensors have `n_rows`
 * rows, an entry at most `max_tokens`.
 */
struct DeviceBatch {
    const std::int32_t *seq_ids = nullptr;
    const std::int32_t *n_tokens = nullptr;
    std::uint32_t n_entries = 0;
    std::uint64_t n_rows = 0;
    std::uint32_t max_tokens = 0;
};

/** Settings of a layer, with defaults. Arrays it points to must live until the cache is made. */
struct Layer : skc_layer_config {
    Layer() : skc_layer_config() { check(skc_layer_config_init(this, sizeof(skc_layer_config))); }
    Layer(std::uint32_t sinks, std::uint32_t recent) : Layer() {
        n_sink = sinks;
        window = recent;
    }
};

/** Settings of a cache, with defaults; the setters return the object so that they can be chained. */
class Config {
public:
    Config() { check(skc_cache_config_init(&c_, sizeof c_)); }

    Config &heads(std::uint32_t n_q_heads, std::uint32_t n_kv_heads, std::uint32_t dim, std::uint32_t dim_v = 0) {
        c_.n_q_heads = n_q_heads;
        c_.n_kv_heads = n_kv_heads;
        c_.head_dim = dim;
        c_.head_dim_v = dim_v;
        return *this;
    }
    /** SKC_DTYPE_ of the inputs, of K and V as stored, and of out; 0 = as in. */
    Config &types(std::uint32_t in, std::uint32_t kv, std::uint32_t out = 0) {
        c_.in_dtype = in;
        c_.kv_dtype = kv;
        c_.out_dtype = out;
        return *this;
    }
    Config &seqs(std::uint32_t n) { return c_.n_seqs = n, *this; }
    Config &max_chunk(std::uint32_t n) { return c_.max_chunk = n, *this; }
    Config &max_rewind(std::uint32_t n) { return c_.max_rewind = n, *this; }
    Config &threads(std::uint32_t n) { return c_.n_threads = n, *this; }
    /** On a CUDA device: its primary context, or the CUcontext given. */
    Config &cuda(std::uint32_t device = 0, void *context = nullptr) {
        c_.backend = SKC_BACKEND_CUDA;
        c_.cuda_device = device;
        c_.cuda_context = context;
        return *this;
    }
    /** `n` layers alike. */
    Config &layers(std::uint32_t n, const skc_layer_config &one) {
        c_.n_layers = n;
        layers_.assign(1, one);
        return *this;
    }
    /** Layers that differ. */
    template <class Each>
    Config &layers(const std::vector<Each> &each) {
        c_.n_layers = static_cast<std::uint32_t>(each.size());
        layers_.assign(each.begin(), each.end());
        return *this;
    }
    /** Everything else; layers and their number are set from this object. */
    skc_cache_config &raw() { return c_; }

    /** As the C calls take it, valid while this object is neither changed nor destroyed. */
    skc_cache_config get() const {
        skc_cache_config c = c_;
        c.layers = layers_.data();
        c.n_layer_configs = static_cast<std::uint32_t>(layers_.size());
        c.layer_stride = sizeof(skc_layer_config);
        return c;
    }

    /** Bytes on the host and on the device that a cache will take. */
    std::pair<std::uint64_t, std::uint64_t> bytes() const {
        const skc_cache_config c = get();
        std::pair<std::uint64_t, std::uint64_t> n{};
        check(skc_cache_bytes(&c, &n.first, &n.second));
        return n;
    }

private:
    skc_cache_config c_{};
    std::vector<skc_layer_config> layers_{1, Layer()};
};

/** A cache. Moved, not copied; destroyed with the object. */
class Cache {
public:
    explicit Cache(const Config &config) : Cache(config.get()) {}
    explicit Cache(const skc_cache_config &config) { check(skc_create_cache(&config, &handle_)); }
    Cache(Cache &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), stream_(std::exchange(other.stream_, nullptr)) {}
    Cache &operator=(Cache &&other) noexcept {
        Cache(std::move(other)).swap(*this);
        return *this;
    }
    /** A cache that is busy cannot be destroyed and lives on: end its calls first. */
    ~Cache() {
        if (handle_) {
            skc_destroy_cache(handle_);
        }
    }

    void swap(Cache &other) noexcept {
        std::swap(handle_, other.handle_);
        std::swap(stream_, other.stream_);
    }
    /** The CUstream or cudaStream_t that calls put their work into from here on; NULL = the legacy default stream. */
    void stream(void *stream) noexcept { stream_ = stream; }
    skc_cache *handle() const noexcept { return handle_; }
    /** Gives up ownership. */
    skc_cache *release() noexcept { return std::exchange(handle_, nullptr); }
    /** Destroys now, and throws where the destructor would have to keep silent. */
    void close() {
        check(skc_destroy_cache(handle_));
        handle_ = nullptr;
    }

    void append_kv(std::uint32_t layer, const Batch &batch, In k, In v) {
        auto a = with_batch<skc_append_kv_args>(layer, batch);
        set_kv(a, k, v);
        check(skc_append_kv(handle_, &a));
    }
    void attend(std::uint32_t layer, const Batch &batch, In q, Out out, Lse lse = {}) {
        auto a = with_batch<skc_attend_args>(layer, batch);
        set_q(a, q, out, lse);
        check(skc_attend(handle_, &a));
    }
    void step(std::uint32_t layer, const Batch &batch, In k, In v, In q, Out out, Lse lse = {}) {
        auto a = with_batch<skc_step_args>(layer, batch);
        set_kv(a, k, v), set_q(a, q, out, lse);
        check(skc_step(handle_, &a));
    }
    void append_kv(std::uint32_t layer, const DeviceBatch &batch, In k, In v) {
        auto a = with_batch<skc_append_kv_args>(layer, batch);
        set_kv(a, k, v);
        check(skc_append_kv(handle_, &a));
    }
    void attend(std::uint32_t layer, const DeviceBatch &batch, In q, Out out, Lse lse = {}) {
        auto a = with_batch<skc_attend_args>(layer, batch);
        set_q(a, q, out, lse);
        check(skc_attend(handle_, &a));
    }
    void step(std::uint32_t layer, const DeviceBatch &batch, In k, In v, In q, Out out, Lse lse = {}) {
        auto a = with_batch<skc_step_args>(layer, batch);
        set_kv(a, k, v), set_q(a, q, out, lse);
        check(skc_step(handle_, &a));
    }
    void step_part(std::uint32_t layer, const Batch &batch, In k, In v, In q, Out out, Lse lse, std::uint32_t ith,
                   std::uint32_t nth) {
        auto a = with_batch<skc_step_args>(layer, batch);
        set_kv(a, k, v), set_q(a, q, out, lse);
        check(skc_step_part(handle_, &a, ith, nth));
    }

    void evict(Span<std::int32_t> seq_ids, Span<std::int32_t> n_tokens) {
        auto a = sized<skc_evict_args>(seq_ids, n_tokens.size());
        a.seq_ids = seq_ids.data(), a.n_tokens = n_tokens.data();
        check(skc_evict(handle_, &a));
    }
    void rewind(Span<std::int32_t> seq_ids, Span<std::int32_t> n_tokens) {
        auto a = sized<skc_rewind_args>(seq_ids, n_tokens.size());
        a.seq_ids = seq_ids.data(), a.n_tokens = n_tokens.data();
        check(skc_rewind(handle_, &a));
    }
    void reset(Span<std::int32_t> seq_ids, Span<std::uint64_t> start_positions = {}) {
        auto a = sized<skc_reset_args>(seq_ids, start_positions.data() ? start_positions.size() : seq_ids.size());
        a.seq_ids = seq_ids.data(), a.start_positions = start_positions.data();
        check(skc_reset(handle_, &a));
    }
    void fork(Span<std::int32_t> src, Span<std::int32_t> dst) {
        auto a = sized<skc_fork_args>(src, dst.size());
        a.src_seq_ids = src.data(), a.dst_seq_ids = dst.data();
        check(skc_fork(handle_, &a));
    }
    /** All sequences. */
    void abort_step() {
        const auto a = sized<skc_abort_step_args>({}, 0);
        check(skc_abort_step(handle_, &a));
    }
    /** These; of an empty list none. */
    void abort_step(Span<std::int32_t> seq_ids) {
        const std::int32_t none = SKC_PADDING;
        auto a = sized<skc_abort_step_args>(seq_ids, seq_ids.size());
        a.seq_ids = seq_ids.size() ? seq_ids.data() : &none;
        check(skc_abort_step(handle_, &a));
    }

    /** What replayed graphs have appended, or where negative cut, in one layer or in all. */
    void note_replay(Span<std::int32_t> seq_ids, Span<std::int32_t> n_tokens, std::uint32_t layer = SKC_ALL_LAYERS) {
        if (seq_ids.size() != n_tokens.size()) {
            throw Error(SKC_STATUS_INVALID_ARGUMENT, std::to_string(seq_ids.size()) + " sequence ids for " +
                                                         std::to_string(n_tokens.size()) + " values");
        }
        skc_note_replay_args a{};
        a.struct_size = sizeof a;
        a.layer = layer, a.n_entries = static_cast<std::uint32_t>(seq_ids.size());
        a.seq_ids = seq_ids.data(), a.n_tokens = n_tokens.data();
        check(skc_note_replay(handle_, &a));
    }
    /** What the device has skipped since the last time: nothing where n_skipped is 0. */
    skc_device_error poll_error() {
        skc_device_error e{};
        e.struct_size = sizeof e;
        check(skc_poll_error(handle_, &e));
        return e;
    }

    /** `read_back`: wait for the stream and ask the device. */
    skc_sequence_info info(std::int32_t seq_id, std::uint32_t layer = 0, bool read_back = false) const {
        skc_sequence_info i{};
        i.struct_size = sizeof i;
        i.flags = read_back ? SKC_READ_BACK : 0;
        check(skc_seq_info(handle_, layer, seq_id, &i));
        return i;
    }
    /** The kernel of a call (SKC_CALL_APPEND, SKC_CALL_ATTEND, SKC_CALL_STEP) on tokens of sequences. */
    skc_kernel_info kernel_choice(std::uint32_t call, std::uint32_t n_entries, std::uint32_t n_tokens,
                                  std::uint32_t layer = 0) const {
        skc_kernel_info i{};
        i.struct_size = sizeof i;
        check(skc_kernel_choice(handle_, layer, call, n_entries, n_tokens, &i));
        return i;
    }

private:
    skc_cache *handle_ = nullptr;
    void *stream_ = nullptr;

    template <class Args>
    Args sized(Span<std::int32_t> ids, std::size_t others) const {
        if (ids.size() != others || ids.size() > std::numeric_limits<std::uint32_t>::max()) {
            throw Error(SKC_STATUS_INVALID_ARGUMENT, std::to_string(ids.size()) + " sequence ids for " +
                                                         std::to_string(others) + " values");
        }
        Args a{};
        a.struct_size = sizeof a;
        a.n_entries = static_cast<std::uint32_t>(others);
        a.stream = stream_;
        return a;
    }
    template <class Args>
    Args with_batch(std::uint32_t layer, const Batch &batch) const {
        auto a = sized<Args>(batch.seq_ids, batch.n_tokens.size());
        a.layer = layer, a.seq_ids = batch.seq_ids.data(), a.n_tokens = batch.n_tokens.data();
        return a;
    }
    template <class Args>
    Args with_batch(std::uint32_t layer, const DeviceBatch &batch) const {
        Args a{};
        a.struct_size = sizeof a, a.flags = SKC_ON_DEVICE;
        a.layer = layer, a.n_entries = batch.n_entries;
        a.seq_ids = batch.seq_ids, a.n_tokens = batch.n_tokens;
        a.n_rows = batch.n_rows, a.max_tokens = batch.max_tokens;
        a.stream = stream_;
        return a;
    }
    template <class Args>
    static void set_kv(Args &a, In k, In v) {
        a.k = k.data, a.k_token_stride = k.token_stride, a.k_head_stride = k.head_stride;
        a.v = v.data, a.v_token_stride = v.token_stride, a.v_head_stride = v.head_stride;
    }
    template <class Args>
    static void set_q(Args &a, In q, Out out, Lse lse) {
        a.q = q.data, a.q_token_stride = q.token_stride, a.q_head_stride = q.head_stride;
        a.out = out.data, a.out_token_stride = out.token_stride, a.out_head_stride = out.head_stride;
        a.lse = lse.data, a.lse_token_stride = lse.token_stride, a.lse_head_stride = lse.head_stride;
    }
};

}  // namespace sinkcache

#endif  // SINKCACHE_HPP
