// A folder whose files are private to the user, and are replaced as a whole or not at all.
#ifndef SINKCACHE_PROGRAMS_FOLDER_HPP
#define SINKCACHE_PROGRAMS_FOLDER_HPP

#include "bytes.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace programs {

/** Some bytes of a file that is written. */
struct Part {
    const void *bytes;
    std::size_t n;
};

/**
 * Names are those of files in the folder, not paths. Only regular files of this user that nobody else may use are read:
 * others are as if they were not there. Not for several threads.
 */
class Folder {
public:
    /** An existing folder. Throws std::runtime_error. */
    static Folder open(const std::string &path);
    /** The same, made if it is missing. It must be private: mode 0700, owned by this user. */
    static Folder open_private(const std::string &path);
    Folder(Folder &&other) noexcept
        : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), lock_(std::exchange(other.lock_, -1)) {}
    Folder &operator=(Folder &&) = delete;
    ~Folder();

    const std::string &path() const { return path_; }
    /** Keeps other processes out until this object ends. False if another one has the folder. */
    bool lock();

    /**
     * Writes a file of mode 0600 under a temporary name, syncs it, gives it its name, syncs the folder. Returns 0 or an
     * errno; then there is the earlier file of this name, or none. A process that ignores SIGXFSZ gets EFBIG at its
     * limit of file sizes.
     */
    int write(const std::string &name, const std::vector<Part> &parts) const;
    /**
     * The first `most` bytes of a file, or all; nothing if it cannot be read. Throws std::runtime_error where that says
     * nothing about the file: the process has too many files open, or the system has no memory.
     */
    std::optional<Bytes> read(const std::string &name, std::uint64_t most = UINT64_MAX) const;
    /** Its size in bytes. Throws as read() does. */
    std::optional<std::uint64_t> size(const std::string &name) const;
    /** Removes a file. It need not be there. Returns 0 or an errno. */
    int remove(const std::string &name) const;
    /** After it removed files stay removed, also after a loss of power; as after write(). Returns 0 or an errno. */
    int sync() const;
    /** Names of everything in the folder, sorted. */
    std::vector<std::string> list() const;

    /** The name under which write() writes. One that is found at a start was left by a process that was killed. */
    static std::string temporary(const std::string &name);
    static bool is_temporary(const std::string &name);

private:
    std::string path_;
    int fd_;
    int lock_ = -1;

    Folder(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
    int open_file(const std::string &name, std::uint64_t &bytes) const;
};

}  // namespace programs

#endif
