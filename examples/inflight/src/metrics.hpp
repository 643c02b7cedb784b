// Counters for Prometheus.
#pragma once

#include "executor.hpp"
#include "parking.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace inflight {

/** What is measured. */
struct Metrics {
    Counters counters;
    /** With parking. */
    std::optional<ParkingCounters> parking;
    std::uint64_t cache_bytes = 0;
};

/** The counters in the text format of Prometheus. */
std::string prometheus_text(const Metrics &metrics);

/**
 * Writes the counters to a file for the textfile collectors of node_exporter and Grafana Alloy. It is replaced by a
 * rename, so that they never read half of it.
 *
 * Throws std::runtime_error when the file cannot be written.
 */
void write_metrics(const std::string &path, const Metrics &metrics);

}  // namespace inflight
