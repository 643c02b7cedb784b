// Kernel parameters, passed by value. params.rs has the same structs for the host; both files assert the sizes.
//
// Lengths, ring offsets and positions are not among them: they live in device memory (SkcSeq), so that a captured
// launch stays correct however often it is replayed.
#pragma once

#include "types.cuh"

// Numbers of the C ABI.
enum { SKC_F32 = 1, SKC_F16 = 2, SKC_BF16 = 3, SKC_Q8 = 4, SKC_Q4 = 5 };
enum { SKC_ROPE = 1, SKC_ROPE_APPLIED = 2, SKC_ALIBI = 3, SKC_NONE = 4 };
enum { SKC_NEOX = 1, SKC_INTERLEAVED = 2 };
enum {
    SKC_STATUS_INVALID_ARGUMENT = -3,
    SKC_STATUS_OUT_OF_RANGE = -5,
    SKC_STATUS_LAYERS_OUT_OF_STEP = -10,
    SKC_STATUS_CHUNK_TOO_LONG = -11,
    SKC_STATUS_TOKENS_GONE = -12,
    SKC_STATUS_NO_ROOM = -17,
};

// Entries of a batch that fit into the kernel parameters.
#define SKC_INLINE_ENTRIES 64

// Counters of one sequence in one layer: `ring::Seq`.
struct SkcSeq {
    u64 len;          // tokens appended and not rewound
    u64 highest;      // highest len since the last reset
    u64 floor;        // lower bound on the ring indices between sinks and window
    u64 attendable;   // tokens of the latest append whose queries may still be attended
    u64 loaded_from;  // ring index of the oldest window token that a load has restored, or 0
    u64 edited;       // end of what explicit edits have touched: no rewind may cut below it
    u32 n_ranges;     // pinned and evicted ranges in the sequence's list
    u32 n_pinned;     // pinned tokens, sinks not counted
};

// Consecutive tokens that a pin or an evict_range has taken out of the window: `ranges::EditedRange`.
struct SkcRange {
    u64 first;         // index of the first token
    u64 n;             // tokens
    u64 later;         // tokens of all later ranges of the list
    u32 later_pinned;  // pinned tokens of all later ranges
    u32 pinned;        // 1: pinned, 0: evicted
};

enum SkcCall {
    SKC_CALL_APPEND = 1,
    SKC_CALL_ATTEND = 2,
    SKC_CALL_EVICT = 3,
    SKC_CALL_REWIND = 4,
    SKC_CALL_RESET = 5,
    SKC_CALL_FORK = 6,
    SKC_CALL_ABORT = 7,
    // 8 is a step.
    SKC_CALL_PIN = 9,
    SKC_CALL_EVICT_RANGE = 10,
};

// How many invalid entries were skipped, and the first of those that the host has not taken. In host memory that is
// mapped into the device's address space. Every word has one writer: over PCIe an atomic of the device and one of the
// host on the same word lose updates. error_record.cuh writes it, error_record.rs reads it.
struct SkcErrorPage {
    // Written by the device.
    u32 begun;      // number of the latest write, stored before the words that follow ...
    u32 n_skipped;  // entries skipped since the cache was created, modulo 2^32
    u32 first;      // n_skipped as it was with the recorded entry counted; later than `n_taken`: not taken yet
    i32 status;     // of the recorded entry, as the host would have reported it
    u32 layer;      // layer, or 2^32 - 1 for edits
    u32 entry;      // index in its batch
    i32 seq;        // sequence id as given
    u32 call;       // SkcCall
    u32 value_low;  // the invalid count
    u32 value_high;
    u32 ended;      // ... and after them: not the same as `begun` while a write is in progress
    u32 unused[21];
    // Written by the host, in a cache line of its own.
    u32 n_taken;    // n_skipped as the host has taken it
    u32 unused_too[31];
};

// What the device itself knows of it, in device memory.
struct SkcErrorLog {
    u32 lock;       // 1 while a block reports; the words that follow belong to it
    u32 n_writes;   // to the page
    u32 n_skipped;  // as in SkcErrorPage
    u32 first;      // as in SkcErrorPage
    SkcErrorPage* page;
};

// A ragged batch. Rows of the caller's tensors are packed in the order of entries, as many for each as it has tokens,
// padding entries (id -1 or count 0) included.
struct SkcBatch {
    const i32* seq_ids;   // device arrays of n_entries; NULL = inline_ids, inline_tokens
    const i32* n_tokens;  // as seq_ids
    u64 n_rows;           // rows of the caller's tensors: an entry that reaches beyond is invalid
    u32 n_entries;
    u32 n_seqs;           // valid ids are 0 .. n_seqs - 1, and -1
    u32 max_tokens;       // larger counts are invalid
    u32 chunk_begin;      // this launch works on tokens chunk_begin .. chunk_begin + chunk_len of each entry: a call of
    u32 chunk_len;        // many chunks is many launches
    u32 all;              // 1: entry i is sequence i, and there are no arrays (abort of all sequences)
    i32 inline_ids[SKC_INLINE_ENTRIES];
    i32 inline_tokens[SKC_INLINE_ENTRIES];
};

// Rows in device memory; strides in bytes.
struct SkcRows {
    u8* ptr;
    i64 token_stride;
    i64 head_stride;
};

// Where K, or V, of one layer lies: [n_seqs][n_kv_heads] heads, each with a row for every slot. A row is `dim` numbers,
// or codes and scales, which lie apart. stored_rows.cuh computes addresses of rows, device_layout.rs the layout.
struct SkcStore {
    u8* codes;        // numbers; of q8 signed bytes; of q4 two codes to a byte, even dims in the low half
    u8* scales;       // bf16: one for each row of q8, one for every 32 dims of q4
    u64 head_codes;   // bytes of a head's codes, and of its scales: multiples of 16
    u64 head_scales;
    u32 row_codes;    // bytes of a row's codes, and of its scales: multiples of 4
    u32 row_scales;
    u32 type;
    u32 dim;
};

