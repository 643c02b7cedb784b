#include "state_format.hpp"

#include <cstring>
#include <string>

namespace sinkcache {
namespace interpose {
namespace {

constexpr char MAGIC[8] = {'S', 'K', 'C', '-', 'L', 'L', 'A', '\n'};
constexpr std::uint32_t VERSION = 1;

/** As it lies in memory: the library runs on little-endian processors alone. */
struct Layout {
    char magic[8];
    std::uint32_t version, kind, n_seqs, reserved;
    std::uint64_t n_bytes;
};
static_assert(sizeof(Layout) == STATE_HEADER_BYTES, "the header has gaps");

[[noreturn]] void invalid(const std::string &text) { throw Error(SKC_STATUS_INVALID_SNAPSHOT, text); }

}  // namespace

void write_header(const StateHeader &header, std::uint8_t *to) {
    Layout layout{};
    std::memcpy(layout.magic, MAGIC, sizeof MAGIC);
    layout.version = VERSION;
    layout.kind = static_cast<std::uint32_t>(header.kind);
    layout.n_seqs = header.n_seqs;
    layout.n_bytes = header.n_bytes;
    std::memcpy(to, &layout, sizeof layout);
}

StateHeader read_header(const std::uint8_t *from, std::size_t n_bytes) {
    Layout layout;
    if (n_bytes < sizeof layout) {
        invalid("a state of " + std::to_string(n_bytes) + " bytes: the header alone has " +
                std::to_string(sizeof layout));
    }
    std::memcpy(&layout, from, sizeof layout);
    if (std::memcmp(layout.magic, MAGIC, sizeof MAGIC) != 0) {
        invalid("a state that sinkcache has not written, such as one of llama.cpp's own cache");
    }
    if (layout.version != VERSION) {
        invalid("a state of version " + std::to_string(layout.version) + ": this library reads version " +
                std::to_string(VERSION));
    }
    if (layout.kind < 1 || layout.kind > 3) {
        invalid("a state of kind " + std::to_string(layout.kind) + ": allowed are 1 to 3");
    }
    const auto kind = static_cast<StateKind>(layout.kind);
    if (layout.reserved != 0 || (kind != StateKind::CONTEXT && layout.n_seqs != 0) ||
        (kind == StateKind::UNUSABLE && layout.n_bytes != sizeof layout)) {
        invalid("a state of kind " + std::to_string(layout.kind) + " with " + std::to_string(layout.n_seqs) +
                " sequences, a reserved word of " + std::to_string(layout.reserved) + " and " +
                std::to_string(layout.n_bytes) + " bytes: allowed are 0, 0 and, for kind 2, " +
                std::to_string(sizeof layout) + "; kind 3 may have sequences");
    }
    if (layout.n_bytes < sizeof layout || layout.n_bytes > n_bytes) {
        invalid("a state of " + std::to_string(layout.n_bytes) + " bytes, of which there are " +
                std::to_string(n_bytes));
    }
    return {kind, layout.n_seqs, layout.n_bytes};
}

}  // namespace interpose
}  // namespace sinkcache
