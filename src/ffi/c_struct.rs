//! Reading what a caller passes: versioned structs and arrays.

use std::mem::MaybeUninit;

use super::boundary::check_pointer;
use crate::error::{Result, bail};

/// No struct of this contract will ever be longer: a larger `struct_size` is a mistake, and must not be read.
const MAX_STRUCT_SIZE: usize = 4096;

/// A struct a caller fills.
///
/// # Safety
/// `repr(C)`; every byte pattern from a C program, zeros included, is a valid value; the first two fields are
/// `struct_size: u32` and `flags: u32`.
pub unsafe trait CStruct: Copy {
    /// Its name in the header.
    const NAME: &'static str;
    /// Its size in the first release: callers built against any later header pass at least this. Stays when it grows.
    const FIRST_SIZE: usize;
    /// Bits of `flags` that are defined.
    const FLAGS: u32;
}

macro_rules! c_struct {
    ($type:ident) => {
        $crate::ffi::c_struct::c_struct!($type, 0, size_of::<$type>());
    };
    ($type:ident, $flags:expr, $first_size:expr) => {
        // SAFETY: integers, floats, pointers and optional function pointers only, led by struct_size and flags.
        unsafe impl $crate::ffi::c_struct::CStruct for $type {
            const NAME: &'static str = stringify!($type);
            const FIRST_SIZE: usize = $first_size;
            const FLAGS: u32 = $flags;
        }
    };
}
pub(super) use c_struct;

/// Copies a struct whose caller may know an older or a newer version of it: what an older one lacks is zero, and what a
/// newer one has more must be zero.
///
/// # Safety
/// `ptr` must be NULL or readable for the `struct_size` bytes it states.
pub unsafe fn read_struct<T: CStruct>(ptr: *const T) -> Result<T> {
    check_pointer(T::NAME, ptr)?;
    // SAFETY: the caller's contract; the trait's first two fields.
    let [size, flags] = unsafe { ptr.cast::<[u32; 2]>().read() };
    let size = size as usize;
    let known = size_of::<T>();
    if !(T::FIRST_SIZE..=MAX_STRUCT_SIZE).contains(&size) {
        bail!(VersionMismatch, "{}.struct_size is {size}: {} to {MAX_STRUCT_SIZE} is allowed", T::NAME, T::FIRST_SIZE);
    }
    if flags & !T::FLAGS != 0 {
        let allowed = if T::FLAGS == 0 { "no flag is defined".to_owned() } else { format!("of bits {:#x}", T::FLAGS) };
        bail!(VersionMismatch, "{}.flags is {flags:#x}: {allowed}", T::NAME);
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the caller's contract; both are at least that long.
    unsafe { std::ptr::copy_nonoverlapping(ptr.cast::<u8>(), value.as_mut_ptr().cast(), size.min(known)) };
    for at in known..size {
        // SAFETY: below `struct_size`.
        if unsafe { ptr.cast::<u8>().add(at).read() } != 0 {
            bail!(
                VersionMismatch,
                "{} of {size} bytes sets byte {at}, unknown to this library: {known} bytes",
                T::NAME
            );
        }
    }
    // SAFETY: the trait's contract.
    Ok(unsafe { value.assume_init() })
}

/// A caller's array. NULL is an array of no elements.
///
/// # Safety
/// `ptr` must be NULL or readable for `n` elements during `'a`.
pub unsafe fn read_array<'a, T>(name: &str, ptr: *const T, n: usize) -> Result<&'a [T]> {
    if n == 0 {
        return Ok(&[]);
    }
    check_pointer(name, ptr)?;
    if n.checked_mul(size_of::<T>()).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        bail!(InvalidArgument, "{name} of {n} elements exceeds the address space");
    }
    // SAFETY: not NULL, aligned, in range; the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts(ptr, n) })
}

/// Fills a caller's output struct, no further than it reaches.
///
/// # Safety
/// `out` must be NULL or as the header describes it.
pub unsafe fn fill<T: CStruct>(out: *mut T, value: impl FnOnce(T) -> T) -> Result<()> {
    check_pointer(T::NAME, out)?;
    // SAFETY: the caller's contract; every struct starts with its size.
    let (old, size) = unsafe { (read_struct(out)?, out.cast::<u32>().read() as usize) };
    let new = value(old);
    // SAFETY: the caller's contract.
    unsafe { std::ptr::copy_nonoverlapping((&raw const new).cast::<u8>(), out.cast(), size.min(size_of::<T>())) };
    Ok(())
}
