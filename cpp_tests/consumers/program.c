/* A C project that uses the library. */
#include <sinkcache.h>

int main(void) {
    skc_capability_info can = {0};
    can.struct_size = sizeof can;
    return skc_capabilities(&can) == SKC_STATUS_OK && can.abi_version == SKC_ABI_VERSION ? 0 : 1;
}
