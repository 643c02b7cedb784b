//! Memory, allocated when a cache is created: by the host's callbacks, or by the process's allocator.

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr::NonNull;

use crate::error::{Result, bail};

/// Returns `bytes` bytes aligned to `align` (a power of two), or NULL.
pub type AllocFn = unsafe extern "C" fn(user: *mut c_void, bytes: usize, align: usize) -> *mut c_void;
/// Frees what [`AllocFn`] returned for `bytes`.
pub type FreeFn = unsafe extern "C" fn(user: *mut c_void, ptr: *mut c_void, bytes: usize);

/// Alignment of every buffer: a cache line, which is also the widest vector register.
pub const ALIGN: usize = 64;
/// The alignment of malloc on every 64-bit target.
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

// SAFETY: `Memory::new` demands that the callbacks may be called from any thread.
unsafe impl Send for Memory {}
// SAFETY: as for Send.
unsafe impl Sync for Memory {}

impl Memory {
    /// The process's allocator.
    pub(crate) const PROCESS: Self = Self(None);

    /// Memory from a pair of callbacks, which are called with `user`.
    ///
    /// # Safety
    /// Until every cache that uses it is dropped: both may be called from any thread; `alloc` must return NULL
    /// or writable memory of the requested size that is not used otherwise until it is freed; neither may unwind.
    #[must_use]
    pub unsafe fn new(alloc: AllocFn, free: FreeFn, user: *mut c_void) -> Self {
        Self(Some(Callbacks { alloc, free, user }))
    }

    /// Calls the alloc callback; `None` if there is none.
    pub(crate) fn call_alloc(self, bytes: usize, align: usize) -> Option<*mut c_void> {
        // SAFETY: `new` demands that it may be called, from any thread.
        self.0.map(|c| unsafe { (c.alloc)(c.user, bytes, align) })
    }

    /// Calls the free callback for a block that [`Self::call_alloc`] returned; false if there is none.
    pub(crate) fn call_free(self, ptr: *mut c_void, bytes: usize) -> bool {
        // SAFETY: `new` demands that it may be called, from any thread; the block came from its alloc callback.
        self.0.map(|c| unsafe { (c.free)(c.user, ptr, bytes) }).is_some()
    }
}

/// A block of memory, freed on drop.
#[derive(Debug)]
pub struct Buffer {
    ptr: NonNull<u8>,
    bytes: usize,
    memory: Memory,
}

// SAFETY: a buffer owns plain memory and hands out raw pointers only; its users give each thread a part of its own.
unsafe impl Send for Buffer {}
// SAFETY: as for Send.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `bytes` bytes aligned to [`ALIGN`], with any contents. Pages of large blocks are not touched before they are
    /// used. They are not set to zero: memory that the process had used before would then be written, and taken from
    /// the system, although a short stream may never come to it.
    pub fn new(memory: Memory, bytes: usize, what: &str) -> Result<Self> {
        let bytes = bytes.max(1);
        // Room to align by hand: a larger alignment than malloc's may cost a page and more for each block.
        let taken = match memory.0 {
            None => bytes.checked_add(ALIGN),
            Some(_) => Some(bytes),
        };
        let Some(layout) = taken.and_then(|n| Layout::from_size_align(n, MALLOC_ALIGN).ok()) else {
            bail!(OutOfMemory, "{bytes} bytes for {what} exceed the address space");
        };
        let ptr = match memory.0 {
            // SAFETY: the layout has at least one byte.
            None => unsafe { with_any_contents(layout) },
            // SAFETY: `Memory::new` demands that it may be called, from any thread.
            Some(c) => unsafe { (c.alloc)(c.user, bytes, ALIGN).cast() },
        };
        let Some(ptr) = NonNull::new(ptr) else {
            bail!(OutOfMemory, "memory for {what} could not be allocated: {bytes} bytes");
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

/// Allocates memory whose contents are unknown, but not undefined: kernels read blocks of slots of which some were
/// never written, and do not use what they read there.
///
/// # Safety
/// The layout must not be empty.
#[cfg(not(miri))]
unsafe fn with_any_contents(layout: Layout) -> *mut u8 {
    // SAFETY: the layout is not empty.
    let ptr = unsafe { std::alloc::alloc(layout) };
    // Assembly that may, for all the compiler knows, have written the memory.
    // SAFETY: it has no instructions.
    unsafe { std::arch::asm!("/* {0} */", in(reg) ptr, options(nostack, preserves_flags)) };
    ptr
}

/// The same for Miri, which does not know assembly.
///
/// # Safety
/// The layout must not be empty.
#[cfg(miri)]
unsafe fn with_any_contents(layout: Layout) -> *mut u8 {
    // SAFETY: the layout is not empty.
    unsafe { std::alloc::alloc_zeroed(layout) }
}

/// Requests huge pages for large blocks: one pass over a long window touches more 4 KiB pages than the TLB holds.
#[cfg(target_os = "linux")]
fn advise_huge_pages(ptr: *mut u8, bytes: usize) {
    const HUGE: usize = 2 << 20;
    let skip = ptr.align_offset(HUGE);
    let whole = bytes.saturating_sub(skip) / HUGE * HUGE;
    if whole > 0 {
        // SAFETY: whole pages within the block; MADV_HUGEPAGE does not change their contents, and may fail.
        unsafe { libc::madvise(ptr.wrapping_add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: *mut u8, _: usize) {}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.memory.0 {
            // SAFETY: `new` allocated it with this layout.
            None => unsafe {
                std::alloc::dealloc(self.ptr.as_ptr(), Layout::from_size_align_unchecked(self.bytes, MALLOC_ALIGN));
            },
            // SAFETY: `Memory::new` demands that it may be called, from any thread; the block came from its alloc
            // callback.
            Some(c) => unsafe { (c.free)(c.user, self.ptr.as_ptr().cast(), self.bytes) },
        }
    }
}

/// A value in a box, or `OutOfMemory`.
pub fn boxed<T>(value: T, what: &str) -> Result<Box<T>> {
    const { assert!(size_of::<T>() > 0) };
    let layout = Layout::new::<T>();
    // SAFETY: the layout has at least one byte.
    let ptr = unsafe { std::alloc::alloc(layout) }.cast::<T>();
    if ptr.is_null() {
        bail!(OutOfMemory, "{} bytes for {what} could not be allocated", layout.size());
    }
    // SAFETY: allocated just now by the allocator of boxes, with the layout of `T`; initialised before it is a box.
    unsafe {
        ptr.write(value);
        Ok(Box::from_raw(ptr))
    }
}

/// A vector of `n` clones of `value`, or `OutOfMemory`.
pub fn filled<T: Clone>(n: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut v = with_room(n, what)?;
    v.resize(n, value);
    Ok(v)
}

/// An empty vector with capacity for `n` elements, or `OutOfMemory`.
pub fn with_room<T>(n: usize, what: &str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    if v.try_reserve_exact(n).is_err() {
        bail!(OutOfMemory, "{n} entries for {what} could not be allocated");
    }
    Ok(v)
}

/// A copy of `values`, or `OutOfMemory`.
pub fn copied<T: Copy>(values: &[T], what: &str) -> Result<Vec<T>> {
    let mut v = with_room(values.len(), what)?;
    v.extend_from_slice(values);
    Ok(v)
}
