// A small random number generator (xorshift64*, Vigna 2014). All orders come from it, so that a seed repeats a run.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace skc_shim {

class Random {
public:
    explicit Random(uint64_t seed) : state_(mix(seed)) {}

    uint32_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1dULL) >> 32);
    }

    // 0 .. n - 1.
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((uint64_t{next()} * n) >> 32); }

private:
    // SplitMix64's finaliser, so that consecutive seeds give unrelated sequences. The state must not be 0.
    static uint64_t mix(uint64_t x) {
        x += 0x9e3779b97f4a7c15ULL;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
        return (x ^ (x >> 31)) | 1;
    }

    uint64_t state_;
};

// SKC_SHIM_SEED, or 1.
inline uint64_t base_seed() {
    static const uint64_t seed = [] {
        const char* text = std::getenv("SKC_SHIM_SEED");
        return text ? std::strtoull(text, nullptr, 0) : 1;
    }();
    return seed;
}

}  // namespace skc_shim
