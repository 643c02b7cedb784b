//! NVRTC, NVIDIA's run-time compiler: a library that is searched for and opened at run time.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use libloading::Library;
use once_cell::sync::OnceCell;

use crate::error::{Error, Result, Status, bail};

type Program = *mut std::ffi::c_void;

/// Library names, newest first. From CUDA 11.2 on, sonames do not change within a major version.
const NAMES: [&str; 4] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"];
/// Names a directory that holds libnvrtc. It is searched before all others.
pub const VARIABLE: &str = "SINKCACHE_NVRTC_DIR";
/// Name the directory of a CUDA toolkit.
pub const TOOLKITS: [&str; 2] = ["CUDA_HOME", "CUDA_PATH"];
/// Name a Python environment.
pub const PYTHONS: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];

/// `NVRTC_ERROR_INVALID_OPTION`: among others an architecture newer than the library.
const INVALID_OPTION: c_int = 5;

/// The library's functions that are used here.
#[derive(Debug)]
pub struct Nvrtc {
    // Keeps the library loaded: the function pointers below point into it.
    _library: Library,
    _builtins: Option<Library>,
    version: (i32, i32),
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    n_archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// The compiler, or why there is none. A search that fails is made again at the next call: by then the user may have
/// installed a compiler, or the host may have set [`VARIABLE`].
pub fn nvrtc() -> Result<&'static Nvrtc> {
    static NVRTC: OnceCell<Nvrtc> = OnceCell::new();
    NVRTC.get_or_try_init(|| find(&directories()))
}

/// The most failures that an error lists.
const MAX_FAILURES: usize = 3;

fn find(dirs: &[Option<PathBuf>]) -> Result<Nvrtc> {
    let mut failures = Vec::new();
    for dir in dirs {
        for name in NAMES {
            match open(dir.as_deref(), name) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => (),
                Err(why) => failures.push(why),
            }
        }
    }
    if !failures.is_empty() {
        failures.truncate(MAX_FAILURES);
        bail!(
            BackendUnavailable,
            "no CUDA compiler: {}; set {VARIABLE} to the directory of a libnvrtc.so that loads",
            failures.join("; ")
        );
    }
    let looked: Vec<_> = dirs.iter().flatten().map(|d| d.display().to_string()).collect();
    bail!(
        BackendUnavailable,
        "no CUDA compiler: libnvrtc.so was found neither by the loader nor in {}; set {VARIABLE} to its directory",
        looked.join(", ")
    );
}

/// Where to search, in order. `None` is the loader's own path.
fn directories() -> Vec<Option<PathBuf>> {
    let mut dirs = Vec::new();
    dirs.extend(std::env::var_os(VARIABLE).filter(|d| !d.is_empty()).map(|d| Some(PathBuf::from(d))));
    dirs.push(None);
    for home in TOOLKITS.iter().filter_map(std::env::var_os) {
        dirs.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|sub| Some(Path::new(&home).join(sub))));
    }
    dirs.push(Some(PathBuf::from("/usr/local/cuda/lib64")));
    // NVIDIA's Python wheels in the active environment.
    for prefix in PYTHONS.iter().filter_map(std::env::var_os) {
        let lib = Path::new(&prefix).join("lib");
        let versions = std::fs::read_dir(&lib).into_iter().flatten().flatten();
        for python in versions.map(|e| e.path()).filter(|p| p.file_name().is_some_and(is_python)) {
            let nvidia = python.join("site-packages/nvidia");
            dirs.extend(["cu13/lib", "cuda_nvrtc/lib"].map(|sub| Some(nvidia.join(sub))));
        }
    }
    dirs
}

fn is_python(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with("python3")
}

/// Opens one candidate; `None` if there is none, an error if there is one that cannot be used.
fn open(dir: Option<&Path>, name: &str) -> std::result::Result<Option<Nvrtc>, String> {
    let path = dir.map_or_else(|| PathBuf::from(name), |d| d.join(name));
    if dir.is_some() {
        match regular_file(&path) {
            Ok(true) => (),
            Ok(false) => return Ok(None),
            Err(why) => return Err(format!("{} was found, but {why}", path.display())),
        }
    }
    // NVRTC opens its builtins by name only. Outside the loader's path they must be loaded before it.
    let builtins = dir.and_then(load_builtins);
    // SAFETY: NVRTC's initialisers set up the library itself, on any thread.
    match unsafe { Library::new(&path) } {
        Ok(library) => Nvrtc::new(library, builtins)
            .map(Some)
            .map_err(|e| format!("{} was found and loaded, but {}", path.display(), e.message())),
        Err(e) => {
            let why = loader_text(&e);
            // The loader searches many places, and says in a text only whether it found the file.
            if dir.is_none() && why.contains(&format!("{name}: cannot open shared object file")) {
                return Ok(None);
            }
            Err(format!("{} was found, but does not load: {why}", path.display()))
        }
    }
}

