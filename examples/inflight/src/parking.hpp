// Where conversations rest that have no slot: in host memory, then in a folder.
#pragma once

#include "group.hpp"
#include "park_folder.hpp"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

namespace inflight {

struct ParkingConfig {
    /** Most bytes in memory, of this rank. */
    std::uint64_t memory = 0;
    /** Empty = no folder. */
    std::string folder;
    /** Most bytes of files, of this rank. */
    std::uint64_t disk = 0;
    /** Of the model and this rank: what is parked under another tag is not found. */
    programs::Digest tag{};
};

struct ParkingCounters {
    /** Current numbers of conversations, and their bytes. */
    std::uint64_t in_memory = 0, on_disk = 0, memory_bytes = 0, disk_bytes = 0;
    /** Conversations that were put in, and those of them that went on to the folder. */
    std::uint64_t parked = 0, written = 0;
    /** Conversations that were taken out or copied, from either level. */
    std::uint64_t memory_hits = 0, disk_hits = 0;
    /** Those that were asked for and not there, damaged, or refused. */
    std::uint64_t misses = 0;
    /** Those that were dropped to make room for others. */
    std::uint64_t dropped = 0;
    /** Files that could not be written, and damaged ones. */
    std::uint64_t write_failures = 0, damaged = 0;
};

/** What became of a content that was asked for. */
struct Fetched {
    enum How {
        /** It was read on all ranks. */
        read,
        /** It is missing or damaged, on this rank or on another, and is not parked any more. */
        lost,
        /** It could not be read now, and stays. */
        refused,
    } how;
    /** Why it was refused. */
    std::string reason;
};

/** False if the content is damaged. What it throws is another reason for which it could not be read. */
using Reader = std::function<bool(const Bytes &)>;

/**
 * Contents by the name of their conversation. Memory is filled first; what has been there longest moves to the folder,
 * and what has been there longest is dropped. Every content is in one of the two.
 *
 * A conversation is *wanted* while a request waits for it. It is not dropped for others.
 *
 * Ranks park and take in the same order, each its own shard. What fails on one is a miss on all, so that they go on
 * with the same decisions.
 */
class Parking {
public:
    /** With what the folder holds from an earlier run. The group must outlive it. Throws std::runtime_error. */
    Parking(const ParkingConfig &config, Group &group);

    /**
     * `content`: none if this rank could not save it. False if a rank has none, or no room: then no content has this
     * name. Others that are wanted are still there.
     */
    bool put(const std::string &name, std::optional<Bytes> content, bool wanted);
    bool contains(const std::string &name) const { return entries_.count(name) > 0; }
    /** Of a conversation that is there. */
    bool on_disk(const std::string &name) const { return !entries_.at(name).content; }
    void set_wanted(const std::string &name, bool wanted);
    /** Removes a content that was read. */
    Fetched take(const std::string &name, const Reader &read) { return fetch(name, read, false); }
    /** A content that was read stays. */
    Fetched copy(const std::string &name, const Reader &read) { return fetch(name, read, true); }
    void remove(const std::string &name);
    /** Counts a name that is not there. */
    void count_miss() { counters_.misses++; }
    /**
     * What was taken out does not come back, also after a loss of power. To be called before anyone may rely on the
     * conversation having gone on.
     */
    void sync() {
        if (folder_) {
            folder_->sync();
        }
    }
    /** Moves what is in memory to the folder, for the next run. What does not fit stays in memory. */
    void move_to_disk();
    const ParkingCounters &counters() const { return counters_; }

private:
    struct Entry {
        std::uint64_t stamp;
        bool wanted;
        /** Of the content, or of its file. */
        std::uint64_t bytes;
        /** Nothing if it is in the folder. */
        std::optional<Bytes> content;
    };
    using Entries = std::map<std::string, Entry>;
    /** The names of a level by their stamp. */
    using Order = std::map<std::uint64_t, std::string>;

    std::uint64_t memory_, disk_;
    Group &group_;
    std::unique_ptr<ParkFolder> folder_;
    Entries entries_;
    Order memory_order_, disk_order_;
    ParkingCounters counters_;
    std::uint64_t stamp_ = 0;

    void adopt_files();
    Fetched fetch(const std::string &name, const Reader &read, bool keep);
    bool make_room_in_memory(std::uint64_t bytes);
    bool make_room_on_disk(std::uint64_t bytes);
    bool drop_oldest(const Order &order);
    bool write(const std::string &name, std::uint64_t stamp, const Bytes &content, bool wanted);
    bool move_to_disk(const std::string &oldest);
    void add_to_disk(const ParkedFile &file, bool wanted);
    bool erase(Entries::iterator entry, bool in_memory);
};

}  // namespace inflight
