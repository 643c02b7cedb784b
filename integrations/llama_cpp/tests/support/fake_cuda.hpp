// A CUDA device of ggml for machines without one. Its memory is that of the CUDA stand-in's device and not the host's;
// it computes with ggml's CPU backend, which can reach that memory, and refuses custom ops as ggml-cuda does.
#ifndef SINKCACHE_TESTS_FAKE_CUDA_HPP
#define SINKCACHE_TESTS_FAKE_CUDA_HPP

#include <cstdint>

struct FakeCuda {
    /** Graphs that it has computed, and copies of tensors into and out of its memory. */
    std::int64_t n_graphs = 0, n_sets = 0, n_gets = 0;
};

/**
 * Registers the device with ggml as CUDA0, or SKC_FAKE_CUDA_DEVICES of them, all with the hardware id SKC_FAKE_CUDA_ID.
 * Before anything else of llama.cpp. @return the counters of all
 */
FakeCuda &register_fake_cuda();

#endif
