// A Device whose kernels are functions of the host in a stream of the CUDA stand-in of tools/cuda_shim.
#pragma once

#include "device.hpp"

#include <memory>

namespace test {

/** NULL where no stand-in is loaded: on a real driver, functions of the host cannot reach device memory. */
std::unique_ptr<inflight::Device> shim_device();

/** Graphs that the stand-in has launched. */
std::uint64_t graph_launches();

}  // namespace test
