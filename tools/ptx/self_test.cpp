#include "self_test.hpp"

namespace ptx_test {

std::string run_body(const std::string& body, std::vector<u8>& memory, const Shape& shape) {
    std::string text = R"(.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 skc_shared[];
.visible .entry k(
	.param .align 8 .b8 k_param_0[8]
)
.maxntid 128, 1, 1
{
	.reg .pred %p<10>;
	.reg .b16 %h<10>;
	.reg .b32 %r<50>;
	.reg .f32 %f<20>;
	.reg .b64 %rd<20>;
	ld.param.u64 %rd0, [k_param_0];
	mov.u32 %r0, %tid.x;
)" + body + "\n\tret;\n}\n";
    auto module = ptx::parse(text);
    u64 at = reinterpret_cast<u64>(memory.data());
    ptx::Launch launch;
    launch.module = module.get();
    launch.kernel = module->kernels.at("k").get();
    launch.params = reinterpret_cast<u8*>(&at);
    launch.grid[0] = shape.blocks;
    launch.grid[1] = launch.grid[2] = 1;
    launch.cluster[0] = shape.cluster;
    launch.threads = shape.threads;
    launch.shared_bytes = shape.shared_bytes;
    launch.programmatic = shape.programmatic;
    static u32 serial = 0;
    launch.serial = ++serial;
    launch.start(shape.seed * 0x9e3779b97f4a7c15ULL);
    std::vector<ptx::GlobalCell> shadow(memory.size());
    launch.ranges.push_back({at, at + memory.size(), shadow.data()});
    return ptx::run(launch);
}

namespace {

// Lane l reads its operands at 32 l and writes its result at 32 l + 24.
template <class T>
std::vector<T> run(const std::string& code, const std::vector<std::array<T, 3>>& operands, const std::string& reg,
                   const std::string& type) {
    std::vector<T> results;
    for (size_t first = 0; first < operands.size(); first += 32) {
        size_t n = std::min<size_t>(32, operands.size() - first);
        std::vector<u8> memory(1024);
        for (size_t l = 0; l < n; ++l) {
            for (size_t k = 0; k < 3; ++k) std::memcpy(&memory[32 * l + 8 * k], &operands[first + l][k], sizeof(T));
        }
        std::string body = "mul.wide.u32 %rd18, %r0, 32;\nadd.s64 %rd19, %rd0, %rd18;\n";
        for (int k = 1; k <= 3; ++k) {
            body +=
                "ld.global." + type + " " + reg + std::to_string(k) + ", [%rd19+" + std::to_string(8 * k - 8) + "];\n";
        }
        body += code + "\nst.global." + type + " [%rd19+24], " + reg + "4;\n";
        EXPECT_EQ(run_body(body, memory), "") << code;
        for (size_t l = 0; l < n; ++l) {
            T x;
            std::memcpy(&x, &memory[32 * l + 24], sizeof(T));
            results.push_back(x);
        }
    }
    return results;
}

}  // namespace

std::vector<u32> run_lanes(const std::string& code, const std::vector<std::array<u32, 3>>& operands) {
    return run<u32>(code, operands, "%r", "u32");
}

std::vector<u64> run_wide_lanes(const std::string& code, const std::vector<std::array<u64, 3>>& operands) {
    return run<u64>(code, operands, "%rd", "u64");
}

}  // namespace ptx_test
