#include "windows.hpp"

#include "errors.hpp"
#include "llama_api.hpp"

#include <string>

namespace sinkcache {
namespace llama_cpp {
namespace {

/** Decodes tokens of one sequence at consecutive positions, without logits. */
void decode(llama_context *ctx, llama_seq_id seq_id, llama_pos first, std::int32_t n) {
    llama_token tokens[2] = {0, 0};
    llama_pos positions[2] = {first, first + 1};
    std::int32_t counts[2] = {1, 1};
    llama_seq_id *ids[3] = {&seq_id, &seq_id, nullptr};
    std::int8_t outputs[2] = {0, 0};
    const std::int32_t result = api().llama_decode(ctx, {n, tokens, nullptr, positions, counts, ids, outputs});
    api().llama_synchronize(ctx);
    if (result != 0) {
        throw Error(SKC_STATUS_INTERNAL,
                    "the tokens that show the windows of the layers: llama_decode returned " + std::to_string(result));
    }
}

}  // namespace

std::vector<std::uint32_t> probe_windows(llama_context *ctx, Attention &attention, std::uint32_t n_swa,
                                         llama_seq_id other) {
    constexpr std::uint32_t LEAST = 2, MOST = 1U << 30;
    require(n_swa >= LEAST && n_swa <= MOST, [&] {
        return "a sliding window of " + std::to_string(n_swa) + " tokens is not supported: allowed are " +
               std::to_string(LEAST) + " to " + std::to_string(MOST);
    });
    const llama_memory_t memory = api().llama_get_memory(ctx);
    // Any position from which n_swa tokens back there is one.
    const auto query = static_cast<llama_pos>(n_swa) + 10;
    const auto oldest = query - static_cast<llama_pos>(n_swa);
    std::vector<std::int64_t> visible;
    attention.begin_probe();
    try {
        // Tokens of a sequence must be consecutive. The first two are another's, which becomes part of this one.
        decode(ctx, other, oldest, 2);
        decode(ctx, 0, query - 1, 1);
        api().llama_memory_seq_cp(memory, other, 0, -1, -1);
        api().llama_memory_seq_rm(memory, other, -1, -1);
        decode(ctx, 0, query, 1);
        visible = attention.end_probe();
    } catch (const Error &) {
        attention.end_probe();
        throw;
    }
    api().llama_memory_seq_rm(memory, 0, -1, -1);
    std::vector<std::uint32_t> windows;
    for (const std::int64_t n : visible) {
        // All four, or all but the one that is n_swa tokens back.
        require(n == 4 || n == 3, [&] {
            return "layer " + std::to_string(windows.size()) + ": its mask shows " + std::to_string(n) +
                   " of 4 tokens, neither all nor those in a sliding window of " + std::to_string(n_swa) +
                   " (chunked attention, for example)";
        });
        windows.push_back(n == 4 ? 0 : n_swa);
    }
    return windows;
}

}  // namespace llama_cpp
}  // namespace sinkcache
