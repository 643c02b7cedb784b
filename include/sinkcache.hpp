/*
 * sinkcache for C++17: ownership, exceptions and spans over the C ABI of sinkcache.h. MIT OR Apache-2.0.
 *
 * Conventions
 * - A call that fails throws sinkcache::Error. The cache is then as it was before the call and outputs are untouched;
 *   after SKC_STATUS_INTERNAL and SKC_STATUS_DEVICE_LOST the cache can only be destroyed. "Throws" below names the
 *   statuses that depend on the call. Every call of a Cache may also throw SKC_STATUS_INVALID_HANDLE (a moved-from,
 *   closed or released Cache), SKC_STATUS_BUSY, SKC_STATUS_INTERNAL and, on CUDA, SKC_STATUS_DEVICE_LOST.
 * - A Cache takes one call at a time. A second one, from another thread or from inside parallel_for, throws
 *   SKC_STATUS_BUSY; only step_part() may be called by several threads together. Different caches are independent:
 *   their calls may run in different threads. The other classes hold plain data, without synchronisation.
 * - Spans and pointers are not owned. On the CPU, and for arrays in host memory, they are read or written during the
 *   call only. On CUDA, tensors and device arrays must live until the stream has executed the work of the call.
 */
#ifndef SINKCACHE_HPP
#define SINKCACHE_HPP

#include "sinkcache.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sinkcache {

/** A call that failed. what() is the name of the status, ": ", and the library's text. */
class Error : public std::runtime_error {
public:
    Error(skc_status status, const std::string &text)
        : std::runtime_error(std::string(skc_status_name(status)) + ": " + text), status_(status) {}

    /** One of the SKC_STATUS_ numbers, never SKC_STATUS_OK. */
    skc_status status() const noexcept { return status_; }

private:
    skc_status status_;
};

/** Throws Error with skc_last_error() unless `status` is SKC_STATUS_OK. Call it on the thread that made the call. */
inline void check(skc_status status) {
    if (status != SKC_STATUS_OK) {
        throw Error(status, skc_last_error());
    }
}

/** A view of consecutive elements that the caller owns; they must live until the call it is passed to returns. */
template <class T>
class Span {
public:
    constexpr Span() = default;
    constexpr Span(const T *data, std::size_t size) : data_(data), size_(size) {}
    /** The elements live until the end of the full expression: pass such a Span to a call, do not store it. */
    constexpr Span(std::initializer_list<T> list) : size_(list.size()) {
        // An assignment, since GCC warns of a dangling pointer where a list initialises the member.
        data_ = list.begin();
    }
    /** A view of a std::vector, std::array or anything else with data() and size(). */
    template <class C, class = decltype(std::declval<const C &>().data(), std::declval<const C &>().size())>
    constexpr Span(const C &container) : data_(container.data()), size_(container.size()) {}

    constexpr const T *data() const { return data_; }
    constexpr std::size_t size() const { return size_; }

private:
    const T *data_ = nullptr;
    std::size_t size_ = 0;
};

/** An input tensor [rows, heads, dims] of the cache's in_dtype. Strides count elements; 0 = packed. */
struct In {
    const void *data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;
};

/** An output tensor [rows, n_q_heads, head_dim_v] of the cache's out_dtype. Strides count elements; 0 = packed. */
struct Out {
    void *data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;
};

/** Output of the natural log of the softmax denominators [rows, n_q_heads]; NULL data = not computed. */
struct Lse {
    float *data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;
};

/** Keys [rows, n_kv_heads, head_dim] and values [rows, n_kv_heads, head_dim_v] of the new tokens of a batch. */
struct KvRows {
    In k = {};
    In v = {};
};

/** Queries [rows, n_q_heads, head_dim] of a batch, and where their results go. */
struct QueryRows {
    In q = {};
    Out out = {};
    Lse lse = {};
};

/**
 * A ragged batch with its arrays in host memory: entry i is n_tokens[i] rows of sequence seq_ids[i], rows packed in the
 * order of the entries. SKC_PADDING as id, or a count of 0, skips the entry. A sequence may appear once.
 *
 * in_step (SKC_IN_STEP): an append or a step is refused where a sequence's layers are not as a forward pass in order
 * leaves them, for example when the pass before was interrupted between layers. For attend() it means nothing.
 */
