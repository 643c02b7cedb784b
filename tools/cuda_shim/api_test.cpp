// Functions of the shim for tests, which find them by dlsym where the driver is the shim.

#include "driver.hpp"

using namespace skc_shim;

SKC_SHIM_API uint64_t skc_shim_count_sync() { return driver().n_sync; }
SKC_SHIM_API uint64_t skc_shim_count_allocations() { return driver().n_allocations; }
SKC_SHIM_API uint64_t skc_shim_count_launches() { return driver().n_launches; }
SKC_SHIM_API uint64_t skc_shim_count_programmatic() { return driver().n_programmatic; }
SKC_SHIM_API uint64_t skc_shim_count_clustered() { return driver().n_clustered; }
SKC_SHIM_API uint64_t skc_shim_count_graph_launches() { return driver().n_graph_launches; }
// Allocations that have not been freed, of the device and of pinned memory.
SKC_SHIM_API uint64_t skc_shim_live_allocations() {
    Call call;
    return call.d.memory.size();
}
// Lets the n-th allocation from now on fail; 0 = none.
SKC_SHIM_API void skc_shim_fail_allocation(int64_t n) { driver().fail_after = n; }
// From now on the driver says that clusters have at most so many blocks; 0 = that there are none.
SKC_SHIM_API void skc_shim_set_cluster(int blocks) { driver().max_cluster = blocks; }
