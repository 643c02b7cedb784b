//! Kernels compiled for the device: built in, from memory, from disk, or by NVRTC.

mod disk_cache;
pub(super) mod embedded;
pub(super) mod nvrtc;
pub(super) mod program;
#[cfg(test)]
mod variant_list;

use std::collections::HashMap;
use std::sync::Arc;

use once_cell::sync::OnceCell;
use parking_lot::Mutex;

#[cfg(fuzzing)]
pub use self::disk_cache::kernel_file;
use self::disk_cache::{CubinKey, DiskCache};
use self::nvrtc::{Source, nvrtc};
use self::program::{options, recipe, text_hash};
use super::driver::{CurrentContext, Module};
use crate::error::{Error, Result, Status};

/// A program to load, for an architecture (compute capability times ten), with its macros.
#[derive(Clone, Copy, Debug)]
pub struct Compilation<'a> {
    pub source: Source,
    pub arch: u32,
    pub macros: &'a [(&'a str, u32)],
}

/// Loads a program. Looked for in this order: code built in for exactly the architecture; compiled code; and where that
/// cannot be had (no compiler, or one that is older than the device or newer than the driver) code built in for another
/// architecture that runs on this one. `disk_cache`: whether compiled code is kept on disk.
///
/// # Errors
/// `BackendUnavailable` where none of the three exists.
pub fn load(current: &CurrentContext<'_>, wanted: &Compilation<'_>, disk_cache: bool) -> Result<Module> {
    let &Compilation { source, arch, macros } = wanted;
    let unavailable = |error: &Error| error.status() == Status::BackendUnavailable;
    let mut built_in = None;
    if let Some(code) = embedded::exact(source, arch, macros) {
        match Module::load(current, code) {
            // The driver is older than the build's compiler. The machine may have a compiler as old as its driver.
            Err(error) if unavailable(&error) => built_in = Some(format!("; built in, but {error}")),
            loaded => return loaded,
        }
    }
    let error = match compiled(wanted, disk_cache) {
        // The compiler may be newer than the driver.
        Ok(code) => match Module::load(current, &code) {
            Err(error) if unavailable(&error) => error,
            loaded => return loaded,
        },
        Err(error) if unavailable(&error) => error,
        Err(error) => return Err(error),
    };
    match embedded::compatible(source, arch, macros).filter(|_| built_in.is_none()) {
        Some(code) => Module::load(current, code),
        None => {
            let built_in = built_in.unwrap_or_else(|| embedded::archs_text(source, macros));
            Err(Error::new(error.status(), format!("{error}{built_in}")))
        }
    }
}

type Cubin = Arc<[u8]>;

/// Compiled code: from memory, else from disk, else from NVRTC.
fn compiled(wanted: &Compilation<'_>, disk_cache: bool) -> Result<Cubin> {
    // A cell for each cubin: threads that create caches compile different cubins at the same time, and the same one
    // once. A failed compilation leaves its cell empty, so that the next cache tries again; that is what std's cells
    // cannot do yet.
    static CUBINS: Mutex<Option<HashMap<CubinKey, Arc<OnceCell<Cubin>>>>> = Mutex::new(None);
    let nvrtc = nvrtc()?;
    let options = options(wanted.arch, wanted.macros);
    let (major, minor) = nvrtc.version();
    let recipe = format!("{} nvrtc {major}.{minor}", recipe(wanted.source, &options));
    let key = CubinKey { recipe, source: text_hash(wanted.source) };
    let cell = Arc::clone(CUBINS.lock().get_or_insert_default().entry(key.clone()).or_default());
    let cubin = cell.get_or_try_init(|| -> Result<Cubin> {
        let disk = if disk_cache { DiskCache::open() } else { None };
        if let Some(cubin) = disk.as_ref().and_then(|d| d.read(&key)) {
            return Ok(cubin.into());
        }
        let cubin = nvrtc.compile(wanted.source, &options)?;
        if let Some(disk) = &disk {
            disk.write(&key, &cubin);
        }
        Ok(cubin.into())
    })?;
    Ok(Arc::clone(cubin))
}