struct Batch {
    Span<std::int32_t> seq_ids;
    Span<std::int32_t> n_tokens;
    bool in_step = false;
};

/**
 * A ragged batch whose ids and counts lie in device memory (SKC_ON_DEVICE), n_entries of each; CUDA caches only. The
 * host does not see the counts: invalid entries are skipped on the device and reported by Cache::poll_error().
 */
struct DeviceBatch {
    const std::int32_t *seq_ids = nullptr;
    const std::int32_t *n_tokens = nullptr;
    std::uint32_t n_entries = 0;
    /** Rows of the tensors. */
    std::uint64_t n_rows = 0;
    /** Upper bound of an entry's count. */
    std::uint32_t max_tokens = 0;
};

/**
 * Settings of one layer, initialised with the defaults of SKC_LAYER_CONFIG_INIT. The arrays that its members point to
 * (inv_freq, alibi_slopes, sink_logits) must live until the cache has been created, which copies them.
 */
struct Layer : skc_layer_config {
    Layer() : skc_layer_config() { check(skc_layer_config_init(this, sizeof(skc_layer_config))); }
    /** Defaults, with `sinks` as n_sink and `recent` as window. */
    Layer(std::uint32_t sinks, std::uint32_t recent) : Layer() {
        n_sink = sinks;
        window = recent;
    }
    /** Room for pin() and evict_range(): `pinned` as max_pinned and `segments` as max_segments. */
    Layer &room(std::uint32_t pinned, std::uint32_t segments) {
        max_pinned = pinned;
        max_segments = segments;
        return *this;
    }
};

/**
 * Callbacks. They are noexcept: an exception that left one would end in the library, which is not C++. A callback that
 * is not declared noexcept does not compile; one that throws all the same ends the process (std::terminate).
 */
using LogFn = void(void *user, std::uint32_t level, const char *text) noexcept;
using AllocFn = void *(void *user, std::size_t bytes, std::size_t align) noexcept;
using FreeFn = void(void *user, void *ptr, std::size_t bytes) noexcept;
using ParallelForFn = void(void *user, std::uint32_t n, skc_task_fn task, void *data) noexcept;

/**
 * Settings of a cache, initialised with the defaults of SKC_CACHE_CONFIG_INIT and one layer of defaults; heads() has
 * none and must be called. Setters return the object, so that calls can be chained. Values are checked when a cache is
 * created and by bytes(). A copy owns its own layers.
 */
class Config {
public:
    Config() { check(skc_cache_config_init(&c_, sizeof c_)); }

