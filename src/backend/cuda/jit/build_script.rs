//! The build script's part of the feature `cubins`: compiles the kernels that are built into the library and writes
//! their table. Not part of the library.

use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::nvrtc::{Nvrtc, PYTHONS, Source, TOOLKITS, VARIABLE, nvrtc};
use super::program::{COMMON, FAST, FAST_ARCH, SHAPES_VARIABLE, options, recipe, text_hash};
use super::variant_list::{ARCHS_VARIABLE, archs, shapes};

/// Alignment of a cubin within the library: that of its code.
const ALIGN: usize = 128;

/// One cubin to compile.
struct Compilation {
    source: Source,
    arch: u32,
    options: Vec<String>,
}

/// Compiles for all architectures, and writes `cubins.rs`, which `embedded.rs` includes.
pub fn build() -> Result<(), String> {
    // The build script includes the kernels' texts: where one changes, cargo builds and runs the script again.
    for name in [ARCHS_VARIABLE, SHAPES_VARIABLE, VARIABLE].into_iter().chain(TOOLKITS).chain(PYTHONS) {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let (archs, shapes) = (archs(&variable(ARCHS_VARIABLE)?)?, shapes(&variable(SHAPES_VARIABLE)?)?);
    let compiler = nvrtc().map_err(|e| e.to_string())?;
    let supported = compiler.archs().map_err(|e| e.to_string())?;
    if let Some(arch) = archs.iter().find(|arch| !supported.contains(arch)) {
        let (major, minor) = compiler.version();
        return Err(format!("{ARCHS_VARIABLE} has {arch}: NVRTC {major}.{minor} compiles for {supported:?}"));
    }
    let mut jobs = Vec::new();
    for arch in archs {
        jobs.push(Compilation { source: COMMON, arch, options: options(arch, &[]) });
        // Older devices run the kernels for every shape only.
        for shape in shapes.iter().filter(|_| arch >= FAST_ARCH) {
            jobs.push(Compilation { source: FAST, arch, options: options(arch, &shape.macros()) });
        }
    }
    let out = std::env::var("OUT_DIR").map_err(|e| format!("OUT_DIR: {e}"))?;
    write(&jobs, &compile(compiler, &jobs)?, Path::new(&out)).map_err(|e| format!("{out}: {e}"))
}

fn variable(name: &str) -> Result<String, String> {
    match std::env::var(name) {
        Err(std::env::VarError::NotUnicode(text)) => Err(format!("{name} is {}: not UTF-8", text.display())),
        other => Ok(other.unwrap_or_default()),
    }
}

/// Compiles on as many threads as cargo grants.
fn compile(compiler: &Nvrtc, jobs: &[Compilation]) -> Result<Vec<Vec<u8>>, String> {
    let threads = variable("NUM_JOBS")?.parse().unwrap_or(1_usize).clamp(1, jobs.len());
    let (next, cubins) = (AtomicUsize::new(0), Mutex::new(vec![Vec::new(); jobs.len()]));
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(i) else { return Ok(()) };
            match compiler.compile(job.source, &job.options) {
                Ok(cubin) => cubins.lock().map_err(|e| e.to_string())?[i] = cubin,
                Err(error) => {
                    // The build has failed: the other threads stop.
                    next.store(jobs.len(), Ordering::Relaxed);
                    return Err(format!("{}: {error}", recipe(job.source, &job.options)));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
    })?;
    cubins.into_inner().map_err(|e| e.to_string())
}

/// Writes a file for each cubin, which tools can inspect, and the table that includes them.
fn write(jobs: &[Compilation], cubins: &[Vec<u8>], out: &Path) -> std::io::Result<()> {
    for old in std::fs::read_dir(out)?.flatten().map(|e| e.path()) {
        if old.extension().is_some_and(|e| e == "cubin") {
            std::fs::remove_file(old)?;
        }
    }
    let mut text = format!("#[repr(align({ALIGN}))]\nstruct Aligned<const N: usize>([u8; N]);\n");
    let mut table = String::new();
    for (i, (job, cubin)) in jobs.iter().zip(cubins).enumerate() {
        std::fs::write(out.join(format!("{i}.cubin")), cubin)?;
        let _ = writeln!(
            text,
            "static CUBIN_{i}: Aligned<{}> = Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{i}.cubin\")));",
            cubin.len()
        );
        let _ = writeln!(
            table,
            "    Cubin {{ arch: {}, recipe: {:?}, source: {:#x}, code: &CUBIN_{i}.0 }},",
            job.arch,
            recipe(job.source, &job.options),
            text_hash(job.source)
        );
    }
    std::fs::write(out.join("cubins.rs"), format!("{text}static TABLE: &[Cubin<'_>] = &[\n{table}];\n"))
}
