// Clusters of blocks: what they may read of each other and when, and launches that a device refuses.

#include "self_test.hpp"

namespace {

// Every thread of block b writes 100 b + its index to shared memory and reads that of the next block of the cluster.
const char* const kNeighbours = R"(
struct P { u32* out; };
SKC_KERNEL(64, test, P) {
    float* own = (float*)shared_memory() + 2 * thread();
    own[0] = (float)(100 * block_z() + thread());
    own[1] = 0;
    BEFORE
    u32 rank = block_z() % cluster_size();
    float x[2];
    load_cluster_x2(x, cluster_address(own, (rank + 1) % cluster_size()));
    AFTER
    p.out[64 * block_z() + thread()] = (u32)x[0];
}
)";

struct Out {
    CUdeviceptr out;
};

class Clusters : public Device {
protected:
    CUfunction neighbours(const char* before, const char* after) {
        std::string source = kNeighbours;
        source.replace(source.find("BEFORE"), 6, before);
        source.replace(source.find("AFTER"), 5, after);
        return kernel(source);
    }

    // Of clusters in z.
    CUresult launch_clusters(CUfunction function, const Out& params, unsigned blocks, unsigned size) {
        CUlaunchAttribute attribute = {};
        attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attribute.value.cluster.x = attribute.value.cluster.y = 1;
        attribute.value.cluster.z = size;
        CUlaunchConfig config = {{1, 1, blocks}, {64, 1, 1}, 512, stream, &attribute, 1};
        void* args[] = {const_cast<Out*>(&params)};
        return cuLaunchKernelEx(&config, function, args, nullptr);
    }

    // A launch that must fail, in whatever order its threads run. Returns what it printed.
    std::string failure(const char* before, const char* after) {
        std::string text;
        for (int run = 0; run < 3; ++run) {
            CUfunction test = neighbours(before, after);
            Out out{upload(std::vector<uint32_t>(8 * 64))};
            testing::internal::CaptureStderr();
            EXPECT_EQ(launch_clusters(test, out, 8, 4), CUDA_SUCCESS);
            EXPECT_EQ(cuStreamSynchronize(stream), CUDA_ERROR_LAUNCH_FAILED) << before << after;
            text += testing::internal::GetCapturedStderr();
            // The error is sticky: the next launch needs another context.
            TearDown();
            SetUp();
        }
        return text;
    }
};

TEST_F(Clusters, read_each_others_shared_memory) {
    CUfunction test = neighbours("cluster_sync();", "cluster_sync();");
    uint64_t before = skc_shim_count_clustered();
    for (unsigned size : {1u, 2u, 4u, 8u}) {
        for (int run = 0; run < 10; ++run) {
            Out out{upload(std::vector<uint32_t>(16 * 64))};
            OK(launch_clusters(test, out, 16, size));
            auto got = download<uint32_t>(out.out, 16 * 64);
            for (unsigned block = 0; block < 16; ++block) {
                unsigned next = block / size * size + (block + 1) % size;
                for (unsigned t = 0; t < 64; ++t) ASSERT_EQ(got[64 * block + t], 100 * next + t) << size;
            }
        }
    }
    EXPECT_EQ(skc_shim_count_clustered(), before + 30);
}

TEST_F(Clusters, a_read_before_the_first_barrier_is_an_error) {
    std::string text = failure("block_sync();", "cluster_sync();");
    EXPECT_NE(text.find("before any cluster_sync"), std::string::npos) << text;
}

TEST_F(Clusters, a_block_that_ends_while_it_is_read_is_an_error) {
    std::string text = failure("cluster_sync();", "");
    EXPECT_NE(text.find("ends after its shared memory was read"), std::string::npos) << text;
}

TEST_F(Clusters, blocks_that_do_not_come_are_an_error) {
    std::string text = failure("if (block_z() % 4 == 2) return; cluster_sync();", "");
    EXPECT_NE(text.find("cluster_sync while threads of its cluster have returned"), std::string::npos) << text;
}

TEST_F(Clusters, a_block_or_place_that_is_not_there_is_an_error) {
    std::string text = failure("cluster_sync();", "load_cluster_x2(x, cluster_address(own, 4)); cluster_sync();");
    EXPECT_NE(text.find("a block that the cluster has not"), std::string::npos) << text;
    text = failure("cluster_sync();", "load_cluster_x2(x, cluster_address(own, 1) + 512); cluster_sync();");
    EXPECT_NE(text.find("outside a block's shared memory"), std::string::npos) << text;
    text = failure("cluster_sync();", "load_cluster_x2(x, cluster_address(own, 1) + 4); cluster_sync();");
    EXPECT_NE(text.find("not aligned"), std::string::npos) << text;
}

TEST_F(Clusters, grids_that_are_not_whole_clusters_are_refused) {
    CUfunction test = neighbours("cluster_sync();", "cluster_sync();");
    Out out{upload(std::vector<uint32_t>(16 * 64))};
    for (auto [blocks, size] : {std::pair{6u, 4u}, {16u, 16u}, {8u, 0u}}) {
        EXPECT_EQ(launch_clusters(test, out, blocks, size), CUDA_ERROR_INVALID_CLUSTER_SIZE) << size;
    }
}

TEST_F(Clusters, occupancy_counts_whole_clusters) {
    CUfunction test = neighbours("cluster_sync();", "cluster_sync();");
    CUlaunchAttribute attribute = {};
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.cluster.x = attribute.value.cluster.y = 1;
    attribute.value.cluster.z = 8;
    CUlaunchConfig config = {{1, 1, 8}, {64, 1, 1}, 512, nullptr, &attribute, 1};
    int clusters = 0, blocks = 0, multiprocessors = 0;
    OK(cuDeviceGetAttribute(&multiprocessors, 16, 0));
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, test, 64, 512));
    OK(cuOccupancyMaxActiveClusters(&clusters, test, &config));
    EXPECT_EQ(clusters, blocks * multiprocessors / 8);
    skc_shim_set_cluster(0);
    int has_clusters = 1;
    OK(cuDeviceGetAttribute(&has_clusters, 120, 0));
    EXPECT_EQ(has_clusters, 0);
    EXPECT_EQ(cuOccupancyMaxActiveClusters(&clusters, test, &config), CUDA_ERROR_NOT_SUPPORTED);
    skc_shim_set_cluster(8);
}

}  // namespace
