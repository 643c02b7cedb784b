//! The parts of the `stream` example: a host that runs a Llama with its keys and values in a sinkcache.
//!
//! [`gguf`] opens a model file, [`model`] multiplies its matrices with candle, [`cache`] calls the C ABI for attention,
//! [`modes`] runs a [`text`] through one of four caches, [`stats`], [`report`] and [`plot`] say what came of it.

pub mod cache;
pub mod cli;
pub mod gguf;
pub mod model;
pub mod modes;
pub mod ops;
pub mod plot;
pub mod report;
pub mod rss;
pub mod stats;
pub mod text;

mod job;

use std::ffi::OsString;
use std::io::Write;

/// Exit code of a run that did what was asked.
pub const EXIT_OK: u8 = 0;
/// Exit code of a run that could not: one line on stderr says why.
pub const EXIT_ERROR: u8 = 2;

/// The whole program: `args` with the program's name first; results on `stdout`, one line per error on `stderr`.
/// Returns the exit code.
pub fn run<A: Into<OsString> + Clone>(
    args: impl IntoIterator<Item = A>,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let outcome = match cli::parse(args) {
        Ok(cli::Parsed::Run(args)) => job::run(&args, stdout),
        Ok(cli::Parsed::Text(text)) => write!(stdout, "{text}").map_err(Into::into),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => EXIT_OK,
        Err(error) => {
            // Only the first line: candle appends a backtrace where one is enabled.
            let text = format!("{error:#}");
            let _ = writeln!(stderr, "error: {}", text.lines().next().unwrap_or("unknown"));
            EXIT_ERROR
        }
    }
}
