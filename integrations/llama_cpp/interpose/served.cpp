#include "served.hpp"

#include "errors.hpp"
#include "host.hpp"
#include "log.hpp"
#include "state_format.hpp"

#include <algorithm>
#include <limits>

namespace sinkcache {
namespace interpose {
namespace {

using llama_cpp::StreamSettings;

/** A storage type and whether it is the host's own choice or the nearest to it. */
struct StorageChoice {
    std::uint32_t dtype;
    bool same;
    const char *name;
};

StorageChoice storage_of(ggml_type type) {
    switch (type) {
    case GGML_TYPE_F32:
        return {SKC_DTYPE_F32, true, "f32"};
    case GGML_TYPE_F16:
        return {SKC_DTYPE_F16, true, "f16"};
    case GGML_TYPE_BF16:
        return {SKC_DTYPE_BF16, true, "bf16"};
    case GGML_TYPE_Q8_0:
        return {SKC_DTYPE_Q8, true, "q8"};
    case GGML_TYPE_Q4_0:
        return {SKC_DTYPE_Q4, true, "q4"};
    case GGML_TYPE_Q4_1:
    case GGML_TYPE_IQ4_NL:
        return {SKC_DTYPE_Q4, false, "q4"};
    case GGML_TYPE_Q5_0:
    case GGML_TYPE_Q5_1:
        // More exact than what was asked for, and larger.
        return {SKC_DTYPE_Q8, false, "q8"};
    default:
        return {SKC_DTYPE_F16, false, "f16"};
    }
}

std::uint32_t map_type(char which, ggml_type type) {
    const StorageChoice choice = storage_of(type);
    if (!choice.same) {
        const char *name = real().ggml_type_name(type);
        log(LogLevel::INFO, std::string(1, which) + " is stored in " + choice.name + ": the cache has no " +
                                (name ? name : std::to_string(type).c_str()));
    }
    return choice.dtype;
}

std::uint32_t window_of(std::uint32_t n_ctx, const Settings &settings) {
    if (settings.window) {
        return *settings.window;
    }
    if (n_ctx <= settings.n_sink) {
        llama_cpp::invalid_config("a context of " + std::to_string(n_ctx) +
                                  " tokens leaves no window: it must exceed SINKCACHE_LLAMA_SINK = " +
                                  std::to_string(settings.n_sink) + ", or SINKCACHE_LLAMA_WINDOW be set");
    }
    return n_ctx - settings.n_sink;
}

/** `asked` is what the host has asked for, 0 if it leaves that to the model. */
std::uint32_t length_of(std::uint32_t asked, const Settings &settings) {
    if (settings.length) {
        return *settings.length;
    }
    // A host that has opened llama.cpp by itself, such as Python, may have arrays as long as the context that it asks
    // for. With a window of its own, more than fits into it is the length that the host wants.
    const bool is_length = !is_preloaded() && settings.window &&
                           asked > std::uint64_t{*settings.window} + settings.n_sink;
    return is_length ? asked : DEFAULT_LENGTH;
}

StreamSettings stream_settings(const llama_context_params &params, std::uint32_t n_ctx, const Settings &settings) {
    StreamSettings s;
    s.n_sink = settings.n_sink;
    s.window = window_of(n_ctx, settings);
    s.k_dtype = settings.kv ? settings.kv->k : map_type('K', params.type_k);
    s.v_dtype = settings.kv ? settings.kv->v : map_type('V', params.type_v);
    s.n_seqs = std::max(1U, params.n_seq_max);
    s.max_rewind = settings.max_rewind;
    s.use_gpu = settings.gpu;
    s.numbering = llama_cpp::Numbering::OF_THE_HOST;
    return s;
}

std::string range_text(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    return "of sequence " + std::to_string(seq_id) + ", positions " + std::to_string(p0) + " to " + std::to_string(p1);
}

}  // namespace

/** One caller's turn. False for a callback that calls while its own thread has the turn. */
class Served::Turn {
public:
    explicit Turn(Served &served, const char *call) : served_(served) {
        if (served.owner_ == std::this_thread::get_id()) {
            log(LogLevel::ERRORS, std::string(call) + " from a callback of the same context is refused");
            return;
        }
        lock_ = std::unique_lock<std::mutex>(served.mutex_);
        served.owner_ = std::this_thread::get_id();
    }
    ~Turn() {
        if (lock_) {
            served_.owner_ = std::thread::id();
        }
    }
    Turn(const Turn &) = delete;
    Turn &operator=(const Turn &) = delete;
    explicit operator bool() const { return lock_.owns_lock(); }

private:
    Served &served_;
    std::unique_lock<std::mutex> lock_;
};

Served::Served(llama_model *model, const llama_context_params &params, std::uint32_t n_ctx, const Settings &settings,
               std::shared_ptr<ModelTag> tag)
    : model_(model),
      n_ctx_(n_ctx),
      length_(length_of(params.n_ctx, settings)),
      n_seqs_(std::max(1U, params.n_seq_max)),
      checkpoints_(settings.checkpoints),
      stream_(model, stream_settings(params, n_ctx, settings)),
      tag_(std::move(tag)),
      positions_(n_seqs_) {
    stream_.create_context(params);
    const std::uint64_t bytes = stream_.cache_bytes();
    const StreamSettings &s = stream_.settings();
    const std::string rewinds = stream_.is_hybrid()
                                    ? "no rewinds, since the model has recurrent layers"
                                    : "rewinds of up to " + std::to_string(stream_.max_rewind());
    log(LogLevel::INFO, "a context of " + std::to_string(n_seqs_) + (n_seqs_ == 1 ? " sequence" : " sequences") +
                            ": " + std::to_string(s.n_sink) + " sinks and the last " + std::to_string(s.window) +
                            " tokens of each, " + std::to_string((bytes + (1 << 20) - 1) >> 20) +
                            " MiB, " + rewinds + "; the host is told a length of " + std::to_string(length_));
    if (stream_.n_layers_on_gpu() > 0) {
        log(LogLevel::INFO, "attention of " + std::to_string(stream_.n_layers_on_gpu()) + " of " +
                                std::to_string(stream_.n_layers()) + " layers is computed on the GPU");
    } else if (!stream_.gpu_problem().empty()) {
        log(LogLevel::INFO, stream_.gpu_problem());
    }
}

bool Served::attempt(const std::string &what, const std::function<void()> &call) {
    try {
        call();
        return true;
    } catch (const std::exception &e) {
        log(LogLevel::ERRORS, what + ": " + e.what());
        return false;
    }
}

void Served::make_cache() {
    if (!stream_.has_cache()) {
        stream_.create_cache();
    }
}

bool Served::exists(const char *call, llama_seq_id seq_id) const {
    if (seq_id >= 0 && static_cast<std::uint32_t>(seq_id) < n_seqs_) {
        return true;
    }
    log(LogLevel::ERRORS, std::string(call) + ": sequence " + std::to_string(seq_id) + " does not exist: there are " +
                              std::to_string(n_seqs_) + ", numbered from 0");
    return false;
}

void Served::update_positions(llama_seq_id seq_id) {
    constexpr llama_pos LAST = std::numeric_limits<llama_pos>::max();
    Positions p;
    if (stream_.has_cache()) {
        const skc_sequence_info info = stream_.info(seq_id);
        const auto position = [&](std::uint64_t index) {
            return static_cast<llama_pos>(std::min(info.start_position + index, std::uint64_t{LAST}));
        };
        // Hosts take the smallest position for the one that they may cut behind. If not all tokens can go, it is the
        // one before the lowest cut.
        if (info.length_min > 0) {
            p.max = position(info.length_min - 1);
            p.min = info.rewindable >= info.length_min ? position(0) : position(info.length_min - info.rewindable - 1);
        }
        // Of an unusable sequence nothing may stay: a host that is told so begins anew. It is not told that the
        // sequence is empty, since it would then go on after tokens that are lost.
        if (stream_.is_broken(seq_id)) {
            p.max = std::max(p.max, 0);
            p.min = LAST;
        }
    }
    const std::lock_guard<std::mutex> lock(positions_mutex_);
    positions_[static_cast<std::size_t>(seq_id)] = p;
}

llama_pos Served::pos_min(llama_seq_id seq_id) const {
    const std::lock_guard<std::mutex> lock(positions_mutex_);
    const auto s = static_cast<std::size_t>(seq_id);
    return seq_id >= 0 && s < positions_.size() ? positions_[s].min : -1;
}

llama_pos Served::pos_max(llama_seq_id seq_id) const {
    const std::lock_guard<std::mutex> lock(positions_mutex_);
    const auto s = static_cast<std::size_t>(seq_id);
    return seq_id >= 0 && s < positions_.size() ? positions_[s].max : -1;
}

std::int32_t Served::decode(const std::vector<llama_cpp::BatchRow> &rows,
                            const std::function<std::int32_t(const std::vector<llama_pos> &)> &compute) {
    const Turn turn(*this, "decoding");
    if (!turn) {
        return -1;
    }
    std::int32_t result = -1;
    bool computed = false;
    attempt("decoding", [&] {
        make_cache();
        result = stream_.decode(rows, [&](const std::vector<llama_pos> &positions) {
            computed = true;
            result = -3;
            return compute(positions);
        });
    });
    // What was computed has been checked: the rows of a sequence are next to each other, and it exists.
    for (std::size_t i = 0; computed && i < rows.size(); ++i) {
        if (i == 0 || rows[i].seq_id != rows[i - 1].seq_id) {
            update_positions(rows[i].seq_id);
        }
    }
    return result;
}

void Served::clear(llama_seq_id seq_id) {
    if (stream_.has_cache()) {
        stream_.clear(seq_id, 0);
        update_positions(seq_id);
    }
}

void Served::break_sequence(llama_seq_id seq_id, const std::string &why) {
    log(LogLevel::ERRORS, why + ": sequence " + std::to_string(seq_id) + " is unusable until it is cleared");
    stream_.mark_broken(seq_id);
    update_positions(seq_id);
}

void Served::clear_all() {
    const Turn turn(*this, "llama_memory_clear");
    for (std::uint32_t s = 0; turn && s < n_seqs_; ++s) {
        attempt("llama_memory_clear", [&] { clear(static_cast<llama_seq_id>(s)); });
    }
}

bool Served::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const Turn turn(*this, "llama_memory_seq_rm");
    if (!turn) {
        return false;
    }
    if (seq_id >= 0) {
        return exists("llama_memory_seq_rm", seq_id) && remove(seq_id, p0, p1);
    }
    bool all = true;
    for (std::uint32_t s = 0; s < n_seqs_; ++s) {
        all = remove(static_cast<llama_seq_id>(s), p0, p1) && all;
    }
    return all;
}

bool Served::remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!stream_.has_cache()) {
        return true;
    }
    const std::string what = "llama_memory_seq_rm " + range_text(seq_id, p0, p1);
    bool removed = true;
    const bool valid = attempt(what, [&] {
        const skc_sequence_info info = stream_.info(seq_id);
        // A state that was loaded may have positions beyond those of a host.
        constexpr std::uint64_t MOST = std::uint64_t{1} << 62;
        const auto start = static_cast<std::int64_t>(std::min(info.start_position, MOST));
        const std::int64_t end = start + static_cast<std::int64_t>(std::min(info.length_min, MOST - 1));
        const std::int64_t from = std::max<std::int64_t>(p0, 0);
        const std::int64_t to = p1 < 0 ? end : std::min<std::int64_t>(p1, end);
        if (from <= start && to >= end) {
            log(LogLevel::DEBUG, what + ": cleared");
            clear(seq_id);
        } else if (from < to && to == end && stream_.is_hybrid()) {
            // llama.cpp's own answer, and no error: hosts ask in order to know.
            log(LogLevel::DEBUG, what + ": refused, the states of recurrent layers cannot go back");
            removed = false;
        } else if (from < to && to == end) {
            stream_.rewind(seq_id, static_cast<std::uint64_t>(end - from));
            log(LogLevel::DEBUG, what + ": rewound by " + std::to_string(end - from));
            update_positions(seq_id);
        } else if (from < to) {
            llama_cpp::invalid_argument("tokens can be removed from the end only: the sequence ends before position " +
                                        std::to_string(end));
        }
    });
    return valid && removed;
}

