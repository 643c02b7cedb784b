// Device on an NVIDIA GPU.
#pragma once

#include "device.hpp"
#include "group.hpp"

#include <memory>

namespace inflight {

/**
 * GPU `ordinal`; -1 = the rank's number. Products by cuBLAS in f32 (no TF32), all-reduce by NCCL, a stream of its own
 * in the GPU's primary context. The group must outlive the device.
 *
 * Throws std::runtime_error if there is no such GPU.
 */
std::unique_ptr<Device> cuda_device(int ordinal, Group &group);

}  // namespace inflight