/// The loader's own words, which the error does not show itself.
fn loader_text(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Whether there is a file of this path that the loader may open: it would wait for a pipe's other end. An error if
/// there is something else.
fn regular_file(path: &Path) -> std::result::Result<bool, String> {
    match std::fs::symlink_metadata(path).and_then(|_| std::fs::metadata(path).map_err(std::io::Error::other)) {
        Ok(known) if known.is_file() => Ok(true),
        Ok(_) => Err("is not a regular file".to_owned()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(format!("cannot be opened: {e}")),
    }
}

fn load_builtins(dir: &Path) -> Option<Library> {
    let file = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).find(|p| {
        let named = p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libnvrtc-builtins.so"));
        named && regular_file(p) == Ok(true)
    })?;
    // SAFETY: the library holds data for NVRTC, and its initialisers have no preconditions.
    unsafe { Library::new(file) }.ok()
}

/// A program: its source and the headers it includes, by name.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub name: &'static str,
    pub text: &'static str,
    pub headers: &'static [(&'static str, &'static str)],
}

impl Nvrtc {
    fn new(library: Library, builtins: Option<Library>) -> Result<Self> {
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field that the symbol is stored in has the type that nvrtc.h declares. `_library` keeps
                // it loaded.
                match unsafe { library.get($name) } {
                    Ok(symbol) => *symbol,
                    Err(e) => bail!(BackendUnavailable, "lacks a function: {}", loader_text(&e)),
                }
            };
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = symbol!(b"nvrtcVersion\0");
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both outputs are writable.
        unsafe { version(&raw mut major, &raw mut minor) };
        Ok(Self {
            version: (major, minor),
            create: symbol!(b"nvrtcCreateProgram\0"),
            compile: symbol!(b"nvrtcCompileProgram\0"),
            cubin_size: symbol!(b"nvrtcGetCUBINSize\0"),
            cubin: symbol!(b"nvrtcGetCUBIN\0"),
            log_size: symbol!(b"nvrtcGetProgramLogSize\0"),
            log: symbol!(b"nvrtcGetProgramLog\0"),
            n_archs: symbol!(b"nvrtcGetNumSupportedArchs\0"),
            archs: symbol!(b"nvrtcGetSupportedArchs\0"),
            destroy: symbol!(b"nvrtcDestroyProgram\0"),
            error: symbol!(b"nvrtcGetErrorString\0"),
            _library: library,
            _builtins: builtins,
        })
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The architectures (compute capability times ten) that it compiles for.
    pub fn archs(&self) -> Result<Vec<u32>> {
        let mut n = 0;
        // SAFETY: the output is writable.
        self.check(unsafe { (self.n_archs)(&raw mut n) }, "NVRTC")?;
        let mut archs = vec![0; usize::try_from(n).unwrap_or(0)];
        // SAFETY: the array has as many elements as `n_archs` said.
        self.check(unsafe { (self.archs)(archs.as_mut_ptr()) }, "NVRTC")?;
        Ok(archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect())
    }

    fn check(&self, code: c_int, what: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: NVRTC returns a static string for every code, unknown ones included.
        let text = unsafe { CStr::from_ptr((self.error)(code)) }.to_string_lossy();
        bail!(Internal, "{what}: {text}");
    }

