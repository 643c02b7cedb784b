//! Streams a text through a Llama far past its trained length and compares four KV caches on the same scored tokens.
//!
//! `cargo run --release --example stream -- --help` lists the options.

use std::process::ExitCode;

/// How many threads candle thinks it has. Unless this is set it reads /proc/cpuinfo at every matrix product, which
/// takes as long as all else when tokens come one by one. The pool it runs on has `--threads`, whatever this says.
const CANDLE_THREADS: &str = "RAYON_NUM_THREADS";

fn main() -> ExitCode {
    if std::env::var_os(CANDLE_THREADS).is_none()
        && let Ok(n) = std::thread::available_parallelism()
    {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var(CANDLE_THREADS, n.to_string()) };
    }
    ExitCode::from(sinkcache_stream::run(std::env::args_os(), &mut std::io::stdout(), &mut std::io::stderr()))
}
