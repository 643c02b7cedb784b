// A call that recurses deeper than the stack of its thread allows.
#pragma once

#include <cstddef>
#include <functional>

namespace inflight {

/**
 * Calls on a thread with a stack of `bytes`, and waits. Memory is used as far as the call reaches. Passes exceptions
 * on; throws std::runtime_error if there is no such stack.
 */
void call_with_stack(std::size_t bytes, const std::function<void()> &call);

}  // namespace inflight
