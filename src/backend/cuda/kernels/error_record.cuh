// How an invalid entry is recorded for the host: src/backend/cuda/error_record.rs reads it.
//
// The host reads without waiting, at any time, so the record has a number before and after it that differ while it is
// being written. One block at a time writes. An entry is either counted by the host together with the record that it
// has read, or has a record of its own: see report.
#pragma once

#include "params.cuh"
#include "ptx.cuh"

// A skipped entry.
struct SkippedEntry {
    i32 status;
    u32 layer;
    u32 entry;
    i32 seq;
    u32 call;
    u64 value;
};

// Whether the host has taken the recorded entry. The numbers wrap.
SKC_DEVICE bool record_is_taken(const SkcErrorLog& log) {
    return (i32)(load_system(&log.page->n_taken) - log.first) >= 0;
}

// Writes the count and, if `own`, a record of the latest entry.
SKC_DEVICE void write_page(SkcErrorLog& log, const SkippedEntry& entry, bool own) {
    SkcErrorPage* page = log.page;
    u32 number = ++log.n_writes;
    store_system(&page->begun, number);
    fence_system();
    store_system(&page->n_skipped, log.n_skipped);
    if (own) {
        log.first = log.n_skipped;
        store_system(&page->first, log.first);
        store_system((u32*)&page->status, (u32)entry.status);
        store_system(&page->layer, entry.layer);
        store_system(&page->entry, entry.entry);
        store_system((u32*)&page->seq, (u32)entry.seq);
        store_system(&page->call, entry.call);
        store_system(&page->value_low, (u32)entry.value);
        store_system(&page->value_high, (u32)(entry.value >> 32));
    }
    fence_system();
    store_system(&page->ended, number);
    // Before `n_taken` is read again: see report.
    fence_system();
}

// Records that an entry was skipped. One thread of one block of the entry calls it.
SKC_DEVICE void report(SkcErrorLog* at, const SkippedEntry& entry) {
    // Blocks that wait do so for one that is running: it needs nothing from them.
    while (atomic_exchange(&at->lock, 1) != 0) {
    }
    SkcErrorLog& log = *at;
    ++log.n_skipped;
    bool taken = record_is_taken(log);
    write_page(log, entry, taken); // mutant: record_overwritten
    // The host may have taken the record meanwhile. It writes `n_taken`, then reads the count again; this wrote the
    // count, then reads `n_taken` again. So one of the two sees the other: the host counts this entry with what it
    // takes, or this entry becomes the first of those to come. If both do, the record is of an entry that has been
    // taken, which both sides know from its number.
    if (!taken && record_is_taken(log)) write_page(log, entry, true);
    atomic_exchange(&at->lock, 0);
}
