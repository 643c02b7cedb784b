// The cache's sequence slots.
#pragma once

#include <cstdint>
#include <vector>

namespace inflight {

/** The free ones of slots 0 to n - 1. */
class Slots {
public:
    explicit Slots(std::uint32_t n) {
        for (std::uint32_t i = n; i > 0; i--) {
            free_.push_back(static_cast<std::int32_t>(i - 1));
        }
    }
    bool available() const { return !free_.empty(); }
    std::int32_t acquire() {
        const std::int32_t slot = free_.back();
        free_.pop_back();
        return slot;
    }
    void release(std::int32_t slot) { free_.push_back(slot); }

private:
    std::vector<std::int32_t> free_;
};

}  // namespace inflight
