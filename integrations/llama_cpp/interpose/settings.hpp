// What the user sets, by environment variables whose names begin with SINKCACHE_LLAMA_.
#ifndef SINKCACHE_INTERPOSE_SETTINGS_HPP
#define SINKCACHE_INTERPOSE_SETTINGS_HPP

#include "log.hpp"

#include "storage_types.hpp"

#include <cstdint>
#include <optional>

namespace sinkcache {
namespace interpose {

/** What becomes of a context that cannot be served. */
enum class Unsupported {
    /** The host gets none, as if llama.cpp could not create it. */
    FAIL,
    /** The host gets llama.cpp's own. */
    STOCK,
};

struct Settings {
    /** SINK */
    std::uint32_t n_sink = 4;
    /** WINDOW; by default what the host's n_ctx leaves. */
    std::optional<std::uint32_t> window;
    /** LENGTH: the longest stream, which the host is told as its context's length. */
    std::optional<std::uint32_t> length;
    /** MAX_REWIND */
    std::uint32_t max_rewind = 256;
    /** KV; by default the host's types. */
    std::optional<programs::StorageTypes> kv;
    /** CHECKPOINTS: whether a server is to keep states of a prompt, to go back to what a rewind does not reach. */
    bool checkpoints = false;
    /** GPU: whether attention of layers on a CUDA device is computed there. */
    bool gpu = true;
    /** UNSUPPORTED */
    Unsupported unsupported = Unsupported::FAIL;
    /** LOG */
    LogLevel log = LogLevel::INFO;
};

/** LENGTH where the user and the host have set none. */
constexpr std::uint32_t DEFAULT_LENGTH = 1U << 24;

/**
 * The settings of the environment as it is now. A variable that is empty counts as not set.
 *
 * @throws Error SKC_STATUS_INVALID_CONFIG with the variable, its value and what is allowed
 */
Settings read_settings();

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_SETTINGS_HPP
