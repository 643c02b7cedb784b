//! The parts of the `stream` example: a host that runs a Llama with its keys and values in a sinkcache.
//!
//! [`header`] checks a model file, [`gguf`] opens it, [`model`] multiplies its matrices with candle, [`cache`] calls
//! the C ABI for attention, [`pass`] streams a [`text`] through the cache of one of four [`modes`] and collects
//! [`scores`]. [`report`] compares the modes, [`table`] and [`record`] print the comparison, [`plot`] draws the
//! [`data`]. [`storage_types`] compares types of K and V instead of modes.

pub mod cache;
pub mod cli;
pub mod curve;
pub mod data;
pub mod gguf;
pub mod header;
pub mod model;
pub mod modes;
pub mod ops;
pub mod pace;
pub mod panel;
pub mod pass;
pub mod plot;
pub mod record;
pub mod report;
pub mod rss;
pub mod scores;
pub mod stats;
pub mod storage_types;
pub mod style;
pub mod table;
pub mod text;
pub mod ticks;

mod job;

use std::ffi::OsString;
use std::io::Write;

/// Exit code of success.
pub const EXIT_OK: u8 = 0;
/// Exit code of failure: one line on stderr gives the reason.
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
            let _ = writeln!(stderr, "error: {}", one_line(&format!("{error:#}")));
            EXIT_ERROR
        }
    }
}

/// The first line of an error: candle appends a backtrace where one is enabled. Names in it come from files and command
/// lines, so control characters, which could act on a terminal, are escaped.
fn one_line(error: &str) -> String {
    let mut line = String::new();
    for character in error.lines().next().unwrap_or("unknown").chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}
