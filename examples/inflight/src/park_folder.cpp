#include "park_folder.hpp"

#include "command_line.hpp"
#include "requests_file.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace inflight {
namespace {

using programs::ByteReader;
using programs::ByteWriter;
using programs::Digest;
using programs::Folder;
using programs::Hash;

/** The first bytes of a file. Another layout gets another number and another suffix. */
const char MAGIC[8] = {'S', 'K', 'C', 'P', 'A', 'R', 'K', '1'};
const char SUFFIX[] = ".parked";
/** Bytes of a hash that are stored. */
constexpr std::size_t CHECK = 16;
constexpr std::size_t FIXED_HEADER = sizeof MAGIC + std::tuple_size<Digest>::value + 8 + 8 + 4 + CHECK;
/** Bytes of tag and name that a file's name shows, as twice as many digits. */
constexpr std::size_t SHOWN_TAG = 8, SHOWN_NAME = 16;

bool ends_with(const std::string &text, const std::string &end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool equals(const std::uint8_t *stored, const Digest &digest) {
    return stored && std::memcmp(stored, digest.data(), CHECK) == 0;
}

}  // namespace

ParkFolder::ParkFolder(const std::string &path, const Digest &tag)
    : folder_(Folder::open_private(path)), tag_(tag) {
    if (!folder_.lock()) {
        throw std::runtime_error("folder " + programs::in_quotes(path) + " is in use by another process");
    }
    const std::string prefix = programs::hex(tag, SHOWN_TAG) + "-";
    for (const std::string &file : folder_.list()) {
        if (file.rfind(prefix, 0) != 0) {
            continue;
        }
        if (ends_with(file, Folder::temporary(SUFFIX))) {
            folder_.remove(file);
        } else if (ends_with(file, SUFFIX) && folder_.size(file)) {
            if (auto parked = examine(file)) {
                found_.push_back(std::move(*parked));
            } else {
                folder_.remove(file);
                n_damaged_++;
            }
        }
    }
    std::sort(found_.begin(), found_.end(),
              [](const ParkedFile &a, const ParkedFile &b) { return a.stamp < b.stamp; });
}

std::string ParkFolder::file_name(const std::string &name) const {
    return programs::hex(tag_, SHOWN_TAG) + "-" + programs::hex(Hash().add(name).digest(), SHOWN_NAME) + SUFFIX;
}

std::uint64_t ParkFolder::file_bytes(const std::string &name, std::uint64_t content_bytes) {
    return FIXED_HEADER + name.size() + content_bytes + CHECK;
}

/** What a file begins with, its own hash included. */
Bytes ParkFolder::header(const ParkedFile &file) const {
    ByteWriter out;
    out.raw(MAGIC, sizeof MAGIC).raw(tag_.data(), tag_.size()).u64(file.stamp).u64(file.bytes).text(file.name);
    const Digest check = Hash().add(out.bytes().data(), out.bytes().size()).digest();
    return out.raw(check.data(), CHECK).take();
}

/** What a file's header says, if its name and its size agree with it. The content is not read. */
std::optional<ParkedFile> ParkFolder::examine(const std::string &file_name) const {
    const auto bytes = folder_.size(file_name);
    const auto start = folder_.read(file_name, FIXED_HEADER + RequestReader::MAX_NAME);
    if (!bytes || !start) {
        return std::nullopt;
    }
    ByteReader in(*start);
    in.raw(sizeof MAGIC + tag_.size());
    ParkedFile file{"", in.u64(), in.u64()};
    file.name = in.text();
    const Bytes expected = header(file);
    const bool intact = in.complete() && expected.size() <= start->size() && file.bytes == *bytes &&
                        std::equal(expected.begin(), expected.end(), start->begin()) &&
                        this->file_name(file.name) == file_name;
    return intact ? std::optional<ParkedFile>(std::move(file)) : std::nullopt;
}

bool ParkFolder::write(const std::string &name, std::uint64_t stamp, const Bytes &content) {
    if (name.size() > RequestReader::MAX_NAME) {
        // A restart would not read it.
        return false;
    }
    const Bytes start = header({name, stamp, file_bytes(name, content.size())});
    // The content's hash begins with the header's: parts of two files do not go together.
    const Digest check = Hash().add(start.data(), start.size()).add(content.data(), content.size()).digest();
    const int error = folder_.write(file_name(name), {{start.data(), start.size()},
                                                      {content.data(), content.size()},
                                                      {check.data(), CHECK}});
    if (error != 0) {
        // An earlier state of the conversation must not come back.
        remove(name);
        return false;
    }
    removed_ = false;
    return true;
}

std::optional<Bytes> ParkFolder::read(const std::string &name, std::uint64_t stamp) const {
    // A file that has grown may be larger than memory: it is damaged, and is not read.
    auto file = examine(file_name(name)) ? folder_.read(file_name(name)) : std::nullopt;
    if (!file) {
        return std::nullopt;
    }
    const Bytes expected = header({name, stamp, file->size()});
    if (file->size() < expected.size() + CHECK || !std::equal(expected.begin(), expected.end(), file->begin())) {
        return std::nullopt;
    }
    const std::size_t end = file->size() - CHECK;
    if (!equals(file->data() + end, Hash().add(file->data(), end).digest())) {
        return std::nullopt;
    }
    file->resize(end);
    file->erase(file->begin(), file->begin() + static_cast<std::ptrdiff_t>(expected.size()));
    return file;
}

bool ParkFolder::remove(const std::string &name) {
    removed_ = true;
    return folder_.remove(file_name(name)) == 0;
}

void ParkFolder::sync() {
    if (removed_) {
        folder_.sync();
        removed_ = false;
    }
}

}  // namespace inflight
