#include "measure.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

#ifdef __unix__
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace {

constexpr double LEAST_MS = 1e-4;
constexpr double WIDTH = 1.005;

}  // namespace

void Durations::add(double ms) {
    const double at = std::log(std::max(ms, LEAST_MS) / LEAST_MS) / std::log(WIDTH);
    const auto bucket = static_cast<std::size_t>(at);
    if (bucket >= buckets_.size()) {
        buckets_.resize(bucket + 1);
    }
    ++buckets_[bucket];
    ++count_;
    total_ += ms;
}

std::optional<double> Durations::quantile(double share) const {
    if (count_ == 0) {
        return std::nullopt;
    }
    const auto rank = static_cast<std::uint64_t>(share * double(count_ - 1));
    std::uint64_t before = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
        before += buckets_[i];
        if (before > rank) {
            return LEAST_MS * std::pow(WIDTH, double(i) + 0.5);
        }
    }
    return std::nullopt;
}

std::optional<double> Perplexity::value() const {
    return count_ ? std::optional<double>(std::exp(sum_ / double(count_))) : std::nullopt;
}

double negative_log_likelihood(const float *logits, std::int32_t n, std::int32_t target) {
    const double most = *std::max_element(logits, logits + n);
    double total = 0;
    for (std::int32_t i = 0; i < n; ++i) {
        total += std::exp(logits[i] - most);
    }
    return most + std::log(total) - logits[target];
}

std::optional<std::uint64_t> resident_bytes() {
#ifdef __linux__
    std::ifstream file("/proc/self/statm");
    std::uint64_t size = 0, resident = 0;
    if (file >> size >> resident) {
        return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    }
#endif
    return std::nullopt;
}

std::optional<std::uint64_t> peak_resident_bytes() {
#ifdef __unix__
    struct rusage usage {};
    if (getrusage(RUSAGE_SELF, &usage) == 0) {
#ifdef __APPLE__
        return static_cast<std::uint64_t>(usage.ru_maxrss);
#else
        return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
#endif
    }
#endif
    return std::nullopt;
}
