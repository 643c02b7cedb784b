#include "parked_conversation.hpp"

#include <algorithm>

namespace inflight {

Bytes to_bytes(const ParkedConversation &c) {
    programs::ByteWriter out;
    out.u32(c.pending ? 1 : 0).u32(static_cast<std::uint32_t>(c.pending.value_or(0))).list(c.recent);
    out.u64(c.sequence.size()).raw(c.sequence.data(), c.sequence.size());
    return out.take();
}

std::optional<ParkedConversation> from_bytes(const Bytes &bytes, std::size_t vocabulary) {
    programs::ByteReader in(bytes);
    ParkedConversation c;
    const std::uint32_t has_pending = in.u32();
    const auto pending = static_cast<Token>(in.u32());
    c.recent = in.list();
    const std::uint64_t n = in.u64();
    const std::uint8_t *sequence = n == in.left() ? in.raw(in.left()) : nullptr;
    const auto is_token = [&](Token t) { return t >= 0 && static_cast<std::size_t>(t) < vocabulary; };
    if (!in.complete() || !sequence || has_pending > 1 || (has_pending == 1 && !is_token(pending)) ||
        !std::all_of(c.recent.begin(), c.recent.end(), is_token)) {
        return std::nullopt;
    }
    if (has_pending == 1) {
        c.pending = pending;
    }
    c.sequence.assign(sequence, sequence + n);
    return c;
}

}  // namespace inflight