    /// Compiles to a cubin. `options` must name a real architecture (`sm_90`): a virtual one gives no cubin.
    pub fn compile(&self, source: Source, options: &[String]) -> Result<Vec<u8>> {
        let c = |text: &str| {
            CString::new(text)
                .map_err(|_| Error::new(Status::Internal, format!("a NUL in a source or option of {}", source.name)))
        };
        let (text, name) = (c(source.text)?, c(source.name)?);
        let headers = source.headers.iter().map(|(name, text)| Ok((c(name)?, c(text)?))).collect::<Result<Vec<_>>>()?;
        let options = options.iter().map(|o| c(o)).collect::<Result<Vec<_>>>()?;
        let names: Vec<_> = headers.iter().map(|h| h.0.as_ptr()).collect();
        let texts: Vec<_> = headers.iter().map(|h| h.1.as_ptr()).collect();
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = Guard { nvrtc: self, program: std::ptr::null_mut() };
        // SAFETY: all pointers are to NUL-terminated strings, or arrays of them with the lengths given, that outlive
        // the calls; `program` is writable, and is used only after the check of its creation.
        let code = unsafe {
            let n = headers.len() as c_int;
            let out = &raw mut program.program;
            self.check((self.create)(out, text.as_ptr(), name.as_ptr(), n, texts.as_ptr(), names.as_ptr()), "NVRTC")?;
            (self.compile)(program.program, options.len() as c_int, options.as_ptr())
        };
        if code == INVALID_OPTION {
            let (major, minor) = self.version;
            bail!(
                BackendUnavailable,
                "NVRTC {major}.{minor} cannot compile for this device, only for {:?}: {}",
                self.archs().unwrap_or_default(),
                self.program_log(program.program)
            );
        }
        if code != 0 {
            let log = self.program_log(program.program);
            self.check(code, &format!("NVRTC {}.{}, {}: {log}", self.version.0, self.version.1, source.name))?;
        }
        let mut size = 0;
        // SAFETY: the program has been compiled, and the output is writable.
        self.check(unsafe { (self.cubin_size)(program.program, &raw mut size) }, "NVRTC")?;
        if size == 0 {
            bail!(Internal, "NVRTC gave an empty cubin for {}", source.name);
        }
        let mut cubin = vec![0_u8; size];
        // SAFETY: the buffer has the size that NVRTC gave.
        self.check(unsafe { (self.cubin)(program.program, cubin.as_mut_ptr().cast()) }, "NVRTC")?;
        Ok(cubin)
    }

    fn program_log(&self, program: Program) -> String {
        let mut size = 0;
        // SAFETY: the program exists, and the output is writable.
        if unsafe { (self.log_size)(program, &raw mut size) } != 0 || size == 0 {
            return "no log".to_owned();
        }
        let mut log = vec![0_u8; size];
        // SAFETY: the buffer has the size that NVRTC gave.
        let _ = unsafe { (self.log)(program, log.as_mut_ptr().cast()) };
        String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned()
    }
}

/// Destroys the program on drop.
struct Guard<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: not NULL, so it was created; only this drop destroys it.
            let _ = unsafe { (self.nvrtc.destroy)(&raw mut self.program) };
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The search in this folder fails with these words.
    fn fails(dir: &Path, words: &str) {
        let error = find(&[Some(dir.to_owned())]).unwrap_err();
        assert_eq!(error.status(), Status::BackendUnavailable);
        assert!(error.message().contains(words), "not '{words}': {error}");
    }

    /// The error says what was found, and why it is not used. Nothing waits for a pipe.
    #[test]
    fn what_is_found_but_is_no_compiler_is_named() {
        let dir = std::env::temp_dir().join(format!("sinkcache-{}-nvrtc", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("libnvrtc.so.12");
        let shown = path.display();
        fails(&dir, &format!("found neither by the loader nor in {}", dir.display()));

        std::fs::write(&path, "no library").unwrap();
        fails(&dir, &format!("{shown} was found, but does not load: {shown}: file too short"));
        std::fs::remove_file(&path).unwrap();

        symlink("nothing", &path).unwrap();
        fails(&dir, &format!("{shown} was found, but cannot be opened: No such file"));
        std::fs::remove_file(&path).unwrap();

        // A library, but not this one.
        let this = std::fs::read_to_string("/proc/self/maps").unwrap();
        let library = this.lines().filter_map(|l| l.split_whitespace().last()).find(|l| l.contains("/libc.")).unwrap();
        symlink(library, &path).unwrap();
        fails(&dir, &format!("{shown} was found and loaded, but lacks a function"));
        std::fs::remove_file(&path).unwrap();

        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        // Also as what is loaded before it.
        symlink(&path, dir.join("libnvrtc-builtins.so.12")).unwrap();
        std::fs::write(dir.join("libnvrtc.so"), "no library").unwrap();
        fails(&dir, &format!("{shown} was found, but is not a regular file"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
