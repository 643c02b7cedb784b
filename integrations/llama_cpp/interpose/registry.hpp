// The contexts that are served, and what is known of the host's models and batches. Any thread.
#ifndef SINKCACHE_INTERPOSE_REGISTRY_HPP
#define SINKCACHE_INTERPOSE_REGISTRY_HPP

#include "served.hpp"

#include <llama.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace sinkcache {
namespace interpose {

class Registry {
public:
    /** NULL for a context that is not served. */
    std::shared_ptr<Served> find(const llama_context *ctx) const;
    std::shared_ptr<Served> find(llama_memory_t memory) const;
    void add(std::shared_ptr<Served> served);
    /** Whether a host has asked for a context, served or not. */
    void note_context() { context_asked_for_ = true; }
    bool context_asked_for() const { return context_asked_for_; }
    /** What was served, to be destroyed by the caller. */
    std::shared_ptr<Served> remove(const llama_context *ctx);

    struct Model {
        std::shared_ptr<ModelTag> tag;
        /** Loaded without its tensors, to measure what it would need. */
        bool without_data = false;
    };
    void add_model(const llama_model *model, Model known);
    void remove_model(const llama_model *model);
    /** One that the host has not loaded from a file that it named is known by its metadata. */
    Model model(const llama_model *model);
    /** What the host is told as the length that a model was trained for; nothing if no context of it was served. */
    std::optional<std::uint32_t> length_told(const llama_model *model) const;
    /**
     * The context length that a host means: one that it was told by this library stands for what it had asked for
     * before. A draft model's context gets the length of the target's, for example.
     */
    std::uint32_t meant_length(std::uint32_t n_ctx) const;

    /** The rows of a llama_batch_ext, which has no getters. */
    std::vector<llama_cpp::BatchRow> rows(const llama_batch_ext *batch) const;
    void clear_rows(const llama_batch_ext *batch);
    void forget_rows(const llama_batch_ext *batch);
    void set_row(const llama_batch_ext *batch, std::size_t index, const llama_cpp::BatchRow &row);
    void append_row(const llama_batch_ext *batch, const llama_cpp::BatchRow &row);
    void add_sequence(const llama_batch_ext *batch, std::size_t index, llama_seq_id seq_id);
    void set_position(const llama_batch_ext *batch, std::size_t index, llama_pos pos);

private:
    std::atomic<bool> context_asked_for_{false};
    mutable std::mutex mutex_;
    std::map<const llama_context *, std::shared_ptr<Served>> served_;
    std::map<llama_memory_t, std::shared_ptr<Served>> memories_;
    std::map<const llama_model *, Model> models_;
    std::map<const llama_model *, std::uint32_t> lengths_told_;
    /** By the length told: what was asked for. */
    std::map<std::uint32_t, std::uint32_t> lengths_asked_;
    std::map<const llama_batch_ext *, std::vector<llama_cpp::BatchRow>> rows_;
};

/** The one of this process. */
Registry &registry();

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_REGISTRY_HPP
