//! Edits of a batch of sequences, all layers at once.

use std::ffi::c_void;

use super::boundary::boundary;
use super::c_struct::{c_struct, read_array, read_struct};
use super::constants::{SKC_ON_DEVICE, skc_status};
use super::gate::abort_team_step;
use super::registry::{on_stream, skc_cache, with_handle};
use crate::batch::DeviceEdit;
use crate::error::Result;

/// Arguments of skc_evict.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_evict_args {
    /// sizeof(skc_evict_args).
    pub struct_size: u32,
    /// 0 or SKC_ON_DEVICE.
    pub flags: u32,
    /// Entries of seq_ids and n_tokens.
    pub n_entries: u32,
    /// 0.
    pub reserved: u32,
    /// Sequences; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Window tokens to drop, the oldest first; 0 skips an entry.
    pub n_tokens: *const i32,
    /// CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_evict_args, SKC_ON_DEVICE, 32);

/// Arguments of skc_rewind.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_rewind_args {
    /// sizeof(skc_rewind_args).
    pub struct_size: u32,
    /// 0 or SKC_ON_DEVICE.
    pub flags: u32,
    /// Entries of seq_ids and n_tokens.
    pub n_entries: u32,
    /// 0.
    pub reserved: u32,
    /// Sequences; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Tokens to cut, the newest first; 0 skips an entry.
    pub n_tokens: *const i32,
    /// CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_rewind_args, SKC_ON_DEVICE, 32);

/// Arguments of skc_reset.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_reset_args {
    /// sizeof(skc_reset_args).
    pub struct_size: u32,
    /// 0 or SKC_ON_DEVICE.
    pub flags: u32,
    /// Entries of seq_ids and, where given, start_positions.
    pub n_entries: u32,
    /// 0.
    pub reserved: u32,
    /// Sequences; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// Stream positions of the next tokens; NULL = 0.
    pub start_positions: *const u64,
    /// CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_reset_args, SKC_ON_DEVICE, 32);

/// Arguments of skc_fork.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_fork_args {
    /// sizeof(skc_fork_args).
    pub struct_size: u32,
    /// 0 or SKC_ON_DEVICE.
    pub flags: u32,
    /// Entries of src_seq_ids and dst_seq_ids.
    pub n_entries: u32,
    /// 0.
    pub reserved: u32,
    /// Sequences to copy; SKC_PADDING skips an entry. One may be copied to many.
    pub src_seq_ids: *const i32,
    /// Sequences to overwrite; SKC_PADDING skips an entry. None may be a source, or appear twice.
    pub dst_seq_ids: *const i32,
    /// CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_fork_args, SKC_ON_DEVICE, 32);

/// Arguments of skc_abort_step.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_abort_step_args {
    /// sizeof(skc_abort_step_args).
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// Entries of seq_ids; 0 with seq_ids NULL = all sequences.
    pub n_entries: u32,
    /// 0.
    pub reserved: u32,
    /// Sequences; SKC_PADDING skips an entry. A sequence may appear once.
    pub seq_ids: *const i32,
    /// CUDA stream (CUstream, cudaStream_t); NULL = the legacy default stream. On the CPU NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_abort_step_args, 0, 24);

macro_rules! check_reserved {
    ($args:expr) => {
        if $args.reserved != 0 {
            $crate::error::bail!(VersionMismatch, "reserved is {}: it must be 0", $args.reserved);
        }
    };
}

unsafe fn read_counts<'a>(n: u32, seq_ids: *const i32, n_tokens: *const i32) -> Result<(&'a [i32], &'a [i32])> {
    // SAFETY: the caller's contract.
    unsafe { Ok((read_array("seq_ids", seq_ids, n as usize)?, read_array("n_tokens", n_tokens, n as usize)?)) }
}

fn device_edit(n_entries: u32, ids: *const i32, tokens: *const i32, positions: *const u64) -> DeviceEdit {
    DeviceEdit {
        seq_ids: ids.expose_provenance() as u64,
        n_tokens: tokens.expose_provenance() as u64,
        positions: positions.expose_provenance() as u64,
        n_entries,
    }
}

