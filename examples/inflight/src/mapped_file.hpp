// A file in memory, read-only: the system reads its pages when they are used, and may drop them again.
#pragma once

#include <cstddef>
#include <string>

namespace inflight {

class MappedFile {
public:
    /** Throws std::runtime_error. The file must not become shorter while it is mapped. */
    explicit MappedFile(const std::string &path);
    ~MappedFile();
    MappedFile(const MappedFile &) = delete;
    MappedFile &operator=(const MappedFile &) = delete;

    const unsigned char *data() const { return data_; }
    std::size_t size() const { return size_; }

private:
    const unsigned char *data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace inflight
