//! Kernels compiled for the device at hand: built in, from memory, from disk, or by NVRTC.

mod disk_cache;
pub(super) mod embedded;
pub(super) mod nvrtc;
pub(super) mod program;
#[cfg(test)]
mod variant_list;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use self::disk_cache::{Disk, Key};
use self::nvrtc::{Source, nvrtc};
use self::program::{options, recipe, text_hash};
use super::driver::{Current, Module};
use crate::error::{Error, Result, Status};

/// A program loaded for an architecture (compute capability times ten): built in for just that, else compiled, else, where
/// there is no compiler or it is older than the device, built in for an architecture whose code runs there.
///
/// # Errors
/// `BackendUnavailable` where there is none of the three.
pub fn load(current: &Current<'_>, source: Source, arch: u32, macros: &[(&str, u32)], disk: bool) -> Result<Module> {
    let unavailable = |error: &Error| error.status() == Status::BackendUnavailable;
    let mut built_in = None;
    if let Some(code) = embedded::exact(source, arch, macros) {
        match Module::load(current, code) {
            // A driver older than the compiler of the build: the machine may have a compiler of its driver's time.
            Err(error) if unavailable(&error) => built_in = Some(format!("; built in, but {error}")),
            loaded => return loaded,
        }
    }
    let error = match compiled(source, arch, macros, disk) {
        // A compiler newer than the driver, too, leaves what is built in.
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
            let there = built_in.unwrap_or_else(|| embedded::what_there_is(source, macros));
            Err(Error::new(error.status(), format!("{error}{there}")))
        }
    }
}

fn compiled(source: Source, arch: u32, macros: &[(&str, u32)], disk: bool) -> Result<Arc<[u8]>> {
    static CUBINS: Mutex<Option<HashMap<Key, Arc<[u8]>>>> = Mutex::new(None);
    let nvrtc = nvrtc()?;
    let options = options(arch, macros);
    let (major, minor) = nvrtc.version();
    let key = Key { recipe: format!("{} nvrtc {major}.{minor}", recipe(source, &options)), source: text_hash(source) };
    // Held while compiling: two caches made at once would do the same work twice.
    let mut cubins = CUBINS.lock();
    let cubins = cubins.get_or_insert_default();
    if let Some(cubin) = cubins.get(&key) {
        return Ok(Arc::clone(cubin));
    }
    let disk = if disk { Disk::open() } else { None };
    let cubin: Arc<[u8]> = match disk.as_ref().and_then(|d| d.read(&key)) {
        Some(cubin) => cubin.into(),
        None => {
            let cubin = nvrtc.compile(source, &options)?;
            if let Some(disk) = &disk {
                disk.write(&key, &cubin);
            }
            cubin.into()
        }
    };
    cubins.insert(key, Arc::clone(&cubin));
    Ok(cubin)
}
