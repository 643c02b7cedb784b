//! Gives the shared library a SONAME: cargo sets none, and C users link against the ABI number. Makes the file of that
//! name. With the feature `cubins`, compiles CUDA kernels that become part of the library.

#[cfg(feature = "cubins")]
#[path = "src/backend/cuda/jit/build_script.rs"]
mod build_script;
// The library's own: how NVRTC is found and called, what it is given, and which of it is wanted.
#[cfg(feature = "cubins")]
#[allow(dead_code, reason = "the build script needs a few of them")]
#[path = "src/error.rs"]
mod error;
#[cfg(feature = "cubins")]
#[path = "src/backend/cuda/jit/nvrtc.rs"]
mod nvrtc;
#[cfg(feature = "cubins")]
#[path = "src/backend/cuda/jit/program.rs"]
mod program;
#[cfg(feature = "cubins")]
#[path = "src/text.rs"]
mod text;
#[cfg(feature = "cubins")]
#[path = "src/backend/cuda/jit/variant_list.rs"]
mod variant_list;

fn main() -> std::process::ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if os == "linux" || os == "android" || os.ends_with("bsd") {
        let abi = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
        let soname = format!("libsinkcache.so.{abi}");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,{soname}");
        link_soname(&soname);
    }
    #[cfg(feature = "cubins")]
    if let Err(text) = build_script::build() {
        eprintln!("feature cubins: {text}");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}

/// Makes the link `libsinkcache.so.0` in the profile's folder, where cargo will put the library: a program that was
/// linked with `-lsinkcache` looks for it. It is for convenience: where it cannot be made, the build goes on.
fn link_soname(soname: &str) {
    // The profile's folder has build/PACKAGE/out.
    let out = std::env::var_os("OUT_DIR").map(std::path::PathBuf::from).unwrap_or_default();
    let Some(profile) = out.ancestors().nth(3).filter(|_| out.ends_with("out")) else { return };
    #[cfg(unix)]
    let _ = std::os::unix::fs::symlink("libsinkcache.so", profile.join(soname));
    #[cfg(not(unix))]
    let _ = (profile, soname);
}
