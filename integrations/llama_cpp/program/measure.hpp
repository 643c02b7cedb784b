// Numbers of a run that need no more memory the longer it gets.
#ifndef LLAMA_STREAM_MEASURE_HPP
#define LLAMA_STREAM_MEASURE_HPP

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

/** Durations, kept in buckets half a percent wide. */
class Durations {
public:
    void add(double ms);
    std::uint64_t count() const { return count_; }
    double total_ms() const { return total_; }
    /** The `share` quantile in ms; nothing of nothing. */
    std::optional<double> quantile(double share) const;

private:
    std::vector<std::uint32_t> buckets_;
    std::uint64_t count_ = 0;
    double total_ = 0;
};

/** Mean of negative log-likelihoods as perplexity. */
class Perplexity {
public:
    void add(double nll) { sum_ += nll, ++count_; }
    std::uint64_t count() const { return count_; }
    std::optional<double> value() const;

private:
    double sum_ = 0;
    std::uint64_t count_ = 0;
};

/** -log softmax(logits)[target] */
double negative_log_likelihood(const float *logits, std::int32_t n, std::int32_t target);

/** Bytes this process holds in memory now, and at most has held; nothing where the system does not tell. */
std::optional<std::uint64_t> resident_bytes();
std::optional<std::uint64_t> peak_resident_bytes();

class Stopwatch {
public:
    double ms() const {
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

#endif
