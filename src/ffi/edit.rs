//! Edits of sequences: evict, rewind, reset, fork, pin, evict_range, and the abort of a step.

use std::ffi::c_void;

use super::boundary::boundary;
use super::c_struct::{CStruct, c_struct, read_entries, read_struct};
use super::constants::{SKC_ON_DEVICE, skc_status};
use super::gate::Exclusive;
use super::registry::{on_stream, skc_cache, with_handle};
use crate::backend::EditCall;
use crate::batch::DeviceEdit;
use crate::cache::Cache;
use crate::error::{Result, bail};

/// Arguments of skc_evict.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_evict_args {
    /// Set to sizeof(skc_evict_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_ON_DEVICE.
    pub flags: u32,
    /// Number of entries: elements of seq_ids and of n_tokens.
    pub n_entries: u32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Window tokens to drop from each sequence, the oldest first; 0 skips an entry.
    pub n_tokens: *const i32,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_evict_args, SKC_ON_DEVICE, 32);

/// Arguments of skc_rewind.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_rewind_args {
    /// Set to sizeof(skc_rewind_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_ON_DEVICE.
    pub flags: u32,
    /// Number of entries: elements of seq_ids and of n_tokens.
    pub n_entries: u32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Tokens to remove from the end of each sequence; 0 skips an entry.
    pub n_tokens: *const i32,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_rewind_args, SKC_ON_DEVICE, 32);

/// Arguments of skc_reset.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_reset_args {
    /// Set to sizeof(skc_reset_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_ON_DEVICE.
    pub flags: u32,
    /// Number of entries: elements of seq_ids and, if it is not NULL, of start_positions.
    pub n_entries: u32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Stream position that each sequence's next token gets; NULL = 0 for all.
    pub start_positions: *const u64,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_reset_args, SKC_ON_DEVICE, 32);

/// Arguments of skc_fork.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_fork_args {
    /// Set to sizeof(skc_fork_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_ON_DEVICE.
    pub flags: u32,
    /// Number of entries: elements of src_seq_ids and of dst_seq_ids.
    pub n_entries: u32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// Sequence that each entry copies; SKC_PADDING skips an entry. It may be copied several times.
    pub src_seq_ids: *const i32,
    /// Sequence that each entry overwrites; SKC_PADDING skips an entry. It may appear once, and must not be a source.
    pub dst_seq_ids: *const i32,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_fork_args, SKC_ON_DEVICE, 32);

/// Arguments of skc_pin.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_pin_args {
    /// Set to sizeof(skc_pin_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_ON_DEVICE.
    pub flags: u32,
    /// Number of entries: elements of seq_ids, of first and of n_tokens.
    pub n_entries: u32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Index of each range's first token, counted from 0 since the last reset. A start position is not part of it.
    pub first: *const u64,
    /// Tokens to pin from there on; 0 skips an entry.
    pub n_tokens: *const i32,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_pin_args, SKC_ON_DEVICE, 40);

/// Arguments of skc_evict_range.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_evict_range_args {
    /// Set to sizeof(skc_evict_range_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_ON_DEVICE.
    pub flags: u32,
    /// Number of entries: elements of seq_ids, of first and of n_tokens.
    pub n_entries: u32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// Sequence of each entry; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Index of each range's first token, counted from 0 since the last reset. A start position is not part of it.
    pub first: *const u64,
    /// Tokens to drop from there on; 0 skips an entry.
    pub n_tokens: *const i32,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_evict_range_args, SKC_ON_DEVICE, 40);

/// Arguments of skc_abort_step.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_abort_step_args {
    /// Set to sizeof(skc_abort_step_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: none is defined, set to 0.
    pub flags: u32,
    /// Number of entries: elements of seq_ids. 0 with seq_ids NULL = all sequences.
    pub n_entries: u32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// Sequence of each entry, in host memory; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_abort_step_args, 0, 24);

/// All edits but abort have one shape: an id per entry and, by call, further arrays.
trait EditArgs: CStruct {
    const CALL: EditCall;

    fn arrays(&self) -> EditArrays;
}

/// The arrays of an edit, in host or device memory. Those that the call does not have are NULL.
struct EditArrays {
    flags: u32,
    n_entries: u32,
    reserved: u32,
    /// In a fork the destinations.
    seq_ids: *const i32,
    /// In a fork the sources.
    n_tokens: *const i32,
    first: *const u64,
    start_positions: *const u64,
    stream: *mut c_void,
}

