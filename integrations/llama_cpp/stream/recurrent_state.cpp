#include "recurrent_state.hpp"

#include "llama_api.hpp"

#include <algorithm>
#include <cstring>
#include <string>

namespace sinkcache {
namespace llama_cpp {
namespace {

// Without the KV cache of the layers with attention. What it holds is not read.
constexpr llama_state_seq_flags RECURRENT_ONLY = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;

/** As it lies in memory: the library runs on little-endian processors alone. */
struct Header {
    char magic[8] = {'S', 'K', 'C', '-', 'H', 'Y', 'B', '\n'};
    std::uint64_t n_recurrent = 0, n_caches = 0;
    /** Of all that follows. llama.cpp's state has none of its own. */
    std::uint64_t hash = 0;
};
static_assert(sizeof(Header) == HybridSnapshot::HEADER_BYTES, "the header has gaps");

/** FNV-1a over words of 8 bytes: each step is invertible, so that one changed word always shows. */
std::uint64_t hash_of(Span<std::uint8_t> bytes) {
    std::uint64_t hash = 0xCBF29CE484222325U ^ bytes.size();
    for (std::size_t at = 0; at < bytes.size(); at += sizeof hash) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data() + at, std::min(sizeof word, bytes.size() - at));
        hash = (hash ^ word) * 0x100000001B3U;
        // The multiplication moves nothing down.
        hash ^= hash >> 32U;
    }
    return hash;
}

}  // namespace

void HybridSnapshot::write_header(std::uint8_t *to, std::size_t n_recurrent, std::size_t n_caches) {
    Header header;
    header.n_recurrent = n_recurrent;
    header.n_caches = n_caches;
    header.hash = hash_of({to + HEADER_BYTES, n_recurrent + n_caches});
    std::memcpy(to, &header, sizeof header);
}

HybridSnapshot HybridSnapshot::read(Span<std::uint8_t> saved) {
    const auto invalid = [&](const std::string &reason) {
        throw Error(SKC_STATUS_INVALID_SNAPSHOT,
                    "a snapshot of " + std::to_string(saved.size()) + " bytes " + reason);
    };
    const Header expected;
    Header header;
    if (saved.size() < sizeof header || std::memcmp(saved.data(), expected.magic, sizeof expected.magic) != 0) {
        invalid("is not one of a model with recurrent layers");
    }
    std::memcpy(&header, saved.data(), sizeof header);
    const std::size_t n = saved.size() - sizeof header;
    if (header.n_recurrent > n || header.n_caches != n - header.n_recurrent) {
        invalid("has parts of " + std::to_string(header.n_recurrent) + " and " + std::to_string(header.n_caches) +
                " bytes");
    }
    if (header.hash != hash_of({saved.data() + sizeof header, n})) {
        invalid("is damaged: its hash differs");
    }
    const std::uint8_t *const recurrent = saved.data() + sizeof header;
    const auto n_recurrent = static_cast<std::size_t>(header.n_recurrent);
    return {{recurrent, n_recurrent}, {recurrent + n_recurrent, n - n_recurrent}};
}

std::size_t recurrent_state_bytes(llama_context *ctx, llama_seq_id seq_id) {
    return api().llama_state_seq_get_size_ext(ctx, seq_id, RECURRENT_ONLY);
}

void save_recurrent_state(llama_context *ctx, llama_seq_id seq_id, std::uint8_t *to, std::size_t n_bytes) {
    const std::size_t written = api().llama_state_seq_get_data_ext(ctx, to, n_bytes, seq_id, RECURRENT_ONLY);
    if (written != n_bytes) {
        throw Error(SKC_STATUS_INTERNAL, "llama.cpp has written " + std::to_string(written) + " of " +
                                             std::to_string(n_bytes) + " bytes of a recurrent state");
    }
}

std::vector<std::uint8_t> save_recurrent_state(llama_context *ctx, llama_seq_id seq_id) {
    std::vector<std::uint8_t> state(recurrent_state_bytes(ctx, seq_id));
    save_recurrent_state(ctx, seq_id, state.data(), state.size());
    return state;
}

bool load_recurrent_state(llama_context *ctx, llama_seq_id seq_id, Span<std::uint8_t> saved) {
    return api().llama_state_seq_set_data_ext(ctx, saved.data(), saved.size(), seq_id, RECURRENT_ONLY) == saved.size();
}

}  // namespace llama_cpp
}  // namespace sinkcache