void Served::seq_cp(llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    const Turn turn(*this, "llama_memory_seq_cp");
    if (!turn || !exists("llama_memory_seq_cp", src) || !exists("llama_memory_seq_cp", dst) || src == dst) {
        return;
    }
    const std::string what = "llama_memory_seq_cp " + range_text(src, p0, p1) + ", to " + std::to_string(dst);
    const bool copied = attempt(what, [&] {
        make_cache();
        const skc_sequence_info info = stream_.info(src);
        // An empty range: nothing is copied, and what the destination has stays.
        if (p1 >= 0 && p1 <= std::max(p0, static_cast<llama_pos>(0))) {
            return;
        }
        if (info.length_min > 0 && p0 > 0 && static_cast<std::uint64_t>(p0) > info.start_position) {
            llama_cpp::invalid_argument("a copy must begin with the first token, at position " +
                                        std::to_string(info.start_position));
        }
        stream_.fork(src, dst);
        const std::uint64_t end = info.start_position + info.length_min;
        if (p1 >= 0 && static_cast<std::uint64_t>(p1) < end) {
            const std::uint64_t surplus = end - static_cast<std::uint64_t>(p1);
            stream_.rewind(dst, std::min(surplus, info.length_min));
        }
        log(LogLevel::DEBUG, what);
        update_positions(dst);
    });
    if (!copied && stream_.has_cache()) {
        break_sequence(dst, what);
    }
}

