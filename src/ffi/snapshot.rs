//! Snapshots of sequences, and copies from one cache to another.

use std::ffi::c_void;

use super::boundary::{boundary, check_pointer};
use super::c_struct::{c_struct, read_array, read_struct, write_array};
use super::constants::{SKC_HOST_TAG_BYTES, SKC_READ_BACK, skc_status};
use super::registry::{on_stream, skc_cache, with_two_caches};
use crate::cache::{Cache, HostTag};
use crate::error::{Error, Result, bail};

/// Arguments of skc_snapshot_bytes and skc_save_sequence.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_save_sequence_args {
    /// Set to sizeof(skc_save_sequence_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_READ_BACK to read the sequence's state from the device first.
    pub flags: u32,
    /// The sequence that is saved.
    pub seq_id: i32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// Output: the snapshot, in host memory. Not used by skc_snapshot_bytes.
    pub data: *mut c_void,
    /// Bytes that data has room for, at least what skc_snapshot_bytes says. Not used by skc_snapshot_bytes.
    pub n_bytes: u64,
    /// SKC_HOST_TAG_BYTES bytes that are kept in the snapshot and compared by skc_load_sequence, such as a hash of the
    /// model and of the shard: nothing else tells models of equal shapes apart. NULL = zeros. Not used by
    /// skc_snapshot_bytes.
    pub host_tag: *const u8,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_save_sequence_args, SKC_READ_BACK, 40);

/// Arguments of skc_load_sequence.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_load_sequence_args {
    /// Set to sizeof(skc_load_sequence_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: none is defined, set to 0.
    pub flags: u32,
    /// The sequence that is overwritten.
    pub seq_id: i32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// The snapshot, in host memory, of any alignment.
    pub data: *const c_void,
    /// Bytes of the snapshot, neither more nor less.
    pub n_bytes: u64,
    /// The SKC_HOST_TAG_BYTES bytes that the snapshot was saved with. NULL = zeros.
    pub host_tag: *const u8,
    /// CUDA: the stream that the work is put into (CUstream, cudaStream_t); NULL = the legacy default stream. CPU:
    /// NULL.
    pub stream: *mut c_void,
}
c_struct!(skc_load_sequence_args, 0, 40);

/// Arguments of skc_copy_sequence.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_copy_sequence_args {
    /// Set to sizeof(skc_copy_sequence_args): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: 0, or SKC_READ_BACK to read the source's state from the device first.
    pub flags: u32,
    /// The cache of the source. It may be the one that is copied to.
    pub src_cache: *mut skc_cache,
    /// The sequence of src_cache that is copied.
    pub src_seq_id: i32,
    /// The sequence that is overwritten.
    pub dst_seq_id: i32,
    /// CUDA: the stream of the cache that is copied to; NULL = the legacy default stream. CPU: NULL.
    pub stream: *mut c_void,
    /// CUDA: the stream of src_cache; NULL = the legacy default stream, or stream where both caches are one. CPU: NULL.
    pub src_stream: *mut c_void,
}
c_struct!(skc_copy_sequence_args, SKC_READ_BACK, 24);

fn check_reserved(reserved: u32) -> Result<()> {
    if reserved != 0 {
        bail!(VersionMismatch, "reserved is {reserved}: it must be 0");
    }
    Ok(())
}

fn bytes_of(n: u64) -> Result<usize> {
    match usize::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => bail!(InvalidArgument, "n_bytes is {n}: more than the address space"),
    }
}

/// # Safety
/// `tag` must be NULL or readable for `SKC_HOST_TAG_BYTES` bytes.
unsafe fn read_tag(tag: *const u8) -> HostTag {
    const { assert!(size_of::<HostTag>() == SKC_HOST_TAG_BYTES as usize) };
    if tag.is_null() {
        return HostTag::default();
    }
    // SAFETY: not NULL, so readable for the bytes of a tag; bytes have no alignment.
    unsafe { tag.cast::<HostTag>().read() }
}

