#include "folder.hpp"

#include "command_line.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <stdexcept>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace programs {
namespace {

const char LOCK[] = "lock";
const char TEMPORARY[] = ".tmp";
constexpr mode_t PRIVATE_FOLDER = 0700, PRIVATE_FILE = 0600, OTHERS = 077;

[[noreturn]] void fail_with(const std::string &path, const std::string &what) {
    throw std::runtime_error("folder " + in_quotes(path) + " " + what);
}

/** A file descriptor that is closed at the end. */
class Descriptor {
public:
    explicit Descriptor(int fd) : fd_(fd) {}
    Descriptor(const Descriptor &) = delete;
    Descriptor &operator=(const Descriptor &) = delete;
    ~Descriptor() {
        if (fd_ >= 0) {
            ::close(fd_);
        }
    }
    int get() const { return fd_; }

private:
    int fd_;
};

int write_all(int fd, const Part &part) {
    const char *at = static_cast<const char *>(part.bytes);
    for (std::size_t left = part.n; left > 0;) {
        const ssize_t n = ::write(fd, at, left);
        if (n < 0 && errno != EINTR) {
            return errno;
        }
        if (n > 0) {
            at += n;
            left -= static_cast<std::size_t>(n);
        }
    }
    return 0;
}

int sync_descriptor(int fd) {
    while (::fsync(fd) != 0) {
        if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

}  // namespace

Folder Folder::open(const std::string &path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        fail_with(path, std::string("cannot be opened: ") + std::strerror(errno));
    }
    return {path, fd};
}

Folder Folder::open_private(const std::string &path) {
    if (::mkdir(path.c_str(), PRIVATE_FOLDER) != 0 && errno != EEXIST) {
        fail_with(path, std::string("cannot be made: ") + std::strerror(errno));
    }
    Folder folder = open(path);
    struct stat info {};
    if (::fstat(folder.fd_, &info) != 0) {
        fail_with(path, std::string("cannot be examined: ") + std::strerror(errno));
    }
    if (info.st_uid != ::geteuid()) {
        fail_with(path, "belongs to user " + std::to_string(info.st_uid) + ": it must belong to user " +
                            std::to_string(::geteuid()));
    }
    if ((info.st_mode & OTHERS) != 0) {
        char mode[8];
        std::snprintf(mode, sizeof mode, "%04o", static_cast<unsigned>(info.st_mode & 07777));
        fail_with(path, std::string("has mode ") + mode + ": only its owner may use it, mode 0700");
    }
    return folder;
}

Folder::~Folder() {
    for (const int fd : {lock_, fd_}) {
        if (fd >= 0) {
            ::close(fd);
        }
    }
}

bool Folder::lock() {
    lock_ = ::openat(fd_, LOCK, O_RDONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, PRIVATE_FILE);
    if (lock_ < 0) {
        fail_with(path_, std::string("cannot be locked: ") + std::strerror(errno));
    }
    while (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
            return false;
        }
        if (errno != EINTR) {
            fail_with(path_, std::string("cannot be locked: ") + std::strerror(errno));
        }
    }
    return true;
}

int Folder::write(const std::string &name, const std::vector<Part> &parts) const {
    const std::string temporary_name = temporary(name);
    // What a killed process left; O_EXCL then never follows a link.
    ::unlinkat(fd_, temporary_name.c_str(), 0);
    int error = 0;
    {
        const Descriptor file(::openat(fd_, temporary_name.c_str(),
                                       O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, PRIVATE_FILE));
        if (file.get() < 0) {
            return errno;
        }
        for (const Part &part : parts) {
            error = error != 0 ? error : write_all(file.get(), part);
        }
        error = error != 0 ? error : sync_descriptor(file.get());
    }
    if (error == 0 && ::renameat(fd_, temporary_name.c_str(), fd_, name.c_str()) != 0) {
        error = errno;
    }
    if (error != 0) {
        ::unlinkat(fd_, temporary_name.c_str(), 0);
        return error;
    }
    error = sync();
    if (error != 0) {
        // Whether the name would outlive a loss of power is not known.
        ::unlinkat(fd_, name.c_str(), 0);
    }
    return error;
}

/** A descriptor of a file that this user alone may read, and its size; -1 if there is none. */
int Folder::open_file(const std::string &name, std::uint64_t &bytes) const {
    // O_NONBLOCK: opening a pipe must not wait for its other end.
    const int fd = ::openat(fd_, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat info {};
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
            fail_with(path_, "has file " + in_quotes(name) + ", which cannot be opened: " + std::strerror(errno));
        }
        return -1;
    }
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != ::geteuid() ||
        (info.st_mode & OTHERS) != 0) {
        ::close(fd);
        return -1;
    }
    bytes = static_cast<std::uint64_t>(info.st_size);
    return fd;
}

std::optional<std::uint64_t> Folder::size(const std::string &name) const {
    std::uint64_t bytes = 0;
    const Descriptor file(open_file(name, bytes));
    return file.get() < 0 ? std::nullopt : std::optional<std::uint64_t>(bytes);
}

std::optional<Bytes> Folder::read(const std::string &name, std::uint64_t most) const {
    std::uint64_t bytes = 0;
    const Descriptor file(open_file(name, bytes));
    if (file.get() < 0) {
        return std::nullopt;
    }
    Bytes content(static_cast<std::size_t>(std::min(bytes, most)));
    std::size_t filled = 0;
    while (filled < content.size()) {
        const ssize_t n = ::read(file.get(), content.data() + filled, content.size() - filled);
        if (n == 0 || (n < 0 && errno != EINTR)) {
            return std::nullopt;
        }
        filled += n > 0 ? static_cast<std::size_t>(n) : 0;
    }
    return content;
}

int Folder::remove(const std::string &name) const {
    return ::unlinkat(fd_, name.c_str(), 0) == 0 || errno == ENOENT ? 0 : errno;
}

int Folder::sync() const { return sync_descriptor(fd_); }

std::vector<std::string> Folder::list() const {
    // A descriptor of its own: reading a folder moves the position of the descriptor.
    const int fd = ::openat(fd_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? nullptr : ::fdopendir(fd);
    if (!folder) {
        const int error = errno;
        if (fd >= 0) {
            ::close(fd);
        }
        fail_with(path_, std::string("cannot be listed: ") + std::strerror(error));
    }
    std::vector<std::string> names;
    while (const dirent *entry = ::readdir(folder)) {
        const std::string name = entry->d_name;
        if (name != "." && name != "..") {
            names.push_back(name);
        }
    }
    ::closedir(folder);
    std::sort(names.begin(), names.end());
    return names;
}

std::string Folder::temporary(const std::string &name) { return name + TEMPORARY; }

bool Folder::is_temporary(const std::string &name) {
    const std::size_t n = sizeof TEMPORARY - 1;
    return name.size() > n && name.compare(name.size() - n, n, TEMPORARY) == 0;
}

}  // namespace programs