void Served::seq_keep(llama_seq_id seq_id) {
    const Turn turn(*this, "llama_memory_seq_keep");
    for (std::uint32_t s = 0; turn && s < n_seqs_; ++s) {
        if (static_cast<llama_seq_id>(s) != seq_id) {
            attempt("llama_memory_seq_keep", [&] { clear(static_cast<llama_seq_id>(s)); });
        }
    }
}

void Served::seq_move(const char *what, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const Turn turn(*this, what);
    const auto first = static_cast<std::uint32_t>(std::max(seq_id, 0));
    const std::uint32_t end = seq_id < 0 ? n_seqs_ : first + 1;
    if (!turn || (seq_id >= 0 && !exists(what, seq_id))) {
        return;
    }
    for (std::uint32_t s = first; s < end; ++s) {
        const auto id = static_cast<llama_seq_id>(s);
        const llama_pos last = pos_max(id);
        // Nothing lies in the range: nothing moves.
        if (last < 0 || p0 > last || (p1 >= 0 && p1 <= std::max(p0, 0))) {
            continue;
        }
        break_sequence(id, std::string(what) + " " + range_text(id, p0, p1) +
                               ": positions cannot be changed, and need not be, since no stream is too long");
    }
}

void Served::set_n_threads(std::int32_t n_threads, std::int32_t n_threads_batch) {
    const Turn turn(*this, "llama_set_n_threads");
    if (!turn) {
        return;
    }
    stream_.raise_threads(static_cast<std::uint32_t>(std::max({1, n_threads, n_threads_batch})));
    const auto most = static_cast<std::int32_t>(stream_.n_threads());
    if (std::max(n_threads, n_threads_batch) > most) {
        log(LogLevel::INFO, "llama_set_n_threads: " + std::to_string(std::max(n_threads, n_threads_batch)) +
                                " threads are more than the cache was created for: " + std::to_string(most));
    }
    real().llama_set_n_threads(context(), std::min(n_threads, most), std::min(n_threads_batch, most));
}

