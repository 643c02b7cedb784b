#include "mapped_file.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <stdexcept>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace inflight {

MappedFile::MappedFile(const std::string &path) {
    const auto failed = [&](int file) {
        const std::string why = std::strerror(errno);
        if (file >= 0) {
            close(file);
        }
        throw std::runtime_error("cannot be mapped into memory: " + why);
    };
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat about {};
    if (file < 0 || fstat(file, &about) != 0) {
        failed(file);
    }
    size_ = static_cast<std::size_t>(about.st_size);
    void *const at = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
    if (at == MAP_FAILED) {
        failed(file);
    }
    close(file);
    // A hint: the first token does not wait for one page after the other.
    (void)madvise(at, size_, MADV_WILLNEED);
    data_ = static_cast<const unsigned char *>(at);
}

MappedFile::~MappedFile() { munmap(const_cast<unsigned char *>(data_), size_); }

}  // namespace inflight
