#include "metrics.hpp"

#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace inflight {
namespace {

struct Family {
    std::ostringstream &out;
    std::string name;

    Family(std::ostringstream &o, const char *n, const char *type, const char *help)
        : out(o), name("sinkcache_inflight_") {
        name += n;
        out << "# HELP " << name << ' ' << help << "\n# TYPE " << name << ' ' << type << '\n';
    }
    Family &sample(std::uint64_t value, const char *label = "") {
        out << name << label << ' ' << value << '\n';
        return *this;
    }
};

void parking_text(std::ostringstream &out, const ParkingCounters &p) {
    Family(out, "parked_conversations", "gauge", "Conversations without a slot, by where they rest.")
        .sample(p.in_memory, "{level=\"memory\"}")
        .sample(p.on_disk, "{level=\"disk\"}");
    Family(out, "parked_bytes", "gauge", "Bytes of parked conversations.")
        .sample(p.memory_bytes, "{level=\"memory\"}")
        .sample(p.disk_bytes, "{level=\"disk\"}");
    Family(out, "parked_total", "counter", "Conversations that were parked.").sample(p.parked);
    Family(out, "parked_written_total", "counter", "Parked conversations that were written to the folder.")
        .sample(p.written);
    Family(out, "parked_lookups_total", "counter", "Parked conversations that were asked for.")
        .sample(p.memory_hits, "{result=\"memory\"}")
        .sample(p.disk_hits, "{result=\"disk\"}")
        .sample(p.misses, "{result=\"miss\"}");
    Family(out, "parked_dropped_total", "counter", "Parked conversations that were dropped for lack of room.")
        .sample(p.dropped);
    Family(out, "parked_failures_total", "counter", "Files that could not be written, or were damaged.")
        .sample(p.write_failures, "{kind=\"write\"}")
        .sample(p.damaged, "{kind=\"damaged\"}");
}

}  // namespace

std::string prometheus_text(const Metrics &metrics) {
    const Counters &c = metrics.counters;
    std::ostringstream out;
    Family(out, "tokens_total", "counter", "Tokens added to the cache, without rejected drafts.")
        .sample(c.context_tokens, "{phase=\"context\"}")
        .sample(c.decode_tokens, "{phase=\"decode\"}");
    Family(out, "generated_tokens_total", "counter", "Tokens generated.").sample(c.generated_tokens);
    Family(out, "draft_tokens_total", "counter", "Draft tokens verified.")
        .sample(c.accepted_tokens, "{verdict=\"accepted\"}")
        .sample(c.drafted_tokens - c.accepted_tokens, "{verdict=\"rejected\"}");
    Family(out, "evicted_tokens_total", "counter", "Tokens evicted from the cache by its window.")
        .sample(c.evicted_tokens);
    Family(out, "edited_tokens_total", "counter", "Tokens pinned in the cache, and dropped from it by ranges.")
        .sample(c.pinned_tokens, "{edit=\"pinned\"}")
        .sample(c.dropped_tokens, "{edit=\"dropped\"}");
    Family(out, "refused_edits_total", "counter", "Pins and dropped ranges that there was no room for.")
        .sample(c.refused_edits);
    Family(out, "iterations_total", "counter", "Batches run.").sample(c.iterations);
    Family(out, "batch_rows_total", "counter", "Tokens in all batches.").sample(c.batch_rows);
    Family(out, "batch_budget_rows_total", "counter", "Token budget of all batches.").sample(c.batch_budget);
    Family(out, "requests_total", "counter", "Requests that ended.")
        .sample(c.done, "{outcome=\"done\"}")
        .sample(c.cancelled, "{outcome=\"cancelled\"}")
        .sample(c.failed, "{outcome=\"failed\"}");
    Family(out, "sequences", "gauge", "Sequences in the cache.")
        .sample(c.running, "{state=\"active\"}")
        .sample(c.idle_conversations, "{state=\"idle\"}");
    Family(out, "waiting_requests", "gauge", "Requests without a sequence yet.").sample(c.waiting);
    Family(out, "cache_bytes", "gauge", "Memory of the cache, allocated at creation.").sample(metrics.cache_bytes);
    if (metrics.parking) {
        parking_text(out, *metrics.parking);
    }
    return out.str();
}

void write_metrics(const std::string &path, const Metrics &metrics) {
    const std::string temporary = path + ".tmp";
    std::ofstream file(temporary, std::ios::trunc);
    file << prometheus_text(metrics);
    file.close();
    if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
        std::remove(temporary.c_str());
        throw std::runtime_error("metrics file '" + path + "' cannot be written");
    }
}

}  // namespace inflight
