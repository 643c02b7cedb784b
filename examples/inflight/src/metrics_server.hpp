// Counters over HTTP, for a Prometheus that pulls.
#pragma once

#include "metrics.hpp"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

struct MHD_Daemon;

namespace inflight {

/**
 * Answers GET /metrics in a thread of its own, with the counters that were published last. It serves few connections at
 * a time and ends those that are silent; it knows neither TLS nor passwords.
 */
class MetricsServer {
public:
    /**
     * Listens. `address` is an IPv4 or IPv6 address of this machine, in digits; port 0 is any free one.
     *
     * Throws std::runtime_error when it is no address, or nobody can listen there.
     */
    MetricsServer(const std::string &address, std::uint16_t port);
    ~MetricsServer();
    MetricsServer(const MetricsServer &) = delete;
    MetricsServer &operator=(const MetricsServer &) = delete;

    /** Where the counters are read, with the port that was found. */
    const std::string &url() const { return url_; }
    /** What is answered from now on. From any thread. */
    void publish(const Metrics &metrics);
    /** Returns true as soon as an answer with the counters published last has been sent, false after `most`. */
    bool wait_until_read(std::chrono::milliseconds most);

    /** For the library's callbacks. The number says which publication the text belongs to. */
    struct Answer {
        std::string text;
        std::uint64_t publication;
    };
    Answer answer();
    void sent(std::uint64_t publication);

private:
    MHD_Daemon *daemon_ = nullptr;
    std::string url_;
    std::mutex mutex_;
    std::condition_variable was_sent_;
    Metrics metrics_;
    /** Of metrics_, and of the newest that a client has. */
    std::uint64_t publication_ = 1, sent_ = 0;
};

}  // namespace inflight
