// A Device whose kernels are host functions, enqueued into a stream of the CUDA stand-in (tools/cuda_shim).
#pragma once

#include "device.hpp"

#include <memory>

namespace test {

/** NULL if the stand-in is not loaded: on a real driver, host functions cannot access device memory. */
std::unique_ptr<inflight::Device> shim_device();

/** Number of graph launches of the stand-in. */
std::uint64_t graph_launches();

}  // namespace test
