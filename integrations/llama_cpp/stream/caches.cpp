#include "caches.hpp"

#include <algorithm>
#include <cstring>
#include <string>

namespace sinkcache {
namespace llama_cpp {
namespace {

/** Of several caches a snapshot is a header, and theirs in order, each behind its size in bytes. */
using Size = std::uint64_t;
struct Header {
    char magic[8] = {'S', 'K', 'C', '-', 'P', 'R', 'T', '\n'};
    /** Caches. */
    std::uint64_t n = 0;
};

/** The number of caches of a snapshot that begins like one of several; 1 otherwise. */
std::uint64_t n_caches(Span<std::uint8_t> saved) {
    Header header;
    if (saved.size() < sizeof header || std::memcmp(saved.data(), header.magic, sizeof header.magic) != 0) {
        return 1;
    }
    std::memcpy(&header, saved.data(), sizeof header);
    return header.n;
}

/** Where the layers are decides how many there are. */
void check_n_caches(Span<std::uint8_t> saved, std::size_t n) {
    const std::uint64_t found = n_caches(saved);
    if (found != n) {
        throw Error(SKC_STATUS_INVALID_SNAPSHOT,
                    "a snapshot of " + std::to_string(found) + (found == 1 ? " cache" : " caches") +
                        ", or a damaged one: this stream has " + std::to_string(n) +
                        "; it must have been saved with the same layers on the GPU (n_gpu_layers)");
    }
}

/** The snapshots of `n` caches. @throws Error SKC_STATUS_INVALID_SNAPSHOT */
std::vector<Span<std::uint8_t>> split(Span<std::uint8_t> saved, std::size_t n) {
    const auto invalid = [&](const std::string &reason) {
        throw Error(SKC_STATUS_INVALID_SNAPSHOT,
                    "a snapshot of " + std::to_string(saved.size()) + " bytes " + reason);
    };
    std::vector<Span<std::uint8_t>> parts;
    std::size_t at = sizeof(Header);
    for (std::size_t i = 0; i < n; ++i) {
        Size size = 0;
        if (saved.size() - at < sizeof size) {
            invalid("ends before part " + std::to_string(i) + " of " + std::to_string(n));
        }
        std::memcpy(&size, saved.data() + at, sizeof size);
        at += sizeof size;
        if (size > saved.size() - at) {
            invalid("has a part of " + std::to_string(size) + " bytes at " + std::to_string(at));
        }
        parts.emplace_back(saved.data() + at, static_cast<std::size_t>(size));
        at += static_cast<std::size_t>(size);
    }
    if (at != saved.size()) {
        invalid("goes on after its last part, which ends at " + std::to_string(at));
    }
    return parts;
}

}  // namespace

Caches::Caches(const std::vector<Config> &configs) {
    for (const Config &config : configs) {
        caches_.emplace_back(config);
        const skc_cache_config c = config.get();
        n_layers_.push_back(c.n_layers);
        has_pins_.push_back(std::any_of(c.layers, c.layers + c.n_layer_configs,
                                        [](const skc_layer_config &layer) { return layer.max_pinned > 0; }));
    }
}

/** @param edit is called with the index of each cache */
template <class Edit>
void Caches::in_all(const Edit &edit) {
    for (std::size_t i = 0; i < caches_.size(); ++i) {
        try {
            edit(i);
        } catch (const Error &e) {
            if (i == 0) {
                throw;
            }
            throw UnevenError(e.status(), e.what());
        }
    }
}

skc_sequence_info Caches::info(std::int32_t seq_id) const {
    skc_sequence_info all = caches_[0].info(seq_id);
    for (std::size_t i = 1; i < caches_.size(); ++i) {
        const skc_sequence_info one = caches_[i].info(seq_id);
        all.length_min = std::min(all.length_min, one.length_min);
        all.length_max = std::max(all.length_max, one.length_max);
        all.rewindable = std::min(all.rewindable, rewindable(i, seq_id));
    }
    return all;
}

void Caches::reset(std::int32_t seq_id, std::uint64_t start_position) {
    in_all([&](std::size_t i) { caches_[i].reset({seq_id}, {start_position}); });
}

std::uint64_t Caches::rewindable(std::size_t cache, std::int32_t seq_id) const {
    std::uint64_t least = caches_[cache].info(seq_id).rewindable;
    for (std::uint32_t layer = 1; layer < n_layers_[cache]; ++layer) {
        least = std::min(least, caches_[cache].info(seq_id, layer).rewindable);
    }
    return least;
}

void Caches::rewind(std::int32_t seq_id, std::int32_t n) {
    for (std::size_t i = 1; i < caches_.size(); ++i) {
        if (static_cast<std::uint64_t>(n) > rewindable(i, seq_id)) {
            // It refuses, with the reason, before another has done it.
            caches_[i].rewind({seq_id}, {n});
        }
    }
    in_all([&](std::size_t i) { caches_[i].rewind({seq_id}, {n}); });
}

void Caches::pin(std::int32_t seq_id, std::uint64_t first, std::int32_t n) {
    const bool none = std::none_of(has_pins_.begin(), has_pins_.end(), [](bool has) { return has; });
    in_all([&](std::size_t i) {
        // Without room in any, the error is the first one's.
        if (has_pins_[i] || none) {
            caches_[i].pin({seq_id}, {first}, {n});
        }
    });
}

void Caches::evict_range(std::int32_t seq_id, std::uint64_t first, std::int32_t n) {
    in_all([&](std::size_t i) { caches_[i].evict_range({seq_id}, {first}, {n}); });
}

void Caches::fork(std::int32_t src, std::int32_t dst) {
    in_all([&](std::size_t i) { caches_[i].fork({src}, {dst}); });
}

void Caches::cut_failed_step(std::int32_t seq_id, std::uint64_t most) {
    // First of all: while a step is unfinished a cache takes no other call.
    in_all([&](std::size_t i) { caches_[i].abort_step({seq_id}); });
    const std::uint64_t length = std::min(most, info(seq_id).length_min);
    in_all([&](std::size_t i) {
        const std::uint64_t now = caches_[i].info(seq_id).length_min;
        if (now > length) {
            caches_[i].rewind({seq_id}, {static_cast<std::int32_t>(now - length)});
        }
    });
}

std::size_t Caches::snapshot_bytes(std::int32_t seq_id) {
    if (caches_.size() == 1) {
        return caches_[0].snapshot_bytes(seq_id);
    }
    std::size_t all = sizeof(Header);
    for (Cache &cache : caches_) {
        all += sizeof(Size) + cache.snapshot_bytes(seq_id);
    }
    return all;
}

std::size_t Caches::save_to(std::int32_t seq_id, std::uint8_t *to, std::size_t n_bytes, const HostTag &tag) {
    if (caches_.size() == 1) {
        return caches_[0].save_to(seq_id, to, n_bytes, tag);
    }
    const std::size_t needed = snapshot_bytes(seq_id);
    if (n_bytes < needed) {
        throw Error(SKC_STATUS_OUT_OF_RANGE, "n_bytes is " + std::to_string(n_bytes) + ": the snapshot has " +
                                                 std::to_string(needed) + " bytes");
    }
    Header header;
    header.n = caches_.size();
    std::memcpy(to, &header, sizeof header);
    std::size_t at = sizeof header;
    for (Cache &cache : caches_) {
        const std::size_t begin = at + sizeof(Size);
        const Size size = cache.save_to(seq_id, to + begin, n_bytes - begin, tag);
        std::memcpy(to + at, &size, sizeof size);
        at = begin + static_cast<std::size_t>(size);
    }
    return at;
}

void Caches::load(std::int32_t seq_id, Span<std::uint8_t> saved, const HostTag &tag) {
    check_n_caches(saved, caches_.size());
    if (caches_.size() == 1) {
        caches_[0].load(seq_id, saved, tag);
        return;
    }
    const std::vector<Span<std::uint8_t>> parts = split(saved, caches_.size());
    // What the caches had, for when one refuses its part. An unusable sequence may have nothing to go back to.
    std::vector<std::vector<std::uint8_t>> before(caches_.size());
    for (std::size_t i = 0; i < caches_.size(); ++i) {
        try {
            before[i] = caches_[i].save(seq_id);
        } catch (const Error &e) {
            if (e.status() == SKC_STATUS_OUT_OF_RANGE) {
                throw;
            }
        }
    }
    std::size_t loaded = 0;
    try {
        for (; loaded < caches_.size(); ++loaded) {
            caches_[loaded].load(seq_id, parts[loaded], tag);
        }
        check_even(seq_id);
    } catch (const Error &refused) {
        for (std::size_t i = 0; i < loaded; ++i) {
            if (before[i].empty()) {
                throw UnevenError(refused.status(), refused.what());
            }
            caches_[i].load(seq_id, before[i]);
        }
        throw;
    }
}

/** @throws Error unless all caches hold the same tokens of a sequence that was loaded */
void Caches::check_even(std::int32_t seq_id) const {
    const skc_sequence_info first = caches_[0].info(seq_id);
    for (const Cache &cache : caches_) {
        const skc_sequence_info other = cache.info(seq_id);
        if (other.length_max != first.length_max || other.start_position != first.start_position) {
            throw Error(SKC_STATUS_INVALID_SNAPSHOT,
                        "parts of a snapshot have " + std::to_string(first.length_max) + " tokens from " +
                            std::to_string(first.start_position) + " on and " + std::to_string(other.length_max) +
                            " from " + std::to_string(other.start_position) + " on");
        }
    }
}

}  // namespace llama_cpp
}  // namespace sinkcache