/// Drops the oldest window tokens of sequences for good, in all layers. Every layer's window must hold as many.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_evict(cache: *mut skc_cache, args: *const skc_evict_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        check_reserved!(a);
        if a.flags & SKC_ON_DEVICE != 0 {
            let edit = device_edit(a.n_entries, a.seq_ids, a.n_tokens, std::ptr::null());
            // SAFETY: the caller's contract.
            return on_stream(cache, a.stream, |cache| unsafe { cache.evict_on_device(edit) });
        }
        // SAFETY: the caller's contract.
        let (ids, counts) = unsafe { read_counts(a.n_entries, a.seq_ids, a.n_tokens) }?;
        on_stream(cache, a.stream, |cache| cache.evict(ids, counts))
    })
}

/// Cuts the newest tokens of sequences (a rejected draft) as if they had never been, in all layers: what they had pushed
/// out of the window is back. SKC_STATUS_TOKENS_GONE where that is impossible.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_rewind(cache: *mut skc_cache, args: *const skc_rewind_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        check_reserved!(a);
        if a.flags & SKC_ON_DEVICE != 0 {
            let edit = device_edit(a.n_entries, a.seq_ids, a.n_tokens, std::ptr::null());
            // SAFETY: the caller's contract.
            return on_stream(cache, a.stream, |cache| unsafe { cache.rewind_on_device(edit) });
        }
        // SAFETY: the caller's contract.
        let (ids, counts) = unsafe { read_counts(a.n_entries, a.seq_ids, a.n_tokens) }?;
        on_stream(cache, a.stream, |cache| cache.rewind(ids, counts))
    })
}

/// Empties sequences, in all layers.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_reset(cache: *mut skc_cache, args: *const skc_reset_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        check_reserved!(a);
        if a.flags & SKC_ON_DEVICE != 0 {
            let edit = device_edit(a.n_entries, a.seq_ids, std::ptr::null(), a.start_positions);
            // SAFETY: the caller's contract.
            return on_stream(cache, a.stream, |cache| unsafe { cache.reset_on_device(edit) });
        }
        let n = a.n_entries as usize;
        // SAFETY: the caller's contract.
        let (ids, starts) = unsafe {
            let starts = (!a.start_positions.is_null()).then(|| read_array("start_positions", a.start_positions, n));
            (read_array("seq_ids", a.seq_ids, n)?, starts.transpose()?)
        };
        on_stream(cache, a.stream, |cache| cache.reset(ids, starts))
    })
}

/// Makes sequences independent copies of others, in all layers.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_fork(cache: *mut skc_cache, args: *const skc_fork_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        check_reserved!(a);
        if a.flags & SKC_ON_DEVICE != 0 {
            let edit = device_edit(a.n_entries, a.dst_seq_ids, a.src_seq_ids, std::ptr::null());
            // SAFETY: the caller's contract.
            return on_stream(cache, a.stream, |cache| unsafe { cache.fork_on_device(edit) });
        }
        let n = a.n_entries as usize;
        // SAFETY: the caller's contract.
        let (src, dst) =
            unsafe { (read_array("src_seq_ids", a.src_seq_ids, n)?, read_array("dst_seq_ids", a.dst_seq_ids, n)?) };
        on_stream(cache, a.stream, |cache| cache.fork(src, dst))
    })
}

/// After a failure between layers: cuts every layer of the sequences back to the shortest, so that the step can be done
/// again. Ends an skc_step_part some of whose members never came in any case. SKC_STATUS_TOKENS_GONE where a longer layer
/// has overwritten tokens that would be visible again; then only skc_reset helps.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_abort_step(cache: *mut skc_cache, args: *const skc_abort_step_args) -> skc_status {
    boundary(|| {
        // SAFETY: the caller's contract.
        let a = unsafe { read_struct(args) }?;
        check_reserved!(a);
        let all = a.n_entries == 0 && a.seq_ids.is_null();
        // SAFETY: the caller's contract.
        let ids = (!all).then(|| unsafe { read_array("seq_ids", a.seq_ids, a.n_entries as usize) }).transpose()?;
        with_handle(cache, abort_team_step)?;
        on_stream(cache, a.stream, |cache| cache.abort_step(ids))
    })
}
