// Parked conversations as files.
#pragma once

#include "folder.hpp"
#include "hash.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace inflight {

using programs::Bytes;

/** A parked conversation in a folder. */
struct ParkedFile {
    std::string name;
    /** Grows with every conversation that is parked: the smallest was parked first. */
    std::uint64_t stamp;
    /** Size of the file. */
    std::uint64_t bytes;
};

/**
 * A file holds the tag of the model and the rank, the conversation's name, its stamp, its content, and hashes of both.
 * What does not agree with them is as if it were not there. Files of another tag, and all others whose names are not
 * those of parked conversations, are left alone.
 */
class ParkFolder {
public:
    /**
     * The folder is made if it is missing, and locked. Temporary and damaged files of this tag are removed. Throws
     * std::runtime_error: another process uses it, or others than this user may.
     */
    ParkFolder(const std::string &path, const programs::Digest &tag);

    /** What the folder held at the start, oldest stamp first. */
    const std::vector<ParkedFile> &found() const { return found_; }
    /** Files that were damaged at the start. */
    std::uint64_t n_damaged() const { return n_damaged_; }
    /** False if it could not be written: a full disk, a quota, a limit. The conversation is then not in the folder. */
    bool write(const std::string &name, std::uint64_t stamp, const Bytes &content);
    /** Nothing if it is missing or damaged. Throws std::bad_alloc, and std::runtime_error as Folder::read() does. */
    std::optional<Bytes> read(const std::string &name, std::uint64_t stamp) const;
    /** False if it is still there. */
    bool remove(const std::string &name);
    /** After it what was removed stays removed, also after a loss of power. */
    void sync();

    /** Size of a file. */
    static std::uint64_t file_bytes(const std::string &name, std::uint64_t content_bytes);
    std::string file_name(const std::string &name) const;

private:
    programs::Folder folder_;
    programs::Digest tag_;
    std::vector<ParkedFile> found_;
    std::uint64_t n_damaged_ = 0;
    /** Files were removed since the folder was synced. */
    bool removed_ = false;

    Bytes header(const ParkedFile &file) const;
    std::optional<ParkedFile> examine(const std::string &file_name) const;
};

}  // namespace inflight
