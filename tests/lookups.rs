//! How CUDA's driver and compiler are found, and that what was not found is searched again. In processes of their own,
//! since both stay loaded. On the stand-in only, which must be on the loader's path.
#![cfg(unix)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use sinkcache::{BackendKind, Cache, CacheConfig, Status};

/// Names the folder that a process of [`in_process`] may write.
const FOLDER: &str = "SKC_TEST_FOLDER";
/// Names the stand-in's folder.
const STAND_IN: &str = "SKC_TEST_STAND_IN";

/// The stand-in, which is in one folder of the loader's path.
fn stand_in() -> Option<PathBuf> {
    let path = std::env::var_os("LD_LIBRARY_PATH")?;
    std::env::split_paths(&path).find(|dir| dir.join("libcuda.so.1").exists() && dir.join("libnvrtc.so.13").exists())
}

/// Runs an ignored test of this file in a process whose loader searches one folder, with a driver there or none.
fn in_process(name: &str, driver: bool) {
    let Some(shim) = stand_in() else {
        println!("skipped: not on the stand-in");
        return;
    };
    let shim = std::fs::canonicalize(shim).unwrap();
    let folder = std::env::temp_dir().join(format!("sinkcache-{}-{name}", std::process::id()));
    std::fs::create_dir_all(folder.join("loader")).unwrap();
    if driver {
        symlink(shim.join("libcuda.so.1"), folder.join("loader/libcuda.so.1")).unwrap();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    command.env("LD_LIBRARY_PATH", folder.join("loader")).env("SINKCACHE_NVRTC_DIR", folder.join("nvrtc"));
    for unset in ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(unset);
    }
    let output = command.env(FOLDER, &folder).env(STAND_IN, &shim).output().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

fn folder(variable: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(variable).unwrap())
}

fn config() -> CacheConfig {
    CacheConfig { backend: BackendKind::Cuda, n_q_heads: 4, n_kv_heads: 2, head_dim: 64, ..CacheConfig::default() }
}

/// Creating a cache fails with these words.
fn fails(words: &str) {
    let error = Cache::new(&config()).unwrap_err();
    assert_eq!(error.status(), Status::BackendUnavailable);
    assert!(error.message().contains(words), "not '{words}': {error}");
}

/// Puts `target` (or a file that is no library) at `path`.
fn place(path: &Path, target: Option<&Path>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = std::fs::remove_file(path);
    match target {
        Some(target) => symlink(target, path).unwrap(),
        None => std::fs::write(path, "no library").unwrap(),
    }
}

#[test]
fn a_compiler_that_comes_later_is_found() {
    in_process("compiler", true);
}

#[test]
#[ignore = "a part of another test"]
fn compiler() {
    if cfg!(feature = "cubins") {
        return;
    }
    let path = folder(FOLDER).join("nvrtc/libnvrtc.so.13");
    fails("libnvrtc.so was found neither by the loader nor in ");
    place(&path, None);
    fails(&format!("{} was found, but does not load: {0}: file too short", path.display()));
    place(&path, Some(&folder(STAND_IN).join("libnvrtc.so.13")));
    Cache::new(&config()).unwrap();
}

#[test]
fn a_driver_that_comes_later_is_found() {
    in_process("driver", false);
}

#[test]
#[ignore = "a part of another test"]
fn driver() {
    let path = folder(FOLDER).join("loader/libcuda.so.1");
    fails("the driver library libcuda.so.1 was not found");
    place(&path, None);
    fails("the driver library libcuda.so.1 was found, but does not load: ");
    place(&path, Some(&folder(STAND_IN).join("libcuda.so.1")));
    // The driver works: what is missing now is the compiler.
    if !cfg!(feature = "cubins") {
        fails("no CUDA compiler");
    }
}

#[test]
fn a_library_that_is_not_the_driver_is_named() {
    in_process("other_driver", false);
}

#[test]
#[ignore = "a part of another test"]
fn other_driver() {
    place(&folder(FOLDER).join("loader/libcuda.so.1"), Some(&folder(STAND_IN).join("libnvrtc.so.13")));
    fails("the driver library libcuda.so.1 was found, but ");
    fails("cuInit");
}
