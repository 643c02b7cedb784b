//! Memory: had once, at create, from the caller's callbacks or the process's allocator.

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr::NonNull;

use crate::error::{Result, bail};

/// Returns `bytes` bytes aligned to `align` (a power of two), or NULL.
pub type AllocFn = unsafe extern "C" fn(user: *mut c_void, bytes: usize, align: usize) -> *mut c_void;
/// Takes back what [`AllocFn`] returned for `bytes`.
pub type FreeFn = unsafe extern "C" fn(user: *mut c_void, ptr: *mut c_void, bytes: usize);

/// Alignment of every buffer: a cache line, and the widest vector register.
pub const ALIGN: usize = 64;
/// What malloc aligns to on every 64-bit target.
const MALLOC_ALIGN: usize = 16;

/// Where a cache's memory comes from. The default is the process's allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory(Option<Callbacks>);

#[derive(Clone, Copy, Debug)]
struct Callbacks {
    alloc: AllocFn,
    free: FreeFn,
    user: *mut c_void,
}

// SAFETY: the callbacks' contract (`Memory::new`) is that they may be called from any thread.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Memory from a pair of callbacks, which get `user`.
    ///
    /// # Safety
    /// Until every cache made with it is gone, both may be called from any thread, `alloc` must return NULL or writable
    /// memory of the size asked for that is nobody else's, and neither may unwind.
    #[must_use]
    pub unsafe fn new(alloc: AllocFn, free: FreeFn, user: *mut c_void) -> Self {
        Self(Some(Callbacks { alloc, free, user }))
    }

    /// What the caller's callback returns; `None` where there is none.
    pub(crate) fn call_alloc(self, bytes: usize, align: usize) -> Option<*mut c_void> {
        // SAFETY: the contract of `new`.
        self.0.map(|c| unsafe { (c.alloc)(c.user, bytes, align) })
    }

    /// Gives a block back to the caller; false where there is no callback.
    pub(crate) fn call_free(self, ptr: *mut c_void, bytes: usize) -> bool {
        // SAFETY: the contract of `new`; the block came from its partner.
        self.0.map(|c| unsafe { (c.free)(c.user, ptr, bytes) }).is_some()
    }
}

/// A block of memory, given back on drop.
#[derive(Debug)]
pub struct Buffer {
    ptr: NonNull<u8>,
    bytes: usize,
    memory: Memory,
}

// SAFETY: a buffer is plain memory; its users divide it among threads without overlap.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `bytes` bytes aligned to [`ALIGN`]: zeros from the process, whatever the callback left in its own. Large blocks are
    /// not touched before they are used.
    pub fn zeroed(memory: Memory, bytes: usize, what: &str) -> Result<Self> {
        let bytes = bytes.max(1);
        // Room to align by hand: asked for more than its natural alignment, the allocator would write the zeros itself.
        let taken = match memory.0 {
            None => bytes.checked_add(ALIGN),
            Some(_) => Some(bytes),
        };
        let Some(layout) = taken.and_then(|n| Layout::from_size_align(n, MALLOC_ALIGN).ok()) else {
            bail!(OutOfMemory, "{bytes} bytes for {what} exceed the address space");
        };
        let ptr = match memory.0 {
            // SAFETY: the layout is not empty.
            None => unsafe { std::alloc::alloc_zeroed(layout) },
            // SAFETY: the contract of `Memory::new`.
            Some(c) => unsafe { (c.alloc)(c.user, bytes, ALIGN).cast() },
        };
        let Some(ptr) = NonNull::new(ptr) else {
            bail!(OutOfMemory, "{bytes} bytes for {what} could not be allocated");
        };
        let buffer = Self { ptr, bytes: layout.size(), memory };
        if memory.0.is_none() {
            advise_huge_pages(buffer.as_ptr(), bytes);
        }
        if memory.0.is_some() && !(ptr.as_ptr() as usize).is_multiple_of(ALIGN) {
            bail!(InvalidArgument, "the alloc callback returned {ptr:p} for {what}, not aligned to {ALIGN}");
        }
        Ok(buffer)
    }

    /// Its first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        let ptr = self.ptr.as_ptr();
        match self.memory.0 {
            None => ptr.wrapping_add(ptr.align_offset(ALIGN)),
            Some(_) => ptr,
        }
    }
}

/// Asks for huge pages where a block is large: reading a long window once touches more pages than the processor remembers.
#[cfg(target_os = "linux")]
fn advise_huge_pages(ptr: *mut u8, bytes: usize) {
    const HUGE: usize = 2 << 20;
    let skip = ptr.align_offset(HUGE);
    let whole = bytes.saturating_sub(skip) / HUGE * HUGE;
    if whole > 0 {
        // SAFETY: whole pages within the block; advice changes nothing that a program can see. Refused, all is as before.
        unsafe { libc::madvise(ptr.wrapping_add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: *mut u8, _: usize) {}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.memory.0 {
            // SAFETY: allocated with this layout.
            None => unsafe {
                std::alloc::dealloc(self.ptr.as_ptr(), Layout::from_size_align_unchecked(self.bytes, MALLOC_ALIGN));
            },
            // SAFETY: the contract of `Memory::new`; the block came from its partner.
            Some(c) => unsafe { (c.free)(c.user, self.ptr.as_ptr().cast(), self.bytes) },
        }
    }
}

/// A vector of `n` clones of `value`, or `OutOfMemory`.
pub fn filled<T: Clone>(n: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut v = with_room(n, what)?;
    v.resize(n, value);
    Ok(v)
}

/// An empty vector with room for `n`, or `OutOfMemory`.
pub fn with_room<T>(n: usize, what: &str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    if v.try_reserve_exact(n).is_err() {
        bail!(OutOfMemory, "{n} entries for {what} could not be allocated");
    }
    Ok(v)
}

/// A copy of `values`, or `OutOfMemory`.
pub fn copied(values: &[f32], what: &str) -> Result<Vec<f32>> {
    let mut v = with_room(values.len(), what)?;
    v.extend_from_slice(values);
    Ok(v)
}
