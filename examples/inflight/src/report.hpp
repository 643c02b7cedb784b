// The program's output.
#pragma once

#include "executor.hpp"
#include "parking.hpp"
#include "utf8.hpp"
#include "vocabulary.hpp"

#include <cstdint>
#include <map>
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
    /** `json`: a line per request and one for the totals. The vocabulary must outlive it. */
    Report(std::ostream &out, bool json, const Vocabulary &vocabulary)
        : out_(out), json_(json), vocabulary_(vocabulary) {}
    void request(const Result &result);
    /** A part of an answer, as it comes; JSON. Characters are written when they are whole. */
    void token(const std::string &id, Token token);
    void totals(const Totals &totals);

private:
    std::ostream &out_;
    bool json_;
    const Vocabulary &vocabulary_;
    /** Of requests that are running. */
    std::map<std::string, Utf8Stream> streams_;
};

/** Writes the notes of a result, each in a line. */
void log_notes(std::ostream &log, const Result &result);

/** Overwrites the current line of a terminal. */
void show_progress(std::ostream &terminal, const Counters &counters);

}  // namespace inflight