macro_rules! edit_args {
    ($type:ident, $call:ident, $($array:ident: $field:ident),+) => {
        impl EditArgs for $type {
            const CALL: EditCall = EditCall::$call;

            fn arrays(&self) -> EditArrays {
                EditArrays {
                    $($array: self.$field,)+
                    ..EditArrays::empty(self.flags, self.n_entries, self.reserved, self.stream)
                }
            }
        }
    };
}
edit_args!(skc_evict_args, Evict, seq_ids: seq_ids, n_tokens: n_tokens);
edit_args!(skc_rewind_args, Rewind, seq_ids: seq_ids, n_tokens: n_tokens);
edit_args!(skc_reset_args, Reset, seq_ids: seq_ids, start_positions: start_positions);
edit_args!(skc_fork_args, Fork, seq_ids: dst_seq_ids, n_tokens: src_seq_ids);
edit_args!(skc_pin_args, Pin, seq_ids: seq_ids, first: first, n_tokens: n_tokens);
edit_args!(skc_evict_range_args, EvictRange, seq_ids: seq_ids, first: first, n_tokens: n_tokens);

impl EditArrays {
    fn empty(flags: u32, n_entries: u32, reserved: u32, stream: *mut c_void) -> Self {
        let (ids, indices) = (std::ptr::null(), std::ptr::null());
        Self {
            flags,
            n_entries,
            reserved,
            seq_ids: ids,
            n_tokens: ids,
            first: indices,
            start_positions: indices,
            stream,
        }
    }
}

/// Runs any edit but abort.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
unsafe fn edit<A: EditArgs>(cache: *mut skc_cache, args: *const A) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?.arrays();
        check_reserved(a.reserved)?;
        if a.flags & SKC_ON_DEVICE != 0 {
            let edit = DeviceEdit {
                seq_ids: a.seq_ids.expose_provenance() as u64,
                n_tokens: a.n_tokens.expose_provenance() as u64,
                first: a.first.expose_provenance() as u64,
                positions: a.start_positions.expose_provenance() as u64,
                n_entries: a.n_entries,
            };
            // SAFETY: the header demands a live stream, and arrays that are readable on the device whenever the work
            // runs.
            return unsafe { on_stream(cache, a.stream, |cache| cache.edit_on_device(A::CALL, edit)) };
        }
        let n = a.n_entries;
        let (ids_name, tokens_name) =
            if A::CALL == EditCall::Fork { ("dst_seq_ids", "src_seq_ids") } else { ("seq_ids", "n_tokens") };
        let has_first = matches!(A::CALL, EditCall::Pin | EditCall::EvictRange);
        // SAFETY: the header demands arrays of n_entries elements, during the call.
        let (ids, first, tokens, starts) = unsafe {
            let ids = read_entries(ids_name, a.seq_ids, n)?;
            let first = if has_first { read_entries("first", a.first, n)? } else { &[] };
            let tokens = if A::CALL == EditCall::Reset { &[] } else { read_entries(tokens_name, a.n_tokens, n)? };
            let starts = a.start_positions;
            let starts = (!starts.is_null()).then(|| read_entries("start_positions", starts, n)).transpose()?;
            (ids, first, tokens, starts)
        };
        // SAFETY: the header demands a live stream of the cache's context.
        unsafe {
            on_stream(cache, a.stream, |cache| match A::CALL {
                EditCall::Evict => cache.evict(ids, tokens),
                EditCall::Rewind => cache.rewind(ids, tokens),
                EditCall::Reset => cache.reset(ids, starts),
                EditCall::Fork => cache.fork(tokens, ids),
                EditCall::Pin => cache.pin(ids, first, tokens),
                EditCall::EvictRange => cache.evict_range(ids, first, tokens),
                EditCall::Abort => bail!(Internal, "abort has arguments of its own"),
            })
        }
    })
}

fn check_reserved(reserved: u32) -> Result<()> {
    if reserved != 0 {
        bail!(VersionMismatch, "reserved is {reserved}: it must be 0");
    }
    Ok(())
}

/// Permanently drops the oldest window tokens of sequences, in all layers: the window is shorter until new tokens fill
/// it.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; a layer's window holds fewer tokens; too many entries.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: a sequence has different lengths in its layers.
///
/// Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
/// at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_evict(cache: *mut skc_cache, args: *const skc_evict_args) -> skc_status {
    // SAFETY: `args` is as the header describes it.
    unsafe { edit(cache, args) }
}

/// Removes the newest tokens of sequences, such as rejected drafts, in all layers, as if they had never been appended:
/// tokens that they pushed out of the window are visible again.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist, or is shorter; too many entries.
/// - SKC_STATUS_TOKENS_GONE: tokens that would be visible again have been overwritten (see max_rewind) or evicted.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: a sequence has different lengths in its layers.
///
/// Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
/// at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_rewind(cache: *mut skc_cache, args: *const skc_rewind_args) -> skc_status {
    // SAFETY: `args` is as the header describes it.
    unsafe { edit(cache, args) }
}

