// Counters for Prometheus.
#pragma once

#include "executor.hpp"

#include <cstdint>
#include <string>

namespace inflight {

/** The counters in the text format of Prometheus. */
std::string prometheus_text(const Counters &counters, std::uint64_t cache_bytes);

/**
 * Writes the counters to a file for the textfile collectors of node_exporter and Grafana Alloy. It is replaced by a
 * rename, so that they never read half of it.
 *
 * Throws std::runtime_error when the file cannot be written.
 */
void write_metrics(const std::string &path, const Counters &counters, std::uint64_t cache_bytes);

}  // namespace inflight
