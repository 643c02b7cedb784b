#include "async_copy.hpp"

#include <cstring>

namespace skc_shim {

void AsyncCopies::issue(uint8_t* to, const uint8_t* from, uint32_t n, bool valid, bool early) {
    std::memset(to, 0xFF, n);
    Copy copy{to, from, group, n, {}};
    if (!valid) {
        copy.from = nullptr;
    } else if (early) {
        std::memcpy(copy.bytes, from, n);
        copy.from = nullptr;
    }
    copies.push_back(copy);
}

void AsyncCopies::wait(uint32_t pending) {
    size_t done = 0;
    for (; done < copies.size() && copies[done].group + pending < group; ++done) {
        const Copy& copy = copies[done];
        std::memcpy(copy.to, copy.from ? copy.from : copy.bytes, copy.n);
    }
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}

void AsyncCopies::clear() {
    copies.clear();
    group = 0;
}

}  // namespace skc_shim
