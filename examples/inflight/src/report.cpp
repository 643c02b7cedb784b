#include "report.hpp"

#include "command_line.hpp"

#include <nlohmann/json.hpp>

#include <cstdio>
#include <string>

namespace inflight {
namespace {

/** Names and errors are short; a terminal must not act on what they quote. */
constexpr std::size_t MAX_SHOWN = 1000;

const char *name(Outcome outcome) {
    return outcome == Outcome::done ? "done" : outcome == Outcome::cancelled ? "cancelled" : "failed";
}

const char *name(Restored restored) { return restored == Restored::from_memory ? "memory" : "disk"; }

std::string rounded(double x, const char *format = "%.1f") {
    char text[64];
    std::snprintf(text, sizeof text, format, x);
    return text;
}

double per(std::uint64_t part, double whole) { return whole > 0 ? static_cast<double>(part) / whole : 0; }

nlohmann::ordered_json parking_json(const ParkingCounters &p) {
    return {{"in_memory", p.in_memory},
            {"on_disk", p.on_disk},
            {"memory_bytes", p.memory_bytes},
            {"disk_bytes", p.disk_bytes},
            {"parked", p.parked},
            {"written", p.written},
            {"memory_hits", p.memory_hits},
            {"disk_hits", p.disk_hits},
            {"misses", p.misses},
            {"dropped", p.dropped},
            {"write_failures", p.write_failures},
            {"damaged", p.damaged}};
}

}  // namespace

void Report::token(const std::string &id, Token token) {
    const std::string text = streams_[id].push(vocabulary_.piece(token));
    if (!text.empty()) {
        const nlohmann::ordered_json line{{"id", id}, {"delta", text}};
        out_ << line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << std::endl;
    }
}

void Report::request(const Result &r) {
    // A result without tokens may be that of a second request whose id a running one has.
    if (!r.tokens.empty()) {
        streams_.erase(r.id);
    }
    if (json_) {
        nlohmann::ordered_json line{{"id", r.id}, {"outcome", name(r.outcome)}};
        if (r.outcome == Outcome::failed) {
            line["error"] = r.error;
        }
        line["tokens"] = r.tokens;
        if (vocabulary_.has_text()) {
            line["text"] = vocabulary_.text(r.tokens);
        }
        line["prompt_tokens"] = r.prompt_tokens;
        line["stream_length"] = r.stream_length;
        if (r.restored != Restored::not_parked) {
            line["restored_from"] = name(r.restored);
        }
        if (r.pinned > 0) {
            line["pinned_tokens"] = r.pinned;
        }
        if (r.dropped > 0) {
            line["dropped_tokens"] = r.dropped;
        }
        if (!r.notes.empty()) {
            line["notes"] = r.notes;
        }
        line["drafted"] = r.drafted;
        line["accepted"] = r.accepted;
        const auto add_time = [&](const char *key, double seconds) {
            line[key] = seconds < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(seconds);
        };
        add_time("waited_s", r.waited);
        add_time("first_token_s", r.first_token);
        line["tokens_per_s"] = r.tokens_per_second();
        out_ << line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << std::endl;
        return;
    }
    out_ << programs::one_line(r.id, MAX_SHOWN) << ": " << name(r.outcome);
    if (r.outcome == Outcome::failed) {
        out_ << ": " << programs::one_line(r.error, MAX_SHOWN);
    }
    if (!r.tokens.empty()) {
        out_ << ", " << r.prompt_tokens << " + " << r.tokens.size() << " tokens, waited " << rounded(1e3 * r.waited)
             << " ms, first token after " << rounded(1e3 * r.first_token) << " ms, " << rounded(r.tokens_per_second())
             << " tokens/s";
        if (r.restored != Restored::not_parked) {
            out_ << ", restored from " << name(r.restored);
        }
        if (r.pinned > 0) {
            out_ << ", " << r.pinned << " pinned";
        }
        if (r.dropped > 0) {
            out_ << ", " << r.dropped << " dropped";
        }
        if (r.drafted > 0) {
            out_ << ", " << r.accepted << " of " << r.drafted << " draft tokens accepted";
        }
        out_ << "\n    ";
        if (vocabulary_.has_text()) {
            const nlohmann::json text = vocabulary_.text(r.tokens);
            out_ << text.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
        } else {
            out_ << nlohmann::json(r.tokens).dump();
        }
    }
    out_ << std::endl;
}

void Report::totals(const Totals &t) {
    const Counters &c = t.counters;
    const double fill = per(c.batch_rows, static_cast<double>(c.batch_budget));
    const double acceptance = per(c.accepted_tokens, static_cast<double>(c.drafted_tokens));
    if (json_) {
        nlohmann::ordered_json totals{{"done", c.done},
                                            {"cancelled", c.cancelled},
                                            {"failed", c.failed},
                                            {"seconds", t.seconds},
                                            {"iterations", c.iterations},
                                            {"context_tokens", c.context_tokens},
                                            {"decode_tokens", c.decode_tokens},
                                            {"generated_tokens", c.generated_tokens},
                                            {"generated_per_s", per(c.generated_tokens, t.seconds)},
                                            {"evicted_tokens", c.evicted_tokens},
                                            {"pinned_tokens", c.pinned_tokens},
                                            {"dropped_tokens", c.dropped_tokens},
                                            {"refused_edits", c.refused_edits},
                                            {"batch_fill", fill},
                                            {"drafted", c.drafted_tokens},
                                            {"accepted", c.accepted_tokens},
                                            {"cache_bytes_host", t.cache.host},
                                            {"cache_bytes_device", t.cache.device},
                                            {"ranks", t.ranks}};
        if (t.parking) {
            totals["parking"] = parking_json(*t.parking);
        }
        out_ << nlohmann::ordered_json{{"totals", totals}}.dump() << std::endl;
        return;
    }
    out_ << "\n"
         << c.done << " done, " << c.cancelled << " cancelled, " << c.failed << " failed in "
         << rounded(t.seconds, "%.2f") << " s; " << c.context_tokens << " prompt tokens in, " << c.generated_tokens
         << " generated (" << rounded(per(c.generated_tokens, t.seconds)) << " tokens/s)\n"
         << c.iterations << " iterations, " << rounded(100 * fill) << " % of the budget used, " << c.evicted_tokens
         << " tokens evicted";
    if (c.pinned_tokens + c.dropped_tokens + c.refused_edits > 0) {
        out_ << ", " << c.pinned_tokens << " pinned, " << c.dropped_tokens << " dropped, " << c.refused_edits
             << " edits refused";
    }
    if (c.drafted_tokens > 0) {
        out_ << ", " << rounded(100 * acceptance) << " % of " << c.drafted_tokens << " draft tokens accepted";
    }
    out_ << "\ncache: " << t.cache.host << " bytes on the host, " << t.cache.device << " on the device"
         << (t.ranks > 1 ? ", on each of " + std::to_string(t.ranks) + " ranks" : "");
    if (t.parking) {
        const ParkingCounters &p = *t.parking;
        out_ << "\nparked: " << p.in_memory << " conversations in memory (" << p.memory_bytes << " bytes), "
             << p.on_disk << " on disk (" << p.disk_bytes << " bytes); restored " << p.memory_hits
             << " from memory and " << p.disk_hits << " from disk, " << p.misses << " misses, " << p.dropped
             << " dropped, " << p.write_failures + p.damaged << " failures";
    }
    out_ << std::endl;
}

void log_notes(std::ostream &log, const Result &result) {
    for (const std::string &note : result.notes) {
        log << "request " << programs::in_quotes(result.id) << ": " << programs::one_line(note, MAX_SHOWN)
            << std::endl;
    }
}

void show_progress(std::ostream &terminal, const Counters &c) {
    terminal << "\r\033[K" << c.done + c.cancelled + c.failed << " requests ended, " << c.running << " running, "
             << c.waiting << " waiting; " << c.context_tokens << " tokens in, " << c.generated_tokens << " out"
             << std::flush;
}

}  // namespace inflight