// One layer of a cache.
struct SkcLayer {
    SkcStore k;
    SkcStore v;
    SkcSeq* seqs;             // [n_seqs]
    const SkcRange* ranges;   // [n_seqs][max_segments], or NULL
    const u64* starts;        // [n_seqs] stream position of token 0
    const u64* frequencies;   // [rope_pairs] turns per token, 64-bit fixed point
    const float* alibi_slopes; // [n_q_heads], or NULL
    const float* sink_logits; // [n_q_heads], or NULL
    SkcErrorLog* errors;
    u32* append_arrivals;     // [n_seqs] blocks of an entry's append that have arrived; 0 between launches
    u64 n_sink;
    u64 window;
    u64 ring_slots;
    u64 max_rewind;
    u64 max_pinned;
    u64 max_segments;
    u32 layer;
    u32 max_chunk;
    u32 n_kv_heads;
    u32 group;       // query heads per KV head
    u32 in_dtype;
    u32 out_dtype;
    u32 position_mode;
    u32 rope_style;
    u32 rope_pairs;  // rotated pairs of dims; 0 = nothing is rotated
    float mscale;
    float scale;
    float softcap;   // 0 = none
};

// skc_append: rotate and store.
struct SkcAppend {
    SkcLayer layer;
    SkcBatch batch;
    SkcRows k;  // [rows, n_kv_heads, head_dim] of in_dtype
    SkcRows v;  // [rows, n_kv_heads, head_dim_v] of in_dtype
};

// skc_attend_*: attention of the latest tokens' queries.
struct SkcAttend {
    SkcLayer layer;
    SkcBatch batch;
    SkcRows q;        // [rows, n_q_heads, head_dim] of in_dtype
    SkcRows out;      // [rows, n_q_heads, head_dim_v] of out_dtype
    SkcRows lse;      // f32 [rows, n_q_heads], ptr NULL = not wanted
    // Partial results of a KV split. Of a decode: [entries][n_kv_heads][n_splits][8][head_dim_v + 2]; of a chunk:
    // [entries][n_kv_heads][tiles][n_splits][4 warps][CHUNK_PARTIAL].
    float* partials;
    // Splits that have arrived; 0 between launches. Of a decode: [entries][n_kv_heads]; of a chunk:
    // [entries][n_kv_heads][tiles][n_splits][4 warps], of which those of split 0 count.
    u32* split_arrivals;
    u32 n_splits;
    u32 small_tiles;      // chunk: 1 = query tiles of 64 rows, where tiles of 128 would leave multiprocessors idle
};

// skc_step_decode: an append and the attention of its tokens in one launch.
struct SkcStep {
    SkcAttend attend;
    SkcRows k;  // as in SkcAppend
    SkcRows v;
};

// The ring of one layer, and where its lists of ranges are.
struct SkcRing {
    u64 n_sink;
    u64 window;
    u64 ring_slots;
    u64 max_rewind;
    u64 max_pinned;
    u64 max_segments;
    SkcRange* ranges;         // [n_seqs][max_segments], or NULL
};

// An edit of sequences, in all layers.
struct SkcEdit {
    SkcSeq* seqs;             // [n_layers][n_seqs]
    u64* starts;              // [n_seqs]
    const SkcRing* rings;     // [n_layers]
    SkcErrorLog* errors;
    const u64* positions;     // device array [n_entries]; NULL = inline_positions. reset: start positions; pin and
                              // evict_range: indices of first tokens
    u32 n_layers;
    u32 call;                 // SkcCall
    SkcBatch batch;           // fork: seq_ids are destinations, n_tokens are sources
    u64 inline_positions[SKC_INLINE_ENTRIES];
    u32 can_pin;              // 1: some layer has room for pinned tokens
    u32 reserved;
};

// Copies K and V of forked sequences, or moves rows of a pin or an evict_range. The counters follow in a launch of
// their own.
struct SkcRowEdit {
    SkcEdit edit;
    const SkcStore* stores;   // [n_layers][2]: K, V
    u32 n_kv_heads;
    u32 reserved;
};

// Writes a part of a host batch that is too long for the parameters of one launch.
struct SkcStage {
    i32* seq_ids;      // destination arrays in device memory, each may be NULL
    i32* n_tokens;
    u64* positions;
    u32 first;         // index of the first entry of this part
    u32 n;             // entries of this part, at most SKC_INLINE_ENTRIES
    i32 ids[SKC_INLINE_ENTRIES];
    i32 tokens[SKC_INLINE_ENTRIES];
    u64 values[SKC_INLINE_ENTRIES];
};

static_assert(sizeof(SkcSeq) == 56 && sizeof(SkcErrorPage) == 256 && sizeof(SkcErrorLog) == 24, "as in params.rs");
static_assert(sizeof(SkcBatch) == 560 && sizeof(SkcRows) == 24 && sizeof(SkcLayer) == 256, "as in params.rs");
static_assert(sizeof(SkcAppend) == 864 && sizeof(SkcAttend) == 912 && sizeof(SkcStep) == 960, "as in params.rs");
static_assert(sizeof(SkcEdit) == 1128 && sizeof(SkcStore) == 48 && sizeof(SkcRowEdit) == 1144, "as in params.rs");
static_assert(sizeof(SkcStage) == 1056 && sizeof(SkcRange) == 32 && sizeof(SkcRing) == 56, "as in params.rs");