fn refresh(cache: &mut Cache, flags: u32, seq_id: i32) -> Result<()> {
    if flags & SKC_READ_BACK != 0 { cache.read_back(seq_id) } else { Ok(()) }
}

/// Computes the bytes that skc_save_sequence would write for a sequence as it is now.
///
/// Returns: SKC_STATUS_OK, the common statuses, and those of skc_save_sequence, except that data, n_bytes and host_tag
/// are not used.
///
/// Lifetime: args and n_bytes until the call returns. With SKC_READ_BACK the stream must be valid.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY. With SKC_READ_BACK it waits for the
/// stream.
///
/// # Safety
/// `args` must be NULL or as the header describes it, `n_bytes` NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_snapshot_bytes(
    cache: *mut skc_cache,
    args: *const skc_save_sequence_args,
    n_bytes: *mut u64,
) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        check_reserved(a.reserved)?;
        check_pointer("n_bytes", n_bytes)?;
        // SAFETY: the header demands a live stream of the cache's context.
        let bytes = unsafe {
            on_stream(cache, a.stream, |cache| {
                refresh(cache, a.flags, a.seq_id)?;
                cache.snapshot_bytes(a.seq_id)
            })
        }?;
        // SAFETY: not NULL and aligned, by the check; writable.
        unsafe { n_bytes.write(bytes as u64) };
        Ok(())
    })
}

/// Saves a sequence: writes a snapshot of its state, which skc_load_sequence restores, in this cache or in another one,
/// on either backend, in another process. The sequence stays as it is. docs/snapshot.md describes the bytes.
/// *n_written, unless it is NULL, gets their number. A snapshot has the sinks, the window, and what a rewind of
/// max_rewind tokens may bring back.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_OUT_OF_RANGE: the sequence does not exist; n_bytes is less than the snapshot has. Nothing is written.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: the sequence has different lengths in its layers.
/// - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of the sequence's window: reset it.
/// - SKC_STATUS_LENGTH_UNKNOWN: the host's counters of the sequence are stale, and SKC_READ_BACK is not set.
/// - SKC_STATUS_INVALID_ARGUMENT: also while the stream is being captured.
/// - SKC_STATUS_OUT_OF_MEMORY: with SKC_READ_BACK, if the host has no memory for the counters.
///
/// Lifetime: args, its arrays and n_written until the call returns.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY. A CUDA cache waits for the stream.
///
/// # Safety
/// `args` must be NULL or as the header describes it, `n_written` NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_save_sequence(
    cache: *mut skc_cache,
    args: *const skc_save_sequence_args,
    n_written: *mut u64,
) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        check_reserved(a.reserved)?;
        if !n_written.is_null() {
            check_pointer("n_written", n_written)?;
        }
        // SAFETY: the header demands n_bytes bytes that nobody else uses, and a tag or NULL, during the call.
        let (out, tag) =
            unsafe { (write_array("data", a.data.cast::<u8>(), bytes_of(a.n_bytes)?)?, read_tag(a.host_tag)) };
        // SAFETY: the header demands a live stream of the cache's context.
        let written = unsafe {
            on_stream(cache, a.stream, |cache| {
                refresh(cache, a.flags, a.seq_id)?;
                cache.save_sequence(a.seq_id, &tag, out)
            })
        }?;
        if !n_written.is_null() {
            // SAFETY: not NULL and aligned, by the check; writable.
            unsafe { n_written.write(written as u64) };
        }
        Ok(())
    })
}

