// A C++ project that uses the library.
#include <sinkcache.hpp>

int main() {
    sinkcache::Cache cache(sinkcache::Config().heads(4, 2, 64));
    return cache.info(0).length_max == 0 ? 0 : 1;
}
