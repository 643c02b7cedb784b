//! Compiled kernels on disk, so that only the first process compiles them.
//!
//! The directory holds code that will be executed: it is used only if it belongs to the user and nobody else can access
//! it. An entry says what it was made from and carries checksums. One that does not match is a miss, never an error.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::program::hash;

/// Names the directory; empty = no disk cache.
const VARIABLE: &str = "SINKCACHE_CUDA_CACHE_DIR";
const MAGIC: &str = "sinkcache cubin 1";
/// The longest file that is read. The largest cubin has less than 2 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// What a cubin was made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CubinKey {
    /// Program, options, architecture and compiler, in one line.
    pub recipe: String,
    /// Hash of the program and its headers.
    pub source: u128,
}

impl CubinKey {
    /// What a file begins with, before the cubin.
    fn header(&self, cubin: &[u8]) -> String {
        format!("{MAGIC}\n{}\n{}\n", self.recipe, self.checksums(cubin))
    }

    /// The cubin of a file's bytes, if it was made from this and is intact.
    fn cubin_of<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let mut rest = file;
        let mut line = || {
            let end = rest.iter().position(|&b| b == b'\n')?;
            let (line, tail) = rest.split_at(end);
            rest = tail.get(1..)?;
            std::str::from_utf8(line).ok()
        };
        let (magic, recipe, sums) = (line()?, line()?, line()?);
        (magic == MAGIC && recipe == self.recipe && sums == self.checksums(rest)).then_some(rest)
    }

    fn checksums(&self, cubin: &[u8]) -> String {
        format!("{:032x} {} {:032x}", self.source, cubin.len(), hash(&cubin))
    }
}

/// A file of the cache, for the fuzz target: what is written for a cubin; and the cubin that is read from a file's
/// bytes, if there is one.
#[cfg(fuzzing)]
pub fn kernel_file(recipe: &str, cubin: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<u8>> {
    let key = CubinKey { recipe: recipe.to_owned(), source: hash(&recipe) };
    let mut file = key.header(cubin).into_bytes();
    file.extend_from_slice(cubin);
    change(&mut file);
    key.cubin_of(&file).map(<[u8]>::to_vec)
}

/// A directory of cubins.
#[derive(Clone, Debug)]
pub struct DiskCache(PathBuf);

impl DiskCache {
    /// The user's directory, created if it is missing. `None` where there is no place for it, or others can access it.
    pub fn open() -> Option<Self> {
        let dir = match std::env::var_os(VARIABLE) {
            Some(dir) if dir.is_empty() => return None,
            Some(dir) => PathBuf::from(dir),
            None => match std::env::var_os("XDG_CACHE_HOME").filter(|d| Path::new(d).is_absolute()) {
                Some(cache) => PathBuf::from(cache).join("sinkcache"),
                None => PathBuf::from(std::env::var_os("HOME").filter(|d| !d.is_empty())?).join(".cache/sinkcache"),
            },
        };
        Self::at(dir)
    }

    fn at(dir: PathBuf) -> Option<Self> {
        create_dir(&dir).ok()?;
        is_private(&dir).then_some(Self(dir))
    }

    fn path(&self, key: &CubinKey) -> PathBuf {
        self.0.join(format!("{:032x}.cubin", hash(key)))
    }

    /// The entry of a key, if there is one and it is intact.
    pub fn read(&self, key: &CubinKey) -> Option<Vec<u8>> {
        key.cubin_of(&read_file(&self.path(key))?).map(<[u8]>::to_vec)
    }

    /// Stores a cubin. A failure is not reported: the cubin will be compiled again.
    pub fn write(&self, key: &CubinKey, cubin: &[u8]) {
        let _ = self.try_write(key, cubin);
    }

    fn try_write(&self, key: &CubinKey, cubin: &[u8]) -> std::io::Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Written under another name and renamed: other processes see the whole entry or none.
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.0.join(format!("{}-{n}.tmp", std::process::id()));
        let outcome = (|| {
            let mut file = File::options().write(true).create_new(true).open(&temporary)?;
            file.write_all(key.header(cubin).as_bytes())?;
            file.write_all(cubin)?;
            file.sync_all()?;
            std::fs::rename(&temporary, self.path(key))
        })();
        if outcome.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        outcome
    }
}

