// A context of the host that is served: decoding, edits and what the host is told, in llama.cpp's terms.
#ifndef SINKCACHE_INTERPOSE_SERVED_HPP
#define SINKCACHE_INTERPOSE_SERVED_HPP

#include "model_tag.hpp"
#include "settings.hpp"

#include "stream.hpp"

#include <llama.h>

#include <cstdint>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace sinkcache {
namespace interpose {

/**
 * Calls that change something, or read the cache, wait for one another: llama.cpp's server asks for numbers and edits
 * other sequences while a batch is computed. Questions never wait: their answers are kept on the side.
 *
 * Nothing is thrown but by create(). What goes wrong is a line in the log and a result that llama.cpp documents.
 */
class Served {
public:
    /**
     * Creates the context and its stream, and checks the configuration. The cache itself is made at the first use,
     * since hosts create contexts only to measure them. `n_ctx` is what the host has asked for, or its model's.
     *
     * @throws Error with the reason
     */
    Served(llama_model *model, const llama_context_params &params, std::uint32_t n_ctx, const Settings &settings,
           std::shared_ptr<ModelTag> tag);

    llama_context *context() const { return stream_.context(); }
    llama_model *model() const { return model_; }
    /** What the host is told in place of its context's length. */
    std::uint32_t length() const { return length_; }
    /** What the host has asked for. */
    std::uint32_t n_ctx() const { return n_ctx_; }
    std::uint32_t n_seqs() const { return n_seqs_; }
    /**
     * What the host is told as the tokens that a recurrent state can go back. llama.cpp's server keeps checkpoints of
     * prompts if there are any.
     */
    std::uint32_t n_rs_seq() const { return checkpoints_ ? stream_.max_rewind() : 0; }

    /** @return llama.cpp's result; -1 for a batch that was refused, -3 for an error of the cache. */
    std::int32_t decode(const std::vector<llama_cpp::BatchRow> &rows,
                        const std::function<std::int32_t(const std::vector<llama_pos> &)> &compute);

    void clear_all();
    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    void seq_cp(llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);
    void seq_keep(llama_seq_id seq_id);
    /** llama_memory_seq_add and _div: not supported, unless nothing lies in the range. `what` says it. */
    void seq_move(const char *what, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    /** Never wait. -1 for a sequence that is empty or does not exist. */
    llama_pos pos_min(llama_seq_id seq_id) const;
    llama_pos pos_max(llama_seq_id seq_id) const;

    void set_n_threads(std::int32_t n_threads, std::int32_t n_threads_batch);
    void set_abort_callback(ggml_abort_callback callback, void *data) { stream_.set_abort_callback(callback, data); }

    /**
     * Bytes of a sequence's state; 0 if it does not exist. Of a sequence that cannot be saved it is the state that says
     * so: a host takes 0 bytes that are written and read for a success.
     */
    std::size_t state_bytes(llama_seq_id seq_id);
    /** Writes that many; 0 for an error, among them too little room. */
    std::size_t save_state(llama_seq_id seq_id, std::uint8_t *to, std::size_t n_bytes);
    /** Bytes read; 0 for an error, and nothing has changed. */
    std::size_t load_state(llama_seq_id seq_id, const std::uint8_t *from, std::size_t n_bytes);

private:
    class Turn;
    struct Positions {
        llama_pos min = -1, max = -1;
    };

    void make_cache();
    void clear(llama_seq_id seq_id);
    bool remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    void break_sequence(llama_seq_id seq_id, const std::string &why);
    void update_positions(llama_seq_id seq_id);
    bool exists(const char *call, llama_seq_id seq_id) const;
    std::size_t snapshot_bytes(llama_seq_id seq_id);
    /** Runs `call`; an Error becomes a line that begins with `what`, and false. */
    bool attempt(const std::string &what, const std::function<void()> &call);

    llama_model *model_;
    std::uint32_t n_ctx_, length_, n_seqs_;
    bool checkpoints_;
    llama_cpp::Stream stream_;
    std::shared_ptr<ModelTag> tag_;
    std::mutex mutex_;
    /** The thread whose turn it is, so that a callback of the host that calls back is refused and does not wait. */
    std::atomic<std::thread::id> owner_{};
    mutable std::mutex positions_mutex_;
    std::vector<Positions> positions_;
};

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_SERVED_HPP
