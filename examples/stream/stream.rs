//! Streams a text through a Llama far past its trained length and compares four KV caches on the same scored tokens.
//!
//! `cargo run --release --example stream -- --help` lists the options.

use std::process::ExitCode;

/// The number of threads that candle assumes. If it is not set, candle reads /proc/cpuinfo at every matrix product,
/// which doubles the time per token when tokens come one by one. The pool that candle runs on has `--threads` in any
/// case.
const CANDLE_THREADS: &str = "RAYON_NUM_THREADS";

fn main() -> ExitCode {
    if std::env::var_os(CANDLE_THREADS).is_none()
        && let Ok(n) = std::thread::available_parallelism()
    {
        // SAFETY: no other thread runs yet, so none can read the environment meanwhile.
        unsafe { std::env::set_var(CANDLE_THREADS, n.to_string()) };
    }
    ExitCode::from(sinkcache_stream::run(std::env::args_os(), &mut std::io::stdout(), &mut std::io::stderr()))
}
