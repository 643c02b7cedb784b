//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};

use crate::cache::KvTypes;

/// Tokens streamed without `--tokens`, if the text has as many.
pub const DEFAULT_TOKENS: u64 = 40_000;

/// Arguments that mean nothing to `--draw`.
const RUN_ARGUMENTS: [&str; 13] = [
    "model", "text", "skip", "tokens", "sink", "window", "chunk", "mode", "stride", "threads", "kv_dtype", "data",
    "json",
];

const BUNDLED_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/tiny-llama-bytes.gguf");
const BUNDLED_TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/stream.txt");
/// Bytes before the first chapter of the bundled text. They are far easier to predict than prose.
const BUNDLED_CONTENTS: u64 = 5472;

/// Stream a text through a Llama far past its trained length, and compare four KV caches on the same scored tokens.
///
///   sink       keeps the first tokens and a rolling window
///
///   window     keeps a rolling window of the same total size
///
///   dense      keeps everything; stops at 8 x the trained length
///
///   recompute  computes the last tokens again, in an empty cache of the same size, for every scored token:
///              the quality that sink should reach, at many times the cost
#[derive(Parser, Debug, Clone)]
#[command(name = "stream", version, verbatim_doc_comment)]
pub struct Args {
    /// GGUF file of a Llama with a byte vocabulary
    #[arg(long, value_name = "FILE", default_value = BUNDLED_MODEL, hide_default_value = true)]
    pub model: PathBuf,
    /// Text to stream, a token per byte [default: the bundled text]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Bytes to skip at the start of the text [default: 0; 5472, its table of contents, for the bundled text]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(0..=1 << 40))]
    skip: Option<u64>,
    /// Tokens to stream [default: 40000, or the whole text if it is shorter]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub tokens: Option<u64>,
    /// Sinks (first tokens that are never evicted) of mode sink
    #[arg(long, default_value_t = 4)]
    pub sink: u32,
    /// Rolling window of mode sink; window and recompute get sink + window
    #[arg(long, default_value_t = 252)]
    pub window: u32,
    /// Tokens in one forward pass; changes results by rounding only
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub chunk: u32,
    /// Caches to run: one, several separated by commas, or all [default: all; sink to compare storage types]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub mode: Vec<ModeChoice>,
    /// Score every STRIDE-th token [default: 40, or as many as it takes for at most 5000 scored tokens]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub stride: Option<u64>,
    /// Threads [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Types in which keys and values are stored: f32, f16, bf16, q8 or q4 for both, or two such as q8/q4. Several
    /// separated by commas: compares them in mode sink, token by token, with the first
    #[arg(long, value_name = "K[/V]", value_delimiter = ',', default_value = "f16")]
    pub kv_dtype: Vec<KvTypes>,
    /// File of the plot, an SVG [default: target/stream.svg, or stream.svg where there is no target]
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Also write the scores to FILE, as JSON, so that the plot can be drawn again
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Run nothing: draw the plot of a file that --data has written
    #[arg(long, value_name = "FILE", conflicts_with_all = RUN_ARGUMENTS)]
    pub draw: Option<PathBuf>,
    /// Print one JSON object per mode and line instead of the table
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// The text to stream.
    #[must_use]
    pub fn text(&self) -> &Path {
        self.text.as_deref().unwrap_or(Path::new(BUNDLED_TEXT))
    }

    /// Bytes to skip at its start.
    #[must_use]
    pub fn skip(&self) -> u64 {
        self.skip.unwrap_or(if self.text.is_none() { BUNDLED_CONTENTS } else { 0 })
    }
}

/// A cache to run, or all four.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the modes")]
pub enum ModeChoice {
    Sink,
    Window,
    Dense,
    Recompute,
    All,
}

/// A command line that has been read.
#[derive(Debug)]
pub enum Parsed {
    /// A run.
    Run(Box<Args>),
    /// The help or the version.
    Text(String),
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// An invalid argument; the message is one line that names it.
pub fn parse<A: Into<OsString> + Clone>(args: impl IntoIterator<Item = A>) -> Result<Parsed> {
    match Args::try_parse_from(args) {
        Ok(args) => Ok(Parsed::Run(Box::new(args))),
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Ok(Parsed::Text(e.to_string()))
        }
        Err(e) => Err(anyhow!("{}", one_line(&e.to_string()))),
    }
}

/// Clap's message without the usage that follows it.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let words: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}