    /** Head counts, and the dims of a head of Q and K; `dim_v` of V and of the output, 0 = `dim`. */
    Config &heads(std::uint32_t n_q_heads, std::uint32_t n_kv_heads, std::uint32_t dim, std::uint32_t dim_v = 0) {
        c_.n_q_heads = n_q_heads;
        c_.n_kv_heads = n_kv_heads;
        c_.head_dim = dim;
        c_.head_dim_v = dim_v;
        return *this;
    }
    /** SKC_DTYPE_ of q, k and v as they come in, of K and V as stored, and of the output (0 = as `in`). */
    Config &types(std::uint32_t in, std::uint32_t kv, std::uint32_t out = 0) {
        c_.in_dtype = in;
        c_.kv_dtype = kv;
        c_.out_dtype = out;
        return *this;
    }
    /** SKC_DTYPE_ that K and V are stored in, where they differ; 0 = as `kv` of types(). */
    Config &storage(std::uint32_t k, std::uint32_t v) {
        c_.k_dtype = k;
        c_.v_dtype = v;
        return *this;
    }
    /** Number of sequences; their ids are 0 to n - 1. */
    Config &seqs(std::uint32_t n) {
        c_.n_seqs = n;
        return *this;
    }
    /** Most tokens of one sequence in one append_kv(). */
    Config &max_chunk(std::uint32_t n) {
        c_.max_chunk = n;
        return *this;
    }
    /** How far below its highest length rewind() may cut a sequence. */
    Config &max_rewind(std::uint32_t n) {
        c_.max_rewind = n;
        return *this;
    }
    /** Threads of the library, tasks of a parallel_for callback, or the largest team of step_part(). */
    Config &threads(std::uint32_t n) {
        c_.n_threads = n;
        return *this;
    }
    /**
     * Puts the cache on a CUDA device: into its primary context, or into `context` (CUcontext), which must outlive it.
     */
    Config &cuda(std::uint32_t device = 0, void *context = nullptr) {
        c_.backend = SKC_BACKEND_CUDA;
        c_.cuda_device = device;
        c_.cuda_context = context;
        return *this;
    }
    /** `n` layers with the same settings, which are copied; the arrays they point to are not, see Layer. */
    Config &layers(std::uint32_t n, const skc_layer_config &one) {
        c_.n_layers = n;
        layers_.assign(1, one);
        return *this;
    }
    /** A layer for each element; the settings are copied as above. */
    template <class Each>
    Config &layers(const std::vector<Each> &each) {
        c_.n_layers = static_cast<std::uint32_t>(each.size());
        layers_.assign(each.begin(), each.end());
        return *this;
    }
    /** Receives log lines, see skc_log_fn. */
    Config &log(LogFn *line, void *user = nullptr) {
        c_.log = line;
        c_.log_user = user;
        return *this;
    }
    /** Allocator of host memory, see skc_alloc_fn and skc_free_fn. */
    Config &memory(AllocFn *alloc, FreeFn *free, void *user = nullptr) {
        c_.alloc = alloc;
        c_.free = free;
        c_.memory_user = user;
        return *this;
    }
    /** Allocator of device memory, see skc_alloc_fn and skc_free_fn. */
    Config &device_memory(AllocFn *alloc, FreeFn *free, void *user = nullptr) {
        c_.device_alloc = alloc;
        c_.device_free = free;
        c_.device_memory_user = user;
        return *this;
    }
    /** The host's parallel loop, see skc_parallel_for_fn; threads() is the number of its tasks. */
    Config &parallel_for(ParallelForFn *loop, void *user = nullptr) {
        c_.parallel_for = loop;
        c_.parallel_for_user = user;
        return *this;
    }
    /** Access to all other members (flags, ...); layers, n_layer_configs and layer_stride are ignored. */
    skc_cache_config &raw() { return c_; }

    /** The C struct. It points into this object: valid until that is changed or destroyed. */
    skc_cache_config get() const {
        skc_cache_config c = c_;
        c.layers = layers_.data();
        c.n_layer_configs = static_cast<std::uint32_t>(layers_.size());
        c.layer_stride = sizeof(skc_layer_config);
        return c;
    }

    /**
     * Bytes that a cache of these settings allocates, on the host (first) and on the device (second). Allocates
     * nothing.
     *
     * Throws SKC_STATUS_INVALID_CONFIG, SKC_STATUS_OUT_OF_MEMORY (more than 2^64), SKC_STATUS_BACKEND_UNAVAILABLE, and
     * as skc_cache_bytes.
     */
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

/** What a snapshot is saved with, and must be loaded with: such as a hash of the model and of the shard. */
using HostTag = std::array<std::uint8_t, SKC_HOST_TAG_BYTES>;

/** Owns a skc_cache. Movable, not copyable; a moved-from Cache holds no cache and can be assigned to or destroyed. */
class Cache {
public:
    /**
     * Creates a cache; all memory it will ever need is allocated here. `config` may be destroyed afterwards; callbacks
     * and their user pointers must live until the cache is destroyed.
     *
     * Throws SKC_STATUS_INVALID_CONFIG, SKC_STATUS_OUT_OF_MEMORY, SKC_STATUS_BACKEND_UNAVAILABLE, and as
     * skc_create_cache.
     */
    explicit Cache(const Config &config) : Cache(config.get()) {}
    explicit Cache(const skc_cache_config &config) { check(skc_create_cache(&config, &handle_)); }
    Cache(Cache &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), stream_(std::exchange(other.stream_, nullptr)) {}
    /** Destroys the cache held so far, as the destructor does. */
    Cache &operator=(Cache &&other) noexcept {
        Cache(std::move(other)).swap(*this);
        return *this;
    }
    /**
     * Destroys the cache and ignores errors: while a call on the cache runs in another thread, and from a callback, it
     * cannot be destroyed and leaks. End all calls first, or use close().
     */
    ~Cache() {
        if (handle_) {
            skc_destroy_cache(handle_);
        }
    }

