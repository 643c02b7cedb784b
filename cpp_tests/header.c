/* The header, included first and twice. */
#include <sinkcache.h>
#include <sinkcache.h>

int main(void) {
    return skc_abi_version() == SKC_ABI_VERSION ? 0 : 1;
}
