#include "shadow.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>

namespace ptx {
namespace {

// Cells stay with an address: those of an earlier launch are recognised by its number.
struct Shadow {
    size_t bytes = 0;  // of memory
    void* cells = nullptr;

    static size_t size(size_t bytes) { return bytes * sizeof(GlobalCell); }
    void release() {
        if (cells) munmap(cells, size(bytes));
        cells = nullptr;
        bytes = 0;
    }
    void reserve(size_t n) {
        if (bytes >= n) return;
        release();
        // A page gets memory when it is first used.
        void* at = mmap(nullptr, size(n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) throw Error{"no address space for the race detector"};
        cells = at;
        bytes = n;
    }
};

std::mutex mutex;
std::map<uintptr_t, Shadow>& shadows() {
    static auto& all = *new std::map<uintptr_t, Shadow>;
    return all;
}

// Address space is not endless: what no allocation uses any longer goes, once it is much.
void trim(const std::vector<Range>& live) {
    auto& all = shadows();
    if (all.size() < live.size() + 64) return;
    for (auto it = all.begin(); it != all.end();) {
        auto range = std::lower_bound(live.begin(), live.end(), it->first,
                                      [](const Range& r, uintptr_t at) { return r.begin < at; });
        if (range != live.end() && range->begin == it->first) {
            ++it;
        } else {
            it->second.release();
            it = all.erase(it);
        }
    }
}

}  // namespace

void attach_shadows(std::vector<Range>& ranges) {
    if (!Options::get().race) return;
    std::lock_guard lock(mutex);
    for (Range& range : ranges) {
        Shadow& shadow = shadows()[range.begin];
        shadow.reserve(range.end - range.begin);
        range.shadow = shadow.cells;
    }
    trim(ranges);
}

}  // namespace ptx