    void swap(Cache &other) noexcept {
        std::swap(handle_, other.handle_);
        std::swap(stream_, other.stream_);
    }
    /**
     * Sets the CUDA stream (CUstream or cudaStream_t) of all later calls; NULL, the initial value, is the legacy
     * default stream. Must be NULL on the CPU. The stream must outlive its last call and be of the cache's context.
     */
    void stream(void *stream) noexcept { stream_ = stream; }
    /** The handle for C calls, still owned by this object; NULL if it holds no cache. */
    skc_cache *handle() const noexcept { return handle_; }
    /** Gives up ownership: the caller must call skc_destroy_cache. */
    skc_cache *release() noexcept { return std::exchange(handle_, nullptr); }
    /** Destroys the cache. Throws SKC_STATUS_BUSY while it is in use, and then still owns it. */
    void close() {
        check(skc_destroy_cache(handle_));
        handle_ = nullptr;
    }

    /**
     * Appends the next tokens of each sequence of a batch in one layer: rotates and stores K, stores V, and evicts what
     * leaves the window (skc_append_kv).
     *
     * Throws SKC_STATUS_CHUNK_TOO_LONG above max_chunk tokens of one sequence; SKC_STATUS_OUT_OF_RANGE for a layer,
     * sequence or stream position; SKC_STATUS_TOKENS_GONE for a sequence that only reset() can repair;
     * SKC_STATUS_NULL_POINTER; SKC_STATUS_INVALID_ARGUMENT for anything else.
     */
    void append_kv(std::uint32_t layer, const Batch &batch, const KvRows &kv) { append_rows(layer, batch, kv); }
    void append_kv(std::uint32_t layer, const DeviceBatch &batch, const KvRows &kv) { append_rows(layer, batch, kv); }

    /**
     * Attention of the last tokens appended to each sequence of a batch, in one layer (skc_attend). Changes no state.
     *
     * Throws SKC_STATUS_OUT_OF_RANGE for a layer or sequence, and for more queries than the latest append had tokens;
     * SKC_STATUS_TOKENS_GONE; SKC_STATUS_NULL_POINTER; SKC_STATUS_INVALID_ARGUMENT.
     */
    void attend(std::uint32_t layer, const Batch &batch, const QueryRows &query) { attend_rows(layer, batch, query); }
    void attend(std::uint32_t layer, const DeviceBatch &batch, const QueryRows &query) {
        attend_rows(layer, batch, query);
    }

    /**
     * append_kv() and attend() in one call, for any number of tokens: more than max_chunk are split (skc_step). Throws
     * as these two do.
     */
    void step(std::uint32_t layer, const Batch &batch, const KvRows &kv, const QueryRows &query) {
        const auto a = step_args(layer, batch, kv, query);
        check(skc_step(handle_, &a));
    }
    void step(std::uint32_t layer, const DeviceBatch &batch, const KvRows &kv, const QueryRows &query) {
        const auto a = step_args(layer, batch, kv, query);
        check(skc_step(handle_, &a));
    }

    /**
     * The share of member `ith` in a step() that `nth` threads of the host do together, all with the same arguments
     * (skc_step_part). CPU only. Never blocks on other members: results and lengths are valid once all `nth` calls have
     * returned, and the host needs a barrier of its own before its next call on this cache.
     *
     * Throws as step() does, and SKC_STATUS_INVALID_ARGUMENT for `nth` above n_threads or an `ith` that is out of range
     * or has been called already. The step stays open for the other members; abort_step() ends it.
     */
    void step_part(std::uint32_t layer, const Batch &batch, const KvRows &kv, const QueryRows &query, std::uint32_t ith,
                   std::uint32_t nth) {
        const auto a = step_args(layer, batch, kv, query);
        check(skc_step_part(handle_, &a, ith, nth));
    }

