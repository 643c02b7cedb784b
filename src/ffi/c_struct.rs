//! Reading and writing what a caller passes: versioned structs and arrays.

use std::mem::MaybeUninit;

use super::boundary::check_pointer;
use crate::config::MAX_SEQS;
use crate::error::{Result, bail};

/// Larger than any struct will ever be: a larger `struct_size` is a mistake, and that many bytes must not be read.
pub const MAX_STRUCT_SIZE: usize = 4096;

/// A versioned struct of the C ABI.
///
/// # Safety
/// The type must be `repr(C)`; every byte pattern that a C program can write, zeros included, must be a valid value;
/// the first two fields must be `struct_size: u32` and `flags: u32`.
pub unsafe trait CStruct: Copy {
    /// Its name in the header.
    const NAME: &'static str;
    /// Its size in the first release, which stays the same when it grows: every caller passes at least this.
    const FIRST_SIZE: usize;
    /// The defined bits of `flags`.
    const FLAGS: u32;
}

macro_rules! c_struct {
    ($type:ident) => {
        $crate::ffi::c_struct::c_struct!($type, 0, size_of::<$type>());
    };
    ($type:ident, $flags:expr, $first_size:expr) => {
        // SAFETY: repr(C), and made of integers, floats, pointers and optional function pointers, for which every byte
        // pattern of C is valid; struct_size and flags come first.
        unsafe impl $crate::ffi::c_struct::CStruct for $type {
            const NAME: &'static str = stringify!($type);
            const FIRST_SIZE: usize = $first_size;
            const FLAGS: u32 = $flags;
        }
    };
}
pub(super) use c_struct;

/// Copies a caller's struct, which may be of an older or a newer version. Fields that an older version lacks are zero;
/// fields that only a newer version has must be zero.
///
/// # Safety
/// `ptr` must be NULL or readable for the `struct_size` bytes it states.
pub unsafe fn read_struct<T: CStruct>(ptr: *const T) -> Result<T> {
    check_pointer(T::NAME, ptr)?;
    // SAFETY: not NULL and aligned, by the check; struct_size and flags come first in every `CStruct`.
    let [size, flags] = unsafe { ptr.cast::<[u32; 2]>().read() };
    let size = size as usize;
    let known = size_of::<T>();
    if !(T::FIRST_SIZE..=MAX_STRUCT_SIZE).contains(&size) {
        bail!(VersionMismatch, "{}.struct_size is {size}: {} to {MAX_STRUCT_SIZE} is allowed", T::NAME, T::FIRST_SIZE);
    }
    if flags & !T::FLAGS != 0 {
        bail!(VersionMismatch, "{}.flags is {flags:#x}: {:#x} are the flags that it may have", T::NAME, T::FLAGS);
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `ptr` is readable for `size` bytes, as this function demands; `value` has `known` bytes.
    unsafe { std::ptr::copy_nonoverlapping(ptr.cast::<u8>(), value.as_mut_ptr().cast(), size.min(known)) };
    for at in known..size {
        // SAFETY: below `size`, so readable.
        if unsafe { ptr.cast::<u8>().add(at).read() } != 0 {
            bail!(
                VersionMismatch,
                "{} of {size} bytes sets byte {at}: this library knows {known} bytes of it",
                T::NAME
            );
        }
    }
    // SAFETY: every byte is initialised, and every byte pattern is a valid `T` by the trait's contract.
    Ok(unsafe { value.assume_init() })
}

/// A caller's array. NULL is allowed for `n` = 0.
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
    // SAFETY: not NULL, aligned and within the address space, by the checks; readable during 'a, as this function
    // demands.
    Ok(unsafe { std::slice::from_raw_parts(ptr, n) })
}

/// A caller's array that is written. NULL is allowed for `n` = 0.
///
/// # Safety
/// `ptr` must be NULL, or writable for `n` elements that nobody else uses during `'a`, and that may have any bytes.
pub unsafe fn write_array<'a, T>(name: &str, ptr: *mut T, n: usize) -> Result<&'a mut [T]> {
    // SAFETY: as this function demands.
    let n = unsafe { read_array(name, ptr.cast_const(), n) }?.len();
    if n == 0 {
        return Ok(&mut []);
    }
    // SAFETY: not NULL, aligned and within the address space, by the checks of `read_array`; writable and used by
    // nobody else during 'a, as this function demands.
    Ok(unsafe { std::slice::from_raw_parts_mut(ptr, n) })
}

/// An array of a batch, with an element for each entry. NULL is allowed for `n` = 0.
///
/// # Errors
/// `OutOfRange` for more entries than a batch can have: none is read then.
///
/// # Safety
/// As for [`read_array`], if `n` is at most `MAX_SEQS`.
pub unsafe fn read_entries<'a, T>(name: &str, ptr: *const T, n: u32) -> Result<&'a [T]> {
    if n > MAX_SEQS {
        bail!(OutOfRange, "n_entries is {n}: at most {MAX_SEQS} is allowed");
    }
    // SAFETY: as this function demands.
    unsafe { read_array(name, ptr, n as usize) }
}

/// Fills a caller's output struct: `value` gets what the caller passed and returns what is written, of which an older
/// version's struct takes only the fields that it has.
///
/// # Safety
/// `out` must be NULL, or readable and writable for the `struct_size` bytes it states.
pub unsafe fn fill<T: CStruct>(out: *mut T, value: impl FnOnce(T) -> T) -> Result<()> {
    check_pointer(T::NAME, out)?;
    // SAFETY: not NULL and aligned, by the check; readable, as this function demands; struct_size comes first.
    let (old, size) = unsafe { (read_struct(out)?, out.cast::<u32>().read() as usize) };
    let new = value(old);
    // SAFETY: `out` is writable for `size` bytes, as this function demands; `new` has size_of::<T>() bytes.
    unsafe { std::ptr::copy_nonoverlapping((&raw const new).cast::<u8>(), out.cast(), size.min(size_of::<T>())) };
    Ok(())
}
