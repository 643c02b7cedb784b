//! Gives the shared library a SONAME: cargo sets none, and C users link against the ABI number. With the feature
//! `cubins`, compiles CUDA kernels that become part of the library.

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
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsinkcache.so.{abi}");
    }
    #[cfg(feature = "cubins")]
    if let Err(text) = build_script::build() {
        eprintln!("feature cubins: {text}");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}