/// A regular file of at most [`MAX_BYTES`]; `None` for all else. A pipe would block the caller, a device might never
/// end.
fn read_file(path: &Path) -> Option<Vec<u8>> {
    let file = open_file(path).ok()?;
    // Of the open file: the path may name another one by now.
    let known = file.metadata().ok()?;
    if !known.is_file() || known.len() > MAX_BYTES {
        return None;
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(known.len()).ok()?).ok()?;
    // Not beyond that length, also if the file grows.
    file.take(known.len()).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Opening does not wait for the other end of a pipe, and a terminal does not become the process's own. Std adds
/// `O_CLOEXEC`.
#[cfg(unix)]
fn open_file(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

#[cfg(not(unix))]
fn open_file(path: &Path) -> std::io::Result<File> {
    File::open(path)
}

#[cfg(unix)]
fn create_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(not(unix))]
fn create_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)
}

/// Whether it is a directory (not a link to one) that only this user can access.
#[cfg(unix)]
fn is_private(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    // SAFETY: geteuid has no preconditions and cannot fail.
    let user = unsafe { libc::geteuid() };
    std::fs::symlink_metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == user && m.mode() & 0o077 == 0)
}

#[cfg(not(unix))]
fn is_private(dir: &Path) -> bool {
    dir.is_dir()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key(recipe: &str) -> CubinKey {
        CubinKey { recipe: recipe.to_owned(), source: hash(&"text") }
    }

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sinkcache-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let dir = directory("round-trip");
        let disk = DiskCache::at(dir.clone()).unwrap();
        assert_eq!(disk.read(&key("a")), None);
        disk.write(&key("a"), b"code");
        assert_eq!(disk.read(&key("a")).as_deref(), Some(b"code".as_slice()));
        assert_eq!(disk.read(&key("b")), None);
        assert_eq!(disk.read(&CubinKey { source: 7, ..key("a") }), None);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_damaged_entry_is_a_miss() {
        let dir = directory("damage");
        let disk = DiskCache::at(dir.clone()).unwrap();
        disk.write(&key("a"), b"a cubin of some length");
        let path = disk.path(&key("a"));
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(disk.read(&key("a")), None, "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert_eq!(disk.read(&key("a")), None, "cut at {at}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Reading any of them would block, or never end, or take a lot of memory.
    #[test]
    fn what_is_no_regular_file_of_sane_size_is_a_miss() {
        let dir = directory("kinds");
        let disk = DiskCache::at(dir.clone()).unwrap();
        let path = disk.path(&key("a"));
        let miss = |what: &str| {
            assert_eq!(disk.read(&key("a")), None, "{what}");
            // The entry is replaced by one that is good, unless it is a directory, which is left alone.
            disk.write(&key("a"), b"code");
            assert_eq!(disk.read(&key("a")).is_some(), what != "a directory", "{what}");
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        };
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        miss("a pipe without a writer");
        for target in ["/dev/zero", "/dev/tty", "nothing"] {
            std::os::unix::fs::symlink(target, &path).unwrap();
            miss(target);
        }
        std::os::unix::fs::symlink(path.file_name().unwrap(), &path).unwrap();
        miss("a link to itself");
        std::fs::create_dir(&path).unwrap();
        miss("a directory");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        miss("a socket");
        // Sparse: it takes no room on the disk.
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        miss("a huge file");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_open_directory_is_not_used() {
        let dir = directory("open");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o770)).unwrap();
        assert!(DiskCache::at(dir.clone()).is_none());
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(DiskCache::at(dir.clone()).is_some());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
