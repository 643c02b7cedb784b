// Measurements of a run, in memory that does not grow with its length.
#ifndef LLAMA_STREAM_MEASURE_HPP
#define LLAMA_STREAM_MEASURE_HPP

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

/** A histogram of durations with buckets of 0.5 % width. */
class Durations {
public:
    void add(double ms);
    std::uint64_t count() const { return count_; }
    double total_ms() const { return total_; }
    /** The `q` quantile in ms; none without durations. */
    std::optional<double> quantile(double q) const;

private:
    std::vector<std::uint32_t> buckets_;
    std::uint64_t count_ = 0;
    double total_ = 0;
};

/** exp of the mean of negative log-likelihoods. */
class Perplexity {
public:
    void add(double nll) {
        sum_ += nll;
        ++count_;
    }
    std::uint64_t count() const { return count_; }
    /** None without tokens. */
    std::optional<double> value() const;

private:
    double sum_ = 0;
    std::uint64_t count_ = 0;
};

/** -log softmax(logits)[target], for `n` logits. */
double negative_log_likelihood(const float *logits, std::int32_t n, std::int32_t target);

/** Resident memory of this process; none if the system does not report it. */
std::optional<std::uint64_t> resident_bytes();
/** Its maximum so far. */
std::optional<std::uint64_t> peak_resident_bytes();

/** Measures time since its construction. */
class Stopwatch {
public:
    double ms() const {
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

#endif