    /**
     * Drops the oldest n_tokens[i] window tokens of seq_ids[i] permanently, in all layers (skc_evict).
     *
     * Throws SKC_STATUS_OUT_OF_RANGE if a window holds fewer; SKC_STATUS_LAYERS_OUT_OF_STEP if the layers differ in
     * length; SKC_STATUS_INVALID_ARGUMENT. All entries are done or none.
     */
    void evict(Span<std::int32_t> seq_ids, Span<std::int32_t> n_tokens) { edit(skc_evict, seq_ids, n_tokens); }
    /**
     * Removes the newest n_tokens[i] tokens of seq_ids[i] as if they had never been appended, in all layers
     * (skc_rewind).
     *
     * Throws SKC_STATUS_TOKENS_GONE where tokens that would be visible again have been overwritten or evicted (see
     * skc_sequence_info.rewindable); SKC_STATUS_OUT_OF_RANGE; SKC_STATUS_LAYERS_OUT_OF_STEP;
     * SKC_STATUS_INVALID_ARGUMENT. All entries are done or none.
     */
    void rewind(Span<std::int32_t> seq_ids, Span<std::int32_t> n_tokens) { edit(skc_rewind, seq_ids, n_tokens); }
    /**
     * Holds the tokens first[i] to first[i] + n_tokens[i] of seq_ids[i] permanently, in all layers with room for pins
     * (skc_pin). Tokens are counted from 0 since the last reset. They no longer take places of the window. Queries of
     * the latest append can then no longer be asked.
     *
     * Throws SKC_STATUS_OUT_OF_RANGE for an end beyond the sequence; SKC_STATUS_TOKENS_GONE where a token is no longer
     * held; SKC_STATUS_NO_ROOM for more than max_pinned tokens or max_segments segments (see Layer::room());
     * SKC_STATUS_LAYERS_OUT_OF_STEP; SKC_STATUS_INVALID_ARGUMENT. All entries are done or none.
     */
    void pin(Span<std::int32_t> seq_ids, Span<std::uint64_t> first, Span<std::int32_t> n_tokens) {
        edit_range(skc_pin, seq_ids, first, n_tokens);
    }
    /**
     * Drops what is held of the tokens first[i] to first[i] + n_tokens[i] of seq_ids[i] permanently, in all layers
     * (skc_evict_range): window tokens and pinned ones. Newer tokens close the gap. Queries of the latest append can
     * then no longer be asked.
     *
     * Throws SKC_STATUS_OUT_OF_RANGE for a sink in the range, and for an end beyond the sequence; SKC_STATUS_NO_ROOM
     * for more than max_segments segments; SKC_STATUS_LAYERS_OUT_OF_STEP; SKC_STATUS_INVALID_ARGUMENT. All entries are
     * done or none.
     */
    void evict_range(Span<std::int32_t> seq_ids, Span<std::uint64_t> first, Span<std::int32_t> n_tokens) {
        edit_range(skc_evict_range, seq_ids, first, n_tokens);
    }
    /**
     * Empties sequences in all layers (skc_reset). The next token of seq_ids[i] gets the stream position
     * start_positions[i]; without start_positions it is 0.
     *
     * Throws SKC_STATUS_OUT_OF_RANGE for a sequence; SKC_STATUS_INVALID_ARGUMENT.
     */
    void reset(Span<std::int32_t> seq_ids, Span<std::uint64_t> start_positions = {}) {
        auto a = sized<skc_reset_args>(seq_ids, start_positions.data() ? start_positions.size() : seq_ids.size());
        a.seq_ids = seq_ids.data();
        a.start_positions = start_positions.data();
        check(skc_reset(handle_, &a));
    }
    /**
     * Makes sequence dst[i] an independent copy of src[i], in all layers (skc_fork).
     *
     * Throws SKC_STATUS_INVALID_ARGUMENT if a destination is also a source or appears twice; SKC_STATUS_OUT_OF_RANGE;
     * SKC_STATUS_LAYERS_OUT_OF_STEP.
     */
    void fork(Span<std::int32_t> src, Span<std::int32_t> dst) {
        auto a = sized<skc_fork_args>(src, dst.size());
        a.src_seq_ids = src.data();
        a.dst_seq_ids = dst.data();
        check(skc_fork(handle_, &a));
    }
    /**
     * A snapshot of a sequence (skc_save_sequence): load() restores it, in this cache or in another one, on either
     * backend. `host_tag` tells models of equal shapes apart, such as by a hash of the model and of the shard. With
     * `read_back` a CUDA cache reads the sequence's state from the device first; it waits for the stream in any case.
     *
     * Throws SKC_STATUS_OUT_OF_RANGE; SKC_STATUS_LAYERS_OUT_OF_STEP; SKC_STATUS_TOKENS_GONE for a sequence that only
     * reset() can repair; SKC_STATUS_LENGTH_UNKNOWN if the host's counters are stale and `read_back` is false;
     * SKC_STATUS_INVALID_ARGUMENT while the stream is being captured.
     */
    std::vector<std::uint8_t> save(std::int32_t seq_id, const HostTag &host_tag = {}, bool read_back = false) {
        auto a = save_args(seq_id, host_tag, read_back);
        std::vector<std::uint8_t> snapshot(snapshot_bytes(a));
        a.data = snapshot.data();
        a.n_bytes = snapshot.size();
        check(skc_save_sequence(handle_, &a, nullptr));
        return snapshot;
    }
    /** The same into memory of the caller's, of at least snapshot_bytes() bytes; returns the bytes written. */
    std::size_t save_to(std::int32_t seq_id, void *data, std::size_t n_bytes, const HostTag &host_tag = {},
                        bool read_back = false) {
        auto a = save_args(seq_id, host_tag, read_back);
        a.data = data;
        a.n_bytes = n_bytes;
        std::uint64_t n_written = 0;
        check(skc_save_sequence(handle_, &a, &n_written));
        return static_cast<std::size_t>(n_written);
    }
    /** Bytes of the snapshot that save() would return now (skc_snapshot_bytes). Throws as save() does. */
    std::size_t snapshot_bytes(std::int32_t seq_id, bool read_back = false) {
        return snapshot_bytes(save_args(seq_id, {}, read_back));
    }
    /**
     * Loads a snapshot into a sequence in place of what it holds (skc_load_sequence). For a CUDA cache a snapshot in
     * pinned memory must stay as it is until the stream's work has finished.
     *
     * Throws SKC_STATUS_INVALID_SNAPSHOT for one that is damaged, of a later version, or of a cache whose settings or
     * whose host_tag differ; SKC_STATUS_NO_ROOM for more pins or segments than there is room for;
     * SKC_STATUS_OUT_OF_RANGE; SKC_STATUS_INVALID_ARGUMENT while the stream is being captured.
     */
    void load(std::int32_t seq_id, Span<std::uint8_t> snapshot, const HostTag &host_tag = {}) {
        skc_load_sequence_args a{};
        a.struct_size = sizeof a;
        a.seq_id = seq_id;
        a.data = snapshot.data();
        a.n_bytes = snapshot.size();
        a.host_tag = host_tag.data();
        a.stream = stream_;
        check(skc_load_sequence(handle_, &a));
    }
    /**
     * Makes sequence `dst` an independent copy of `src` of another cache, or of this one (skc_copy_sequence). Between
     * CUDA caches of one context the copy is put into this cache's stream: order it with the work of the other's.
     *
     * Throws SKC_STATUS_INVALID_ARGUMENT for settings that differ; and as save().
     */
    void copy(std::int32_t dst, const Cache &src_cache, std::int32_t src, bool read_back = false) {
        skc_copy_sequence_args a{};
        a.struct_size = sizeof a;
        a.flags = read_back ? SKC_READ_BACK : 0;
        a.src_cache = src_cache.handle_;
        a.src_seq_id = src;
        a.dst_seq_id = dst;
        a.stream = stream_;
        a.src_stream = src_cache.stream_;
        check(skc_copy_sequence(handle_, &a));
    }
    /**
     * After a failure between layers: cuts all layers of every sequence to the shortest one, so that the step can be
     * repeated, and ends a step_part() whose other members will not come (skc_abort_step).
     *
     * Throws SKC_STATUS_TOKENS_GONE where a longer layer has overwritten tokens that would be visible again: then only
     * reset() helps.
     */
    void abort_step() {
        const auto a = sized<skc_abort_step_args>({}, 0);
        check(skc_abort_step(handle_, &a));
    }
    /** The same for the given sequences only; an empty list aborts none. */
    void abort_step(Span<std::int32_t> seq_ids) {
        const std::int32_t unused = SKC_PADDING;
        auto a = sized<skc_abort_step_args>(seq_ids, seq_ids.size());
        // A NULL list would mean all sequences.
        a.seq_ids = seq_ids.size() ? seq_ids.data() : &unused;
        check(skc_abort_step(handle_, &a));
    }

