// The library's kernels/error_record.cuh at places that its own tests do not reach: where its numbers wrap, and where
// the host takes between any two steps of the device.

#include "self_test.hpp"

namespace {

constexpr uint32_t kBlocks = 24;

// Blocks report; block 0 is the host, as src/backend/cuda/error_record.rs is it. `wrong`: records that are not of the
// first entry since the last one.
const char* const kSource = R"(
#include "error_record.cuh"
struct P { SkcErrorLog* log; u32* result; u32 rounds; u32 reports; };
struct Host {
    SkcErrorPage* page;
    u32 taken, counted, wrong;
    SKC_DEVICE void take() {
        u32 number = load_system(&page->ended);
        fence_system();
        u32 n = load_system(&page->n_skipped), first = load_system(&page->first);
        fence_system();
        if (load_system(&page->begun) != number || (i32)(first - taken) <= 0) return;
        if (first != taken + 1) ++wrong;
        while (n != taken) {
            counted += n - taken;
            taken = n;
            store_system(&page->n_taken, taken);
            fence_system();
            n = load_system(&page->n_skipped);
        }
    }
};
SKC_KERNEL(32, test, P) {
    if (thread() != 0) return;
    if (block_x() == 0) {
        Host host = {p.log->page, p.log->page->n_taken, 0, 0};
        for (u32 i = 0; i < p.rounds; ++i) host.take();
        p.result[0] += host.counted;
        p.result[1] += host.wrong;
    } else {
        for (u32 i = 0; i < p.reports; ++i) report(p.log, {-1, 0, 0, 0, 1, 0});
    }
}
)";

struct Page {
    uint32_t begun, n_skipped, first, rest[7], ended, unused[21], n_taken, unused_too[31];
};
static_assert(sizeof(Page) == 256, "SkcErrorPage");

struct Log {
    uint32_t lock, n_writes, n_skipped, first;
    CUdeviceptr page;
};

class ErrorRecord : public Device {
protected:
    struct Params {
        CUdeviceptr log, result;
        uint32_t rounds, reports;
    };

    // Host and device at the same time, 60 times, then the host alone: nothing is lost or counted twice.
    void run(uint32_t begin) {
        Page page = {};
        page.n_skipped = page.first = page.n_taken = begin;
        CUdeviceptr at = upload(std::vector<Page>{page});
        Params params{upload(std::vector<Log>{{0, 0, begin, begin, at}}), upload(std::vector<uint32_t>{0, 0}), 40, 3};
        CUfunction test = kernel(kSource);
        for (int n = 0; n < 60; ++n) OK(launch(test, params, kBlocks + 1));
        params.rounds = 2;
        OK(launch(test, params, 1));
        OK(cuStreamSynchronize(stream));
        uint32_t n = 60 * kBlocks * params.reports;
        auto result = download<uint32_t>(params.result, 2);
        EXPECT_EQ(result[0], n);
        EXPECT_EQ(result[1], 0u);
        page = download<Page>(at, 1)[0];
        EXPECT_EQ(page.n_skipped, begin + n);
        EXPECT_EQ(page.begun, page.ended);
        EXPECT_GT(page.begun, n) << "no record was taken while another entry was skipped";
        EXPECT_EQ(download<Log>(params.log, 1)[0].lock, 0u);
        for (CUdeviceptr p : {at, params.log, params.result}) OK(cuMemFree_v2(p));
    }
};

TEST_F(ErrorRecord, a_host_takes_between_any_two_steps_of_the_device) { run(0); }

TEST_F(ErrorRecord, its_numbers_wrap) { run(~0u - 500); }

}  // namespace
