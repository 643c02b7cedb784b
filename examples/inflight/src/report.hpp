// What the program prints.
#pragma once

#include "executor.hpp"

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace inflight {

/** Everything beside the requests that a report names. */
struct Totals {
    Counters counters;
    double seconds = 0;
    std::uint64_t cache_bytes_host = 0, cache_bytes_device = 0;
    std::size_t ranks = 1;
};

class Report {
public:
    /** `json`: a line per request and one for the totals. `bytes`: tokens are shown as text. */
    Report(std::ostream &out, bool json, bool bytes) : out_(out), json_(json), bytes_(bytes) {}
    void request(const Result &result);
    void totals(const Totals &totals);

private:
    std::ostream &out_;
    bool json_, bytes_;

    std::string text(const std::vector<Token> &tokens) const;
};

/** One line on a terminal that is written over again and again. */
void show_progress(std::ostream &terminal, const Counters &counters);

}  // namespace inflight
