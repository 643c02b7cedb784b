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

/** Lower end of the first bucket; each bucket ends BUCKET_RATIO times above its lower end. */
constexpr double MIN_MS = 1e-4;
constexpr double BUCKET_RATIO = 1.005;

}  // namespace

void Durations::add(double ms) {
    const double at = std::log(std::max(ms, MIN_MS) / MIN_MS) / std::log(BUCKET_RATIO);
    const auto bucket = static_cast<std::size_t>(at);
    if (bucket >= buckets_.size()) {
        buckets_.resize(bucket + 1);
    }
    ++buckets_[bucket];
    ++count_;
    total_ += ms;
}

std::optional<double> Durations::quantile(double q) const {
    if (count_ == 0) {
        return std::nullopt;
    }
    const auto rank = static_cast<std::uint64_t>(q * double(count_ - 1));
    std::uint64_t before = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
        before += buckets_[i];
        if (before > rank) {
            return MIN_MS * std::pow(BUCKET_RATIO, double(i) + 0.5);
        }
    }
    return std::nullopt;
}

std::optional<double> Perplexity::value() const {
    return count_ ? std::optional<double>(std::exp(sum_ / double(count_))) : std::nullopt;
}

double negative_log_likelihood(const float *logits, std::int32_t n, std::int32_t target) {
    const double max_logit = *std::max_element(logits, logits + n);
    double total = 0;
    for (std::int32_t i = 0; i < n; ++i) {
        total += std::exp(logits[i] - max_logit);
    }
    return max_logit + std::log(total) - logits[target];
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
    struct rusage usage{};
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
