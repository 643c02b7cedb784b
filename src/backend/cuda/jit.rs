//! Kernels compiled for the device at hand: from memory, from disk, or by NVRTC.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, Key, hash};
use super::nvrtc::{Source, nvrtc};
use crate::status::Result;

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("kernels/", $name)))),*] };
}

/// Every file a program may include.
const HEADERS: &[(&str, &str)] = files![
    "advance.cuh",
    "append.cuh",
    "arch.cuh",
    "attend_generic.cuh",
    "chunk.cuh",
    "columns.cuh",
    "decode.cuh",
    "edit.cuh",
    "element.cuh",
    "entry.cuh",
    "fork.cuh",
    "fresh.cuh",
    "geometry.cuh",
    "params.cuh",
    "parts.cuh",
    "phase.cuh",
    "query.cuh",
    "ring.cuh",
    "stage.cuh",
    "tile.cuh",
];

/// What runs for every configuration: append, attention of any shape, edits.
pub const COMMON: Source = Source { name: "common.cu", text: include_str!("kernels/common.cu"), headers: HEADERS };
/// Attention specialised for one shape.
pub const FAST: Source = Source { name: "fast.cu", text: include_str!("kernels/fast.cu"), headers: HEADERS };

/// A program compiled for an architecture (compute capability times ten).
pub fn compile(source: Source, arch: u32, macros: &[(&str, u32)], disk: bool) -> Result<Arc<[u8]>> {
    static CUBINS: Mutex<Option<HashMap<Key, Arc<[u8]>>>> = Mutex::new(None);
    let nvrtc = nvrtc()?;
    // Code for 9.0 may use what only that architecture has.
    let suffix = if arch == 90 { "a" } else { "" };
    let mut options = vec![format!("--gpu-architecture=sm_{arch}{suffix}"), "-std=c++17".to_owned()];
    options.extend(macros.iter().map(|(name, value)| format!("-D{name}={value}")));
    let (major, minor) = nvrtc.version();
    let key = Key {
        recipe: format!("{} {} nvrtc {major}.{minor}", source.name, options.join(" ")),
        source: hash(&(source.text, source.headers)),
    };
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
