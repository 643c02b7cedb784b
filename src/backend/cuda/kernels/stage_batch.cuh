// skc_stage: writes a part of a host batch that is too long for the parameters of one launch to device memory.
//
// Grid: 1. 128 threads.
#pragma once

#include "params.cuh"
#include "ptx.cuh"

SKC_KERNEL(128, skc_stage, SkcStage) {
    begin_kernel();
    u32 i = thread();
    if (i >= p.n) return;
    u64 at = (u64)p.first + i;
    if (p.seq_ids) p.seq_ids[at] = p.ids[i];
    if (p.n_tokens) p.n_tokens[at] = p.tokens[i];
    if (p.positions) p.positions[at] = p.values[i];
}
