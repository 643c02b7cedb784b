#include "parking.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

namespace inflight {
namespace {

/** A name as 64 bits, so that ranks can compare what they found. */
std::uint64_t name_hash(const std::string &name) {
    const programs::Digest digest = programs::Hash().add(name).digest();
    return programs::ByteReader(digest.data(), digest.size()).u64();
}

void push_words(std::vector<Token> &words, std::uint64_t x) {
    words.push_back(static_cast<Token>(static_cast<std::uint32_t>(x)));
    words.push_back(static_cast<Token>(static_cast<std::uint32_t>(x >> 32)));
}

std::uint64_t words_at(const std::vector<Token> &words, std::size_t i) {
    return static_cast<std::uint32_t>(words[i]) | std::uint64_t{static_cast<std::uint32_t>(words[i + 1])} << 32;
}

}  // namespace

Parking::Parking(const ParkingConfig &config, Group &group)
    : memory_(config.memory), disk_(config.disk), group_(group) {
    if (!config.folder.empty()) {
        folder_ = std::make_unique<ParkFolder>(config.folder, config.tag);
        adopt_files();
    }
}

/** Takes over the files that all ranks have found, of one stamp. A killed run leaves others, too. */
void Parking::adopt_files() {
    const std::vector<ParkedFile> &found = folder_->found();
    std::map<std::pair<std::uint64_t, std::uint64_t>, const ParkedFile *> here;
    std::vector<Token> first{static_cast<Token>(found.size())}, listed;
    push_words(first, found.empty() ? 0 : found.back().stamp);
    for (const ParkedFile &file : found) {
        const std::uint64_t hash = name_hash(file.name);
        here[{hash, file.stamp}] = &file;
        push_words(listed, hash);
        push_words(listed, file.stamp);
    }
    group_.broadcast(first);
    listed.resize(4 * static_cast<std::size_t>(first[0]));
    group_.broadcast(listed);
    stamp_ = words_at(first, 1);
    counters_.damaged = folder_->n_damaged();
    for (std::size_t i = 0; i < listed.size(); i += 4) {
        const auto file = here.find({words_at(listed, i), words_at(listed, i + 2)});
        if (group_.all(file != here.end())) {
            add_to_disk(*file->second, false);
        }
    }
    for (const ParkedFile &file : found) {
        if (!contains(file.name)) {
            folder_->remove(file.name);
        }
    }
    make_room_on_disk(0);
}

void Parking::add_to_disk(const ParkedFile &file, bool wanted) {
    entries_[file.name] = {file.stamp, wanted, file.bytes, std::nullopt};
    disk_order_[file.stamp] = file.name;
    counters_.on_disk++;
    counters_.disk_bytes += file.bytes;
}

bool Parking::put(const std::string &name, std::optional<Bytes> content, bool wanted) {
    remove(name);
    const std::uint64_t stamp = ++stamp_;
    if (!group_.all(content.has_value())) {
        return false;
    }
    const std::uint64_t bytes = content->size();
    if (make_room_in_memory(bytes)) {
        entries_[name] = {stamp, wanted, bytes, std::move(content)};
        memory_order_[stamp] = name;
        counters_.in_memory++;
        counters_.memory_bytes += bytes;
    } else if (!write(name, stamp, *content, wanted)) {
        return false;
    }
    counters_.parked++;
    return true;
}

void Parking::set_wanted(const std::string &name, bool wanted) {
    if (const auto found = entries_.find(name); found != entries_.end()) {
        found->second.wanted = wanted;
    }
}

/** Only a damaged content is removed without being read: any other error may be gone in a later run. */
Fetched Parking::fetch(const std::string &name, const Reader &read, bool keep) {
    const auto found = entries_.find(name);
    if (found == entries_.end()) {
        counters_.misses++;
        return {Fetched::lost, ""};
    }
    const Entry &entry = found->second;
    const bool in_memory = entry.content.has_value();
    bool intact = true, done = false;
    std::string reason = "another rank could not load it";
    try {
        if (in_memory) {
            intact = read(*entry.content);
        } else {
            const std::optional<Bytes> content = folder_->read(name, entry.stamp);
            intact = content && read(*content);
        }
        done = intact;
    } catch (const std::bad_alloc &) {
        reason = "out of memory";
    } catch (const std::exception &error) {
        reason = error.what();
    }
    intact = group_.all(intact);
    if (intact && !group_.all(done)) {
        counters_.misses++;
        return {Fetched::refused, reason};
    }
    // Before the ranks agree: none parks the conversation again while another has its file of before. A file that
    // cannot be removed would come back after a restart, older than the conversation: it is left as the newest.
    if (!intact || !keep) {
        intact = group_.all(erase(found, in_memory) && intact);
    }
    if (!intact) {
        counters_.misses++;
        counters_.damaged += in_memory ? 0 : 1;
        return {Fetched::lost, ""};
    }
    (in_memory ? counters_.memory_hits : counters_.disk_hits)++;
    return {Fetched::read, ""};
}

void Parking::remove(const std::string &name) {
    if (const auto found = entries_.find(name); found != entries_.end()) {
        erase(found, found->second.content.has_value());
    }
}

/** False if its file is still there. */
bool Parking::erase(Entries::iterator entry, bool in_memory) {
    const auto &[name, e] = *entry;
    bool gone = true;
    if (in_memory) {
        memory_order_.erase(e.stamp);
        counters_.in_memory--;
        counters_.memory_bytes -= e.bytes;
    } else {
        gone = folder_->remove(name);
        disk_order_.erase(e.stamp);
        counters_.on_disk--;
        counters_.disk_bytes -= e.bytes;
    }
    entries_.erase(entry);
    return gone;
}

bool Parking::make_room_in_memory(std::uint64_t bytes) {
    if (!group_.all(bytes <= memory_)) {
        return false;
    }
    while (!group_.all(counters_.memory_bytes <= memory_ - bytes)) {
        if (memory_order_.empty() || (!move_to_disk(memory_order_.begin()->second) && !drop_oldest(memory_order_))) {
            return false;
        }
    }
    return true;
}

bool Parking::make_room_on_disk(std::uint64_t bytes) {
    if (!folder_ || !group_.all(bytes <= disk_)) {
        return false;
    }
    while (!group_.all(counters_.disk_bytes <= disk_ - bytes)) {
        if (!drop_oldest(disk_order_)) {
            return false;
        }
    }
    return true;
}

/** Drops what has been in a level longest and is not wanted. False if all are. */
bool Parking::drop_oldest(const Order &order) {
    const auto oldest =
        std::find_if(order.begin(), order.end(), [&](const auto &o) { return !entries_.at(o.second).wanted; });
    if (oldest == order.end()) {
        return false;
    }
    remove(std::string(oldest->second));
    counters_.dropped++;
    return true;
}

/** Writes a file on every rank, or on none. */
bool Parking::write(const std::string &name, std::uint64_t stamp, const Bytes &content, bool wanted) {
    const std::uint64_t bytes = ParkFolder::file_bytes(name, content.size());
    if (!make_room_on_disk(bytes)) {
        return false;
    }
    if (!group_.all(folder_->write(name, stamp, content))) {
        folder_->remove(name);
        counters_.write_failures++;
        return false;
    }
    add_to_disk({name, stamp, bytes}, wanted);
    counters_.written++;
    return true;
}

bool Parking::move_to_disk(const std::string &oldest) {
    const std::string name = oldest;
    Entry moved = std::move(entries_.at(name));
    if (!write(name, moved.stamp, *moved.content, moved.wanted)) {
        entries_[name] = std::move(moved);
        return false;
    }
    memory_order_.erase(moved.stamp);
    counters_.in_memory--;
    counters_.memory_bytes -= moved.bytes;
    return true;
}

void Parking::move_to_disk() {
    const Order order = memory_order_;
    for (const auto &[stamp, name] : order) {
        move_to_disk(name);
    }
}

}  // namespace inflight
