//! What only a cache on a device needs: telling the host what graphs did, and asking what the device refused.

use super::boundary::boundary;
use super::c_struct::{c_struct, fill, read_array, read_struct};
use super::constants::{SKC_ALL_LAYERS, skc_status};
use super::registry::{skc_cache, with_cache};

/// Arguments of skc_note_replay.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_note_replay_args {
    /// sizeof(skc_note_replay_args).
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// Layer, or SKC_ALL_LAYERS.
    pub layer: u32,
    /// Entries of seq_ids and n_tokens.
    pub n_entries: u32,
    /// Sequences, in host memory; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Tokens that have been appended to each, or where negative cut off it.
    pub n_tokens: *const i32,
}
c_struct!(skc_note_replay_args);

/// What the device has refused, filled by skc_poll_error. Set struct_size and zero the rest before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_device_error {
    /// sizeof(skc_device_error).
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// Entries that were skipped since the last time; 0 = none, and the rest is 0. What follows is the first one.
    pub n_skipped: u32,
    /// The status the call would have given, had the host known the counts.
    pub status: skc_status,
    /// One of SKC_CALL_.
    pub call: u32,
    /// Layer; SKC_ALL_LAYERS for edits.
    pub layer: u32,
    /// Index of the entry in its batch.
    pub entry: u32,
    /// Sequence id as given.
    pub seq_id: i32,
    /// The count that was refused; of an id that is none, 0.
    pub value: u64,
}
c_struct!(skc_device_error);

/// Tells the host's counters what they could not see: what a replayed graph, or a call with SKC_ON_DEVICE, has appended
/// to sequences or cut off them. Lengths, ring heads and positions on the device are right without it; with it the host
/// can again answer skc_seq_info and refuse edits that cannot be done. Report everything, in order; work that is still in
/// the stream may be reported too.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_note_replay(cache: *mut skc_cache, args: *const skc_note_replay_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        let n = a.n_entries as usize;
        // SAFETY: the caller's contract.
        let (ids, counts) = unsafe { (read_array("seq_ids", a.seq_ids, n)?, read_array("n_tokens", a.n_tokens, n)?) };
        let layer = (a.layer != SKC_ALL_LAYERS).then_some(a.layer);
        with_cache(cache, |cache| cache.note_replay(layer, ids, counts))
    })
}

/// Takes the record of entries that the device has skipped because they could not be done, in work that has finished. It
/// waits for nothing and may be called while a graph runs or a stream is being captured. On the CPU there is never one.
///
/// # Safety
/// `error` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_poll_error(cache: *mut skc_cache, error: *mut skc_device_error) -> skc_status {
    boundary(|| {
        // A struct that cannot be filled must not cost the record.
        // SAFETY: the caller's contract.
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
        // SAFETY: the caller's contract.
        unsafe { fill(error, value) }
    })
}
