//! Streams a text through a Llama far past its trained length and compares four KV caches on the same scored tokens.
//!
//! `cargo run --release --example stream -- --help` lists the options.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(sinkcache_stream::run(std::env::args_os(), &mut std::io::stdout(), &mut std::io::stderr()))
}