    /**
     * Reports to the host's counters what graph replays or a DeviceBatch have appended to each sequence (negative: have
     * removed), in one layer or in all (skc_note_replay). Report everything, in order. CUDA only. After a pin() or
     * evict_range() in a graph only reset() and info() with `read_back` bring the host's counters up to date.
     *
     * Throws SKC_STATUS_OUT_OF_RANGE; SKC_STATUS_INVALID_ARGUMENT.
     */
    void note_replay(Span<std::int32_t> seq_ids, Span<std::int32_t> n_tokens, std::uint32_t layer = SKC_ALL_LAYERS) {
        skc_note_replay_args a{};
        a.struct_size = sizeof a;
        a.layer = layer;
        a.n_entries = entry_count(seq_ids, n_tokens.size());
        a.seq_ids = seq_ids.data();
        a.n_tokens = n_tokens.data();
        check(skc_note_replay(handle_, &a));
    }
    /**
     * Returns and clears the record of invalid entries that completed device work has skipped; n_skipped is 0 if there
     * are none, as always on the CPU (skc_poll_error). Never blocks.
     */
    skc_device_error poll_error() {
        skc_device_error e{};
        e.struct_size = sizeof e;
        check(skc_poll_error(handle_, &e));
        return e;
    }

    /**
     * State of a sequence: lengths over all layers, the rest of one layer (skc_seq_info). With `read_back` a CUDA cache
     * waits for the stream of its latest call and reads the state from the device.
     *
     * Throws SKC_STATUS_OUT_OF_RANGE; SKC_STATUS_LENGTH_UNKNOWN if the host's counters are stale and `read_back` is
     * false.
     */
    skc_sequence_info info(std::int32_t seq_id, std::uint32_t layer = 0, bool read_back = false) const {
        skc_sequence_info i{};
        i.struct_size = sizeof i;
        i.flags = read_back ? SKC_READ_BACK : 0;
        check(skc_seq_info(handle_, layer, seq_id, &i));
        return i;
    }
    /**
     * The kernel that a call (SKC_CALL_APPEND, SKC_CALL_ATTEND or SKC_CALL_STEP) runs on up to `n_tokens` tokens of
     * each of `n_entries` sequences, and how it is launched (skc_kernel_choice).
     *
     * Throws SKC_STATUS_OUT_OF_RANGE; SKC_STATUS_INVALID_ARGUMENT for another call.
     */
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

