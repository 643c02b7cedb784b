// The C++ header, included first and twice.
#include <sinkcache.hpp>
#include <sinkcache.hpp>

#include <type_traits>

// A callback that may throw does not compile: an exception must not reach the library.
using Config = sinkcache::Config;
template <class Line>
constexpr bool LOGS = std::is_invocable_v<decltype(&Config::log), Config &, Line *, void *>;
static_assert(LOGS<void(void *, std::uint32_t, const char *) noexcept>);
static_assert(!LOGS<void(void *, std::uint32_t, const char *)>);

int main() {
    try {
        sinkcache::Cache cache{sinkcache::Config()};
    } catch (const sinkcache::Error &e) {
        // Heads have no default.
        return e.status() == SKC_STATUS_INVALID_CONFIG ? 0 : 1;
    }
    return 1;
}
