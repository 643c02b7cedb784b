//! Calls for CUDA caches only: reporting length changes that the host could not see, and the record of skipped entries.

use super::boundary::boundary;
use super::c_struct::{c_struct, fill, read_entries, read_struct};
use super::constants::{SKC_ALL_LAYERS, skc_status};
use super::registry::{skc_cache, with_cache};

/// Arguments of skc_note_replay.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_note_replay_args {
    /// Set to sizeof(skc_note_replay_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: none is defined, set to 0.
    pub flags: u32,
    /// Index of the layer whose lengths changed, or SKC_ALL_LAYERS.
    pub layer: u32,
    /// Number of entries: elements of seq_ids and of n_tokens.
    pub n_entries: u32,
    /// Sequence of each entry, in host memory; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Tokens appended to each sequence, in host memory; negative = removed.
    pub n_tokens: *const i32,
}
c_struct!(skc_note_replay_args);

/// The batch entries that the device has skipped because they were invalid, filled by skc_poll_error. Set struct_size
/// and zero the rest before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_device_error {
    /// Set to sizeof(skc_device_error): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: none is defined, set to 0.
    pub flags: u32,
    /// Number of entries skipped since the last skc_poll_error. If 0, all fields that follow are 0; otherwise they
    /// describe the first of these entries.
    pub n_skipped: u32,
    /// The status that the call would have returned for a batch in host memory.
    pub status: skc_status,
    /// The call that the entry belongs to, one of SKC_CALL_.
    pub call: u32,
    /// Layer of the call; SKC_ALL_LAYERS for edits.
    pub layer: u32,
    /// Index of the entry in its batch.
    pub entry: u32,
    /// Sequence id of the entry, as the caller gave it.
    pub seq_id: i32,
    /// Token count of the entry as the caller gave it (for a fork, the source sequence id), sign-extended to 64 bits; 0
    /// for reset and abort.
    pub value: u64,
}
c_struct!(skc_device_error);

/// Reports length changes that the host did not see: tokens that graph replays, or calls with SKC_ON_DEVICE, have
/// appended to sequences or removed from them. It updates the host's counters, so that skc_seq_info can answer again
/// and edits are checked by the host again. Lengths and positions on the device are correct without it.
///
/// Report all changes of a sequence, in order. Work that has not finished yet may be reported too. It cannot report
/// what skc_pin or skc_evict_range have changed in a graph or with SKC_ON_DEVICE: after them only skc_reset, or
/// skc_seq_info with SKC_READ_BACK, brings the host's counters of the sequence up to date.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_INVALID_ARGUMENT: also for a CPU cache.
/// - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; a length below 0, or positions beyond 2^64 - 1.
/// - SKC_STATUS_LENGTH_UNKNOWN: a skc_pin or skc_evict_range may have changed a sequence unseen by the host.
///
/// Lifetime: args and its arrays until the call returns.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_note_replay(cache: *mut skc_cache, args: *const skc_note_replay_args) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        let n = a.n_entries;
        // SAFETY: the header demands arrays of n_entries elements in host memory, during the call.
        let (ids, counts) =
            unsafe { (read_entries("seq_ids", a.seq_ids, n)?, read_entries("n_tokens", a.n_tokens, n)?) };
        let layer = (a.layer != SKC_ALL_LAYERS).then_some(a.layer);
        with_cache(cache, |cache| cache.note_replay(layer, ids, counts))
    })
}

/// Returns and clears the record of invalid batch entries that completed device work has skipped. Never blocks; it may
/// be called while a graph runs or a stream is being captured. Always empty for CPU caches.
///
/// Returns: SKC_STATUS_OK, also if there is an entry in the record; or one of the common statuses.
///
/// Lifetime: error until the call returns.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `error` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_poll_error(cache: *mut skc_cache, error: *mut skc_device_error) -> skc_status {
    boundary(|| {
        // Checked first: a struct that cannot be filled must not clear the record.
        // SAFETY: NULL or a struct of struct_size bytes.
        unsafe { read_struct(error) }?;
        let found = with_cache(cache, |cache| cache.take_error())?;
        let value = |old: skc_device_error| {
            let none =
                skc_device_error { n_skipped: 0, status: 0, call: 0, layer: 0, entry: 0, seq_id: 0, value: 0, ..old };
            found.map_or(none, |e| skc_device_error {
                n_skipped: e.count,
                status: e.status,
                call: e.call,
                layer: e.layer,
                entry: e.entry,
                seq_id: e.seq_id,
                value: e.value,
                ..old
            })
        };
        // SAFETY: NULL or a writable struct of struct_size bytes.
        unsafe { fill(error, value) }
    })
}