    /** Entries of a batch of `ids` with `n_values` values beside them; throws if they are not as many. */
    static std::uint32_t entry_count(Span<std::int32_t> ids, std::size_t n_values) {
        if (ids.size() != n_values || n_values > std::numeric_limits<std::uint32_t>::max()) {
            throw Error(SKC_STATUS_INVALID_ARGUMENT, std::to_string(ids.size()) + " sequence ids for " +
                                                         std::to_string(n_values) + " values");
        }
        return static_cast<std::uint32_t>(n_values);
    }
    template <class Args>
    Args sized(Span<std::int32_t> ids, std::size_t n_values) const {
        Args a{};
        a.struct_size = sizeof a;
        a.n_entries = entry_count(ids, n_values);
        a.stream = stream_;
        return a;
    }
    template <class Args>
    Args batch_args(std::uint32_t layer, const Batch &batch, std::uint32_t in_step = 0) const {
        auto a = sized<Args>(batch.seq_ids, batch.n_tokens.size());
        a.flags = batch.in_step ? in_step : 0;
        a.layer = layer;
        a.seq_ids = batch.seq_ids.data();
        a.n_tokens = batch.n_tokens.data();
        return a;
    }
    template <class Args>
    Args batch_args(std::uint32_t layer, const DeviceBatch &batch, std::uint32_t = 0) const {
        Args a{};
        a.struct_size = sizeof a;
        a.flags = SKC_ON_DEVICE;
        a.layer = layer;
        a.n_entries = batch.n_entries;
        a.seq_ids = batch.seq_ids;
        a.n_tokens = batch.n_tokens;
        a.n_rows = batch.n_rows;
        a.max_tokens = batch.max_tokens;
        a.stream = stream_;
        return a;
    }
    template <class Args>
    static void set_kv(Args &a, const KvRows &kv) {
        a.k = kv.k.data;
        a.k_token_stride = kv.k.token_stride;
        a.k_head_stride = kv.k.head_stride;
        a.v = kv.v.data;
        a.v_token_stride = kv.v.token_stride;
        a.v_head_stride = kv.v.head_stride;
    }
    template <class Args>
    static void set_query(Args &a, const QueryRows &query) {
        a.q = query.q.data;
        a.q_token_stride = query.q.token_stride;
        a.q_head_stride = query.q.head_stride;
        a.out = query.out.data;
        a.out_token_stride = query.out.token_stride;
        a.out_head_stride = query.out.head_stride;
        a.lse = query.lse.data;
        a.lse_token_stride = query.lse.token_stride;
        a.lse_head_stride = query.lse.head_stride;
    }
    skc_save_sequence_args save_args(std::int32_t seq_id, const HostTag &host_tag, bool read_back) const {
        skc_save_sequence_args a{};
        a.struct_size = sizeof a;
        a.flags = read_back ? SKC_READ_BACK : 0;
        a.seq_id = seq_id;
        a.host_tag = host_tag.data();
        a.stream = stream_;
        return a;
    }
    std::size_t snapshot_bytes(const skc_save_sequence_args &args) const {
        std::uint64_t n_bytes = 0;
        check(skc_snapshot_bytes(handle_, &args, &n_bytes));
        return static_cast<std::size_t>(n_bytes);
    }
    template <class Args>
    void edit(skc_status (*call)(skc_cache *, const Args *), Span<std::int32_t> seq_ids, Span<std::int32_t> n_tokens) {
        auto a = sized<Args>(seq_ids, n_tokens.size());
        a.seq_ids = seq_ids.data();
        a.n_tokens = n_tokens.data();
        check(call(handle_, &a));
    }
    template <class Args>
    void edit_range(skc_status (*call)(skc_cache *, const Args *), Span<std::int32_t> seq_ids,
                    Span<std::uint64_t> first, Span<std::int32_t> n_tokens) {
        auto a = sized<Args>(seq_ids, n_tokens.size());
        entry_count(seq_ids, first.size());
        a.seq_ids = seq_ids.data();
        a.first = first.data();
        a.n_tokens = n_tokens.data();
        check(call(handle_, &a));
    }
    template <class AnyBatch>
    void append_rows(std::uint32_t layer, const AnyBatch &batch, const KvRows &kv) {
        auto a = batch_args<skc_append_kv_args>(layer, batch, SKC_IN_STEP);
        set_kv(a, kv);
        check(skc_append_kv(handle_, &a));
    }
    template <class AnyBatch>
    void attend_rows(std::uint32_t layer, const AnyBatch &batch, const QueryRows &query) {
        auto a = batch_args<skc_attend_args>(layer, batch);
        set_query(a, query);
        check(skc_attend(handle_, &a));
    }
    template <class AnyBatch>
    skc_step_args step_args(std::uint32_t layer, const AnyBatch &batch, const KvRows &kv,
                            const QueryRows &query) const {
        auto a = batch_args<skc_step_args>(layer, batch, SKC_IN_STEP);
        set_kv(a, kv);
        set_query(a, query);
        return a;
    }
};

}  // namespace sinkcache

#endif  // SINKCACHE_HPP
