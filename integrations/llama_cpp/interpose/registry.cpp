#include "registry.hpp"

#include "host.hpp"

#include <utility>

namespace sinkcache {
namespace interpose {

Registry &registry() {
    // Never destroyed: hosts call llama.cpp while the process ends, and leave contexts to its end.
    static Registry &one = *new Registry();
    return one;
}

std::shared_ptr<Served> Registry::find(const llama_context *ctx) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = served_.find(ctx);
    return found == served_.end() ? nullptr : found->second;
}

std::shared_ptr<Served> Registry::find(llama_memory_t memory) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = memories_.find(memory);
    return found == memories_.end() ? nullptr : found->second;
}

void Registry::add(std::shared_ptr<Served> served) {
    const llama_memory_t memory = real().llama_get_memory(served->context());
    const std::lock_guard<std::mutex> lock(mutex_);
    lengths_told_[served->model()] = served->length();
    lengths_asked_[served->length()] = served->n_ctx();
    memories_[memory] = served;
    served_[served->context()] = std::move(served);
}

std::shared_ptr<Served> Registry::remove(const llama_context *ctx) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = served_.find(ctx);
    if (found == served_.end()) {
        return nullptr;
    }
    std::shared_ptr<Served> served = std::move(found->second);
    served_.erase(found);
    memories_.erase(real().llama_get_memory(ctx));
    return served;
}

void Registry::add_model(const llama_model *model, Model known) {
    const std::lock_guard<std::mutex> lock(mutex_);
    models_[model] = std::move(known);
}

void Registry::remove_model(const llama_model *model) {
    const std::lock_guard<std::mutex> lock(mutex_);
    models_.erase(model);
    lengths_told_.erase(model);
}

Registry::Model Registry::model(const llama_model *model) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Model &known = models_[model];
    if (!known.tag) {
        known.tag = std::make_shared<ModelTag>(model, std::vector<std::string>());
    }
    return known;
}

std::optional<std::uint32_t> Registry::length_told(const llama_model *model) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = lengths_told_.find(model);
    return found == lengths_told_.end() ? std::nullopt : std::optional<std::uint32_t>(found->second);
}

std::uint32_t Registry::meant_length(std::uint32_t n_ctx) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = lengths_asked_.find(n_ctx);
    return found == lengths_asked_.end() ? n_ctx : found->second;
}

std::vector<llama_cpp::BatchRow> Registry::rows(const llama_batch_ext *batch) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = rows_.find(batch);
    return found == rows_.end() ? std::vector<llama_cpp::BatchRow>() : found->second;
}

void Registry::clear_rows(const llama_batch_ext *batch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    rows_[batch].clear();
}

void Registry::forget_rows(const llama_batch_ext *batch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    rows_.erase(batch);
}

void Registry::set_row(const llama_batch_ext *batch, std::size_t index, const llama_cpp::BatchRow &row) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto &rows = rows_[batch];
    rows.resize(index + 1);
    rows[index] = row;
}

void Registry::append_row(const llama_batch_ext *batch, const llama_cpp::BatchRow &row) {
    const std::lock_guard<std::mutex> lock(mutex_);
    rows_[batch].push_back(row);
}

void Registry::add_sequence(const llama_batch_ext *batch, std::size_t index, llama_seq_id seq_id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto &rows = rows_[batch];
    if (index < rows.size() && rows[index].seq_id != seq_id) {
        ++rows[index].n_seq_ids;
    }
}

void Registry::set_position(const llama_batch_ext *batch, std::size_t index, llama_pos pos) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto &rows = rows_[batch];
    if (index < rows.size()) {
        rows[index].pos = pos;
    }
}

}  // namespace interpose
}  // namespace sinkcache
