// Every call that takes a handle, with arguments that a cache of host::config(2) accepts while it is idle.
#pragma once

#include "host.hpp"

#include <functional>
#include <memory>

namespace host {

struct HandleCall {
    const char *name;
    /** Allocates nothing. */
    std::function<skc_status(skc_cache *)> call;
};

/** Arguments that are made before the calls. */
struct HandleCallArgs {
    const Ints seq{0}, other{1}, none{0}, one{1};
    const Indices first{0};
    const std::uint64_t start = 0;
    const Rows rows = host::rows(1, 1);
    Results results = Results::of(1);
    const skc_append_kv_args append = append_args(0, seq, one, rows);
    const skc_attend_args attend = attend_args(0, seq, one, rows, results);
    const skc_step_args step = step_args(0, seq, one, rows, results);
    const skc_evict_args evict = edit_args<skc_evict_args>(seq, none);
    const skc_rewind_args rewind = edit_args<skc_rewind_args>(seq, one);
    const skc_reset_args reset = sequence_args<skc_reset_args>(seq);
    const skc_fork_args fork = fork_args(seq, other);
    const skc_pin_args pin = range_args<skc_pin_args>(seq, first, none);
    const skc_evict_range_args evict_range = range_args<skc_evict_range_args>(seq, first, none);
    const skc_abort_step_args abort = sized<skc_abort_step_args>();
    std::vector<std::uint8_t> snapshot = std::vector<std::uint8_t>(1 << 15);
    std::uint64_t n_bytes = 0;
    const skc_save_sequence_args save = save_args(0, snapshot);
    skc_load_sequence_args load = load_args(0, snapshot);
    skc_copy_sequence_args copy = copy_args(nullptr, 0, 1);
    const skc_note_replay_args replay = sized<skc_note_replay_args>();
    skc_sequence_info info = sized<skc_sequence_info>();
    skc_kernel_info kernel = sized<skc_kernel_info>();
    skc_device_error error = sized<skc_device_error>();
};

/** In an order in which all succeed on a new cache; the last one destroys it. Not for several threads at a time. */
inline std::vector<HandleCall> handle_calls() {
    const auto a = std::make_shared<HandleCallArgs>();
    return {
        {"append_kv", [a](skc_cache *c) { return skc_append_kv(c, &a->append); }},
        {"attend", [a](skc_cache *c) { return skc_attend(c, &a->attend); }},
        {"step", [a](skc_cache *c) { return skc_step(c, &a->step); }},
        {"step_part", [a](skc_cache *c) { return skc_step_part(c, &a->step, 0, 1); }},
        {"evict", [a](skc_cache *c) { return skc_evict(c, &a->evict); }},
        {"rewind", [a](skc_cache *c) { return skc_rewind(c, &a->rewind); }},
        {"reset", [a](skc_cache *c) { return skc_reset(c, &a->reset); }},
        {"fork", [a](skc_cache *c) { return skc_fork(c, &a->fork); }},
        {"pin", [a](skc_cache *c) { return skc_pin(c, &a->pin); }},
        {"evict_range", [a](skc_cache *c) { return skc_evict_range(c, &a->evict_range); }},
        {"abort_step", [a](skc_cache *c) { return skc_abort_step(c, &a->abort); }},
        {"snapshot_bytes", [a](skc_cache *c) { return skc_snapshot_bytes(c, &a->save, &a->n_bytes); }},
        {"save_sequence", [a](skc_cache *c) { return skc_save_sequence(c, &a->save, &a->n_bytes); }},
        {"load_sequence",
         [a](skc_cache *c) {
             // Nothing is loaded where nothing can be saved.
             a->load.n_bytes = 0;
             skc_save_sequence(c, &a->save, &a->load.n_bytes);
             return skc_load_sequence(c, &a->load);
         }},
        {"copy_sequence",
         [a](skc_cache *c) {
             a->copy.src_cache = c;
             return skc_copy_sequence(c, &a->copy);
         }},
        {"seq_info", [a](skc_cache *c) { return skc_seq_info(c, 0, 0, &a->info); }},
        {"kernel_choice", [a](skc_cache *c) { return skc_kernel_choice(c, 0, SKC_CALL_STEP, 1, 1, &a->kernel); }},
        {"poll_error", [a](skc_cache *c) { return skc_poll_error(c, &a->error); }},
        // For CUDA caches only: a CPU cache rejects it.
        {"note_replay", [a](skc_cache *c) { return skc_note_replay(c, &a->replay); }},
        {"destroy_cache", [](skc_cache *c) { return skc_destroy_cache(c); }},
    };
}

/** What the call returns on an idle CPU cache. */
inline skc_status expected_status(const HandleCall &call) {
    return std::string(call.name) == "note_replay" ? SKC_STATUS_INVALID_ARGUMENT : SKC_STATUS_OK;
}

}  // namespace host