/// Empties sequences, in all layers, and sets the stream positions of their next tokens.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; too many entries.
///
/// Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
/// at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_reset(cache: *mut skc_cache, args: *const skc_reset_args) -> skc_status {
    // SAFETY: `args` is as the header describes it.
    unsafe { edit(cache, args) }
}

/// Makes sequences independent copies of others, in all layers. A CPU cache copies K and V during the call.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; too many entries.
/// - SKC_STATUS_INVALID_ARGUMENT: also for a destination that is a source, too.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: a source has different lengths in its layers.
///
/// Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
/// at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_fork(cache: *mut skc_cache, args: *const skc_fork_args) -> skc_status {
    // SAFETY: `args` is as the header describes it.
    unsafe { edit(cache, args) }
}

/// Holds a range of tokens of each sequence permanently, such as a system prompt, in all layers whose max_pinned is
/// above 0; other layers ignore it. Pinned tokens no longer count as window tokens: the window has room for as many new
/// ones. Sinks, and tokens that are pinned already, cost nothing. Only skc_evict_range gives a pin up, or what empties
/// or replaces the whole sequence.
///
/// If a layer changes, tokens that are not held then are gone for good: a later rewind may cut neither into what was
/// pinned nor below the oldest token that the window held; and queries of the latest append can no longer be asked. The
/// call moves rows: it costs what it moves.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; a range ends beyond the sequence; too many entries.
/// - SKC_STATUS_TOKENS_GONE: a layer whose max_pinned is above 0 no longer holds a token of a range; an aborted step has
///   overwritten tokens of a sequence's window: reset it.
/// - SKC_STATUS_NO_ROOM: a layer would have more pinned tokens than its max_pinned, or more segments than its
///   max_segments; no layer has a max_pinned above 0.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: a sequence has different lengths in its layers.
///
/// Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
/// at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_pin(cache: *mut skc_cache, args: *const skc_pin_args) -> skc_status {
    // SAFETY: `args` is as the header describes it.
    unsafe { edit(cache, args) }
}

/// Permanently drops a range of tokens of each sequence, such as a model's thoughts or an old tool result, in all
/// layers: from each layer what it holds of the range, pinned or in the window. Older tokens stay, newer ones close the
/// gap. What has left the cache already does not matter.
///
/// If a layer changes, tokens that are not held then are gone for good: a later rewind may cut neither into the range
/// nor below the oldest token that the window held; and queries of the latest append can no longer be asked. The call
/// moves rows: it costs what it moves.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; a sink is in a range; a range ends beyond the sequence; too
///   many entries.
/// - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of a sequence's window: reset it.
/// - SKC_STATUS_NO_ROOM: a layer would have more segments than its max_segments.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: a sequence has different lengths in its layers.
///
/// Lifetime: args and its arrays until the call returns. With SKC_ON_DEVICE the arrays until the work has finished, and
/// at every replay of a graph that has captured it.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_evict_range(cache: *mut skc_cache, args: *const skc_evict_range_args) -> skc_status {
    // SAFETY: `args` is as the header describes it.
    unsafe { edit(cache, args) }
}

/// Aborts a step that failed between layers: cuts every layer of the sequences to the length of the shortest, so that
/// the step can be repeated. It also ends an unfinished step of skc_step_part, even if it then returns
/// SKC_STATUS_TOKENS_GONE; after other errors that step goes on.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist; too many entries.
/// - SKC_STATUS_TOKENS_GONE: a longer layer has overwritten tokens that would be visible again: reset the sequence.
/// - SKC_STATUS_BUSY: also while a member is inside skc_step_part.
///
/// Lifetime: args and its array until the call returns.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_abort_step(cache: *mut skc_cache, args: *const skc_abort_step_args) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        check_reserved(a.reserved)?;
        let all = a.n_entries == 0 && a.seq_ids.is_null();
        // SAFETY: the header demands an array of n_entries elements, during the call.
        let ids = (!all).then(|| unsafe { read_entries("seq_ids", a.seq_ids, a.n_entries) }).transpose()?;
        with_handle(cache, |handle| {
            // SAFETY: the header demands a live stream of the cache's context.
            let set_stream = |cache: &mut Cache| unsafe { cache.set_stream(a.stream) };
            let mut exclusive = Exclusive::enter_and_end_step(handle, |cache| {
                set_stream(cache)?;
                cache.check_abort(ids)
            })?;
            set_stream(exclusive.cache())?;
            exclusive.cache().abort_step(ids)
        })
    })
}
