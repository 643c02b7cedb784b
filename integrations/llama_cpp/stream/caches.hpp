// The caches of a stream: one for all layers whose heads have the same counts and dims.
#ifndef SINKCACHE_LLAMA_CACHES_HPP
#define SINKCACHE_LLAMA_CACHES_HPP

#include "sinkcache.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sinkcache {
namespace llama_cpp {

/** An edit that one cache has done and another has not: the sequence has to be cleared. */
struct UnevenError : Error {
    using Error::Error;
};

/**
 * Caches that hold the same tokens, each of other layers. Edits are made in all; what throws has changed none, unless
 * it throws UnevenError.
 */
class Caches {
public:
    /** One cache for each of at least one configuration. @throws Error as Cache() */
    explicit Caches(const std::vector<Config> &configs);

    skc_cache *handle(std::size_t cache) const { return caches_[cache].handle(); }
    /** Of the first cache; `length_min`, `length_max` and `rewindable` over all. */
    skc_sequence_info info(std::int32_t seq_id) const;
    void reset(std::int32_t seq_id, std::uint64_t start_position);
    void rewind(std::int32_t seq_id, std::int32_t n);
    /** In the caches that have room for pins. */
    void pin(std::int32_t seq_id, std::uint64_t first, std::int32_t n);
    void evict_range(std::int32_t seq_id, std::uint64_t first, std::int32_t n);
    void fork(std::int32_t src, std::int32_t dst);
    /**
     * Ends a step that failed, and cuts the sequence to the length of its shortest layer, or to `most` tokens if it is
     * longer.
     */
    void cut_failed_step(std::int32_t seq_id, std::uint64_t most);

    std::size_t snapshot_bytes(std::int32_t seq_id);
    std::size_t save_to(std::int32_t seq_id, std::uint8_t *to, std::size_t n_bytes, const HostTag &tag);
    void load(std::int32_t seq_id, Span<std::uint8_t> saved, const HostTag &tag);

private:
    template <class Edit>
    void in_all(const Edit &edit);
    void check_even(std::int32_t seq_id) const;
    std::uint64_t rewindable(std::size_t cache, std::int32_t seq_id) const;

    std::vector<Cache> caches_;
    /** Of each cache: its layers, and whether one of them has room for pins. */
    std::vector<std::uint32_t> n_layers_;
    std::vector<bool> has_pins_;
};

}  // namespace llama_cpp
}  // namespace sinkcache

#endif  // SINKCACHE_LLAMA_CACHES_HPP
