// The program's output.
#pragma once

#include "executor.hpp"
#include "parking.hpp"

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

namespace inflight {

/** What a report says about the whole run. */
struct Totals {
    Counters counters;
    /** With parking. */
    std::optional<ParkingCounters> parking;
    double seconds = 0;
    CacheBytes cache{};
    std::size_t ranks = 1;
};

class Report {
public:
    /** `json`: a line per request and one for the totals. `bytes`: tokens are also printed as text. */
    Report(std::ostream &out, bool json, bool bytes) : out_(out), json_(json), bytes_(bytes) {}
    void request(const Result &result);
    void totals(const Totals &totals);

private:
    std::ostream &out_;
    bool json_, bytes_;

    std::string text(const std::vector<Token> &tokens) const;
};

/** Writes the notes of a result, each in a line. */
void log_notes(std::ostream &log, const Result &result);

/** Overwrites the current line of a terminal. */
void show_progress(std::ostream &terminal, const Counters &counters);

}  // namespace inflight
