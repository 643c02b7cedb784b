// The Device that is an NVIDIA GPU.
#pragma once

#include "device.hpp"
#include "group.hpp"

#include <memory>

namespace inflight {

/**
 * GPU `ordinal`, or -1 for the one of this rank's number. Products by cuBLAS in f32 (no TF32), sums over the ranks by NCCL, a
 * stream of its own in the device's primary context. The group must outlive the device.
 *
 * Throws std::runtime_error where there is no such GPU.
 */
std::unique_ptr<Device> cuda_device(int ordinal, Group &group);

}  // namespace inflight
