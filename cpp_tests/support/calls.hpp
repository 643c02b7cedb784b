// Every call that takes a handle, with arguments that a cache of host::config(2) accepts while it is idle.
#pragma once

#include "host.hpp"

#include <functional>

namespace host {

struct HandleCall {
    const char *name;
    std::function<skc_status(skc_cache *)> call;
};

/** In an order in which all succeed on a new cache; the last one destroys it. */
inline std::vector<HandleCall> handle_calls() {
    static const Ints seq{0}, one{1};
    static const Rows inputs = rows(1, 1);
    static thread_local Results results = Results::of(1);
    return {
        {"append_kv", [](skc_cache *c) {
             const auto a = append_args(0, seq, one, inputs);
             return skc_append_kv(c, &a);
         }},
        {"attend", [](skc_cache *c) {
             const auto a = attend_args(0, seq, one, inputs, results);
             return skc_attend(c, &a);
         }},
        {"step", [](skc_cache *c) {
             const auto a = step_args(0, seq, one, inputs, results);
             return skc_step(c, &a);
         }},
        {"step_part", [](skc_cache *c) {
             const auto a = step_args(0, seq, one, inputs, results);
             return skc_step_part(c, &a, 0, 1);
         }},
        {"evict", [](skc_cache *c) { return edit(skc_evict, c, 0); }},
        {"rewind", [](skc_cache *c) { return edit(skc_rewind, c, 1); }},
        {"reset", [](skc_cache *c) { return reset(c); }},
        {"fork", [](skc_cache *c) { return fork(c, 0, 1); }},
        {"abort_step", [](skc_cache *c) { return abort_step(c); }},
        {"seq_info", [](skc_cache *c) {
             auto i = sized<skc_sequence_info>();
             return skc_seq_info(c, 0, 0, &i);
         }},
        {"kernel_choice", [](skc_cache *c) {
             auto i = sized<skc_kernel_info>();
             return skc_kernel_choice(c, 0, SKC_CALL_STEP, 1, 1, &i);
         }},
        {"poll_error", [](skc_cache *c) {
             auto e = sized<skc_device_error>();
             return skc_poll_error(c, &e);
         }},
        // For CUDA caches only: a CPU cache rejects it.
        {"note_replay", [](skc_cache *c) {
             const auto a = sized<skc_note_replay_args>();
             return skc_note_replay(c, &a);
         }},
        {"destroy_cache", [](skc_cache *c) { return skc_destroy_cache(c); }},
    };
}

}  // namespace host