/** 0 for a sequence that cannot be saved. */
std::size_t Served::snapshot_bytes(llama_seq_id seq_id) {
    std::size_t bytes = 0;
    attempt("the state of sequence " + std::to_string(seq_id), [&] {
        make_cache();
        bytes = stream_.is_broken(seq_id) ? 0 : stream_.snapshot_bytes(seq_id);
    });
    return bytes;
}

std::size_t Served::state_bytes(llama_seq_id seq_id) {
    const Turn turn(*this, "llama_state_seq_get_size");
    return turn && exists("llama_state_seq_get_size", seq_id) ? STATE_HEADER_BYTES + snapshot_bytes(seq_id) : 0;
}

std::size_t Served::save_state(llama_seq_id seq_id, std::uint8_t *to, std::size_t n_bytes) {
    const Turn turn(*this, "saving a state");
    std::size_t written = 0;
    if (!turn || !exists("saving a state", seq_id)) {
        return 0;
    }
    attempt("saving the state of sequence " + std::to_string(seq_id), [&] {
        const std::size_t snapshot = snapshot_bytes(seq_id);
        StateHeader header;
        header.kind = snapshot == 0 ? StateKind::UNUSABLE : StateKind::SEQUENCE;
        header.n_bytes = STATE_HEADER_BYTES + snapshot;
        if (n_bytes < header.n_bytes) {
            throw Error(SKC_STATUS_OUT_OF_RANGE, "it has " + std::to_string(header.n_bytes) +
                                                     " bytes: there is room for " + std::to_string(n_bytes));
        }
        if (snapshot > 0) {
            stream_.save(seq_id, tag_->get(), to + STATE_HEADER_BYTES, snapshot);
        }
        write_header(header, to);
        written = static_cast<std::size_t>(header.n_bytes);
    });
    return written;
}

std::size_t Served::load_state(llama_seq_id seq_id, const std::uint8_t *from, std::size_t n_bytes) {
    const Turn turn(*this, "loading a state");
    std::size_t read = 0;
    if (!turn || !exists("loading a state", seq_id)) {
        return 0;
    }
    attempt("loading a state into sequence " + std::to_string(seq_id), [&] {
        make_cache();
        const StateHeader header = read_header(from, n_bytes);
        if (header.kind == StateKind::CONTEXT) {
            throw Error(SKC_STATUS_INVALID_SNAPSHOT, "it is the state of a whole context");
        }
        const auto bytes = static_cast<std::size_t>(header.n_bytes);
        if (header.kind == StateKind::UNUSABLE) {
            clear(seq_id);
            break_sequence(seq_id, "it was saved from an unusable one");
        } else {
            stream_.load(seq_id, {from + STATE_HEADER_BYTES, bytes - STATE_HEADER_BYTES}, tag_->get());
        }
        update_positions(seq_id);
        read = bytes;
    });
    return read;
}

}  // namespace interpose
}  // namespace sinkcache
