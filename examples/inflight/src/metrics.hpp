// Counters for Prometheus.
#pragma once

#include "executor.hpp"

#include <cstdint>
#include <string>

namespace inflight {

/** The counters in Prometheus' text format. */
std::string prometheus_text(const Counters &counters, std::uint64_t cache_bytes);

/**
 * Writes the counters to a file as the textfile collectors of node_exporter and Grafana Alloy want it: whole, by a rename.
 *
 * Throws std::runtime_error when the file cannot be written.
 */
void write_metrics(const std::string &path, const Counters &counters, std::uint64_t cache_bytes);

}  // namespace inflight
