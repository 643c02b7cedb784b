// The C++ header, included first and twice.
#include <sinkcache.hpp>
#include <sinkcache.hpp>

int main() {
    try {
        sinkcache::Cache cache{sinkcache::Config()};
    } catch (const sinkcache::Error &e) {
        // Heads have no default.
        return e.status() == SKC_STATUS_INVALID_CONFIG ? 0 : 1;
    }
    return 1;
}
