// Programmatic launches: a kernel that waits for the preceding one before anything else runs; any other fails.

#include "self_test.hpp"

namespace {

struct Flags {
    CUdeviceptr x;
    uint32_t wait;
};

// One add per thread; `wait` 0 leaves begin_kernel out.
const char* const kCount = R"(
struct P { u32* x; u32 wait; };
SKC_KERNEL(64, test, P) {
    if (p.wait) begin_kernel();
    BODY
}
)";

class LaunchTest : public Device {
protected:
    CUresult launch_programmatic(CUfunction function, const Flags& params) {
        CUlaunchAttribute attribute = {};
        attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM;
        attribute.value.flag = 1;
        CUlaunchConfig config = {{3, 1, 1}, {64, 1, 1}, 16, stream, &attribute, 1};
        void* args[] = {const_cast<Flags*>(&params)};
        return cuLaunchKernelEx(&config, function, args, nullptr);
    }

    CUfunction with(const std::string& body) {
        std::string source = kCount;
        source.replace(source.find("BODY"), 4, body);
        return kernel(source);
    }
};

TEST_F(LaunchTest, a_kernel_that_waits_first_runs) {
    CUfunction test = with("atomic_inc(p.x, ~0u);");
    CUdeviceptr x = upload(std::vector<uint32_t>{0});
    uint64_t before = skc_shim_count_programmatic();
    OK(launch_programmatic(test, {x, 1}));
    OK(launch(test, Flags{x, 0}, 1, 64, 16));
    OK(cuStreamSynchronize(stream));
    EXPECT_EQ(download<uint32_t>(x, 1)[0], 4u * 64);
    EXPECT_EQ(skc_shim_count_programmatic(), before + 1);
}

TEST_F(LaunchTest, a_kernel_that_does_not_wait_first_fails) {
    for (const char* body : {"atomic_inc(p.x, ~0u); begin_kernel();", "block_sync(); begin_kernel();",
                             "copy_async<16>(shared_memory(), p.x, true); begin_kernel();",
                             "if (thread() == 5) return; begin_kernel();", ""}) {
        CUfunction test = with(body);
        CUdeviceptr x = upload(std::vector<uint32_t>{0, 0, 0, 0});
        OK(cuStreamSynchronize(stream));
        OK(launch_programmatic(test, {x, 0}));
        EXPECT_EQ(cuStreamSynchronize(stream), CUDA_ERROR_LAUNCH_FAILED) << body;
        // The context has failed: the next launch needs a new one.
        EXPECT_EQ(cuCtxDestroy_v2(context), CUDA_SUCCESS);
        OK(cuCtxCreate_v2(&context, 0, 0));
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    }
}

}  // namespace