/// Loads a snapshot into a sequence, in place of what it holds. These settings must be those of the cache that it was
/// saved from: n_layers, heads, dims, k_dtype, v_dtype, and of each layer n_sink, window, position_mode, RoPE, scale,
/// softcap, ALiBi slopes and sink logits. All others may differ, the backend too. A later rewind brings back what both
/// caches' max_rewind allow. Queries of tokens before the load can no longer be asked for.
///
/// All of a snapshot is checked before anything changes.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_INVALID_SNAPSHOT: the bytes are damaged, cut off, of a later version, or of a cache whose settings or
///   whose host_tag differ. The text names what differs.
/// - SKC_STATUS_NO_ROOM: the sequence has more pinned tokens than max_pinned, or more segments than max_segments.
/// - SKC_STATUS_OUT_OF_RANGE: the sequence does not exist.
/// - SKC_STATUS_INVALID_ARGUMENT: also while the stream is being captured.
///
/// Lifetime: args and its arrays until the call returns. For a CUDA cache, data in pinned memory must stay as it is
/// until the stream's work has finished; pageable memory has been read when the call returns.
///
/// Threads: any thread; a second call on the same cache returns SKC_STATUS_BUSY. For a CUDA cache it may wait for the
/// stream, unless data is in pinned memory.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_load_sequence(cache: *mut skc_cache, args: *const skc_load_sequence_args) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        check_reserved(a.reserved)?;
        // SAFETY: the header demands n_bytes bytes and a tag, or NULL, during the call.
        let (data, tag) =
            unsafe { (read_array("data", a.data.cast::<u8>(), bytes_of(a.n_bytes)?)?, read_tag(a.host_tag)) };
        // SAFETY: the header demands a live stream of the cache's context, and that data in pinned memory stays.
        unsafe { on_stream(cache, a.stream, |cache| cache.begin_load(a.seq_id, &tag, data)) }
    })
}

/// Makes a sequence an independent copy of one of another cache, or of the same cache as skc_fork does. The settings
/// must agree as for skc_load_sequence; backends may differ. Between CUDA caches of one context the copy is put into
/// stream: order it with the work of src_stream. Otherwise the call waits for the streams of CUDA caches.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_INVALID_HANDLE, SKC_STATUS_BUSY, SKC_STATUS_DEVICE_LOST, SKC_STATUS_INTERNAL: also for src_cache.
/// - SKC_STATUS_OUT_OF_RANGE: a sequence does not exist.
/// - SKC_STATUS_INVALID_ARGUMENT: also for settings that differ, for a sequence copied to itself, and while a stream is
///   being captured.
/// - SKC_STATUS_NO_ROOM: as for skc_load_sequence.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: the source has different lengths in its layers.
/// - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of the source's window.
/// - SKC_STATUS_LENGTH_UNKNOWN: the host's counters of the source are stale, and SKC_READ_BACK is not set.
/// - SKC_STATUS_OUT_OF_MEMORY: with a CUDA cache, if the host has no memory for a part of the copy.
///
/// Lifetime: args until the call returns.
///
/// Threads: any thread; a second call on one of the caches returns SKC_STATUS_BUSY.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_copy_sequence(cache: *mut skc_cache, args: *const skc_copy_sequence_args) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let a = unsafe { read_struct(args) }?;
        if std::ptr::eq(cache, a.src_cache) {
            // SAFETY: the header demands a live stream of the cache's context.
            return unsafe {
                on_stream(cache, a.stream, |cache| {
                    if a.dst_seq_id == a.src_seq_id {
                        bail!(
                            InvalidArgument,
                            "src_seq_id and dst_seq_id are both {}: a sequence is no copy of itself",
                            a.src_seq_id
                        );
                    }
                    if !a.src_stream.is_null() && a.src_stream != a.stream {
                        bail!(
                            InvalidArgument,
                            "src_stream is {:p}: within one cache it is stream, {:p}",
                            a.src_stream,
                            a.stream
                        );
                    }
                    refresh(cache, a.flags, a.src_seq_id)?;
                    cache.copy_within(a.dst_seq_id, a.src_seq_id)
                })
            };
        }
        with_two_caches(cache, a.src_cache, |cache, source| {
            // SAFETY: the header demands live streams of the caches' contexts.
            unsafe {
                cache.set_stream(a.stream)?;
                source
                    .set_stream(a.src_stream)
                    .map_err(|e| Error::new(e.status(), format_args!("src_{}", e.message())))?;
            }
            refresh(source, a.flags, a.src_seq_id)?;
            cache.copy_sequence(a.dst_seq_id, source, a.src_seq_id)
        })
    })
}
