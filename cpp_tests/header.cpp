// The header, included first and twice, as C++.
#include <sinkcache.h>
#include <sinkcache.h>

int main() {
    return skc_abi_version() == SKC_ABI_VERSION ? 0 : 1;
}
