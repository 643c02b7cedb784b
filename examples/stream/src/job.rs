//! A command line turned into runs and a report.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::cli::{Args, DEFAULT_TOKENS, ModeChoice};
use crate::model::Llama;
use crate::modes::{self, Mode, Setting};
use crate::plot;
use crate::report::Report;
use crate::text::{Scored, Stream};

/// Scored tokens are at least this far apart, and there are at most this many, unless `--stride` says otherwise.
const LEAST_STRIDE: u64 = 40;
const MOST_SCORED: u64 = 5000;

/// Does what a command line asks for.
///
/// # Errors
/// Whatever is wrong with it, found before the first token is run where it can be.
pub fn run(args: &Args, stdout: &mut dyn Write) -> Result<()> {
    let llama = Llama::open(&args.model)?;
    let stream = Stream::open(&args.text, args.tokens, DEFAULT_TOKENS)?;
    let setting = setting(args, stream.len());
    let modes = modes_of(&args.mode);
    check(&setting, &modes, &llama, &stream)?;
    let plot = plot_path(args.plot.as_deref())?;
    let pool = pool(setting.threads)?;

    let trained_length = llama.config().trained_length;
    let mut runs = Vec::new();
    for mode in modes {
        runs.push(pool.install(|| modes::run(mode, &setting, &llama, &stream))?);
        if args.json {
            let report = Report { setting: &setting, tokens: stream.len(), trained_length, runs: &runs };
            writeln!(stdout, "{}", report.json(&runs[runs.len() - 1])?)?;
        }
    }
    plot::draw(&plot, &runs, trained_length, stream.len())?;
    if !args.json {
        let report = Report { setting: &setting, tokens: stream.len(), trained_length, runs: &runs };
        writeln!(stdout, "{report}plot: {}", plot.display())?;
    }
    Ok(())
}

/// The modes chosen, each once, in the order in which they run.
fn modes_of(choices: &[ModeChoice]) -> Vec<Mode> {
    let chosen = |mode: &Mode| {
        choices.iter().any(|choice| match choice {
            ModeChoice::Sink => *mode == Mode::Sink,
            ModeChoice::Window => *mode == Mode::Window,
            ModeChoice::Dense => *mode == Mode::Dense,
            ModeChoice::Recompute => *mode == Mode::Recompute,
            ModeChoice::All => true,
        })
    };
    Mode::ALL.into_iter().filter(chosen).collect()
}

fn setting(args: &Args, tokens: u64) -> Setting {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u32));
    let scored = Scored {
        // By then the window has been full for as long as it is, whatever the mode.
        start: 2 * (u64::from(args.sink) + u64::from(args.window)),
        stride: args.stride.unwrap_or_else(|| LEAST_STRIDE.max(tokens.div_ceil(MOST_SCORED))),
        end: tokens,
    };
    let (sink, window, chunk, kv_dtype) = (args.sink, args.window, args.chunk, args.kv_dtype);
    Setting { sink, window, chunk, kv_dtype, threads, scored }
}

/// Refuses what could not run to its end.
fn check(setting: &Setting, modes: &[Mode], llama: &Llama, stream: &Stream) -> Result<()> {
    let Scored { start, .. } = setting.scored;
    for &mode in modes {
        setting.cache_shape(mode, llama).bytes()?;
        let reach = setting.reach(mode, llama).min(stream.len());
        let name = mode.name();
        ensure!(start < reach, "{name}: {reach} tokens leave nothing to score: scoring starts at token {start}");
    }
    let enough = setting.context() > 1 || !modes.contains(&Mode::Recompute);
    ensure!(enough, "recompute: --sink and --window must make 2 tokens or more");
    Ok(())
}

/// Where the plot goes, found to be writable.
fn plot_path(asked: Option<&Path>) -> Result<PathBuf> {
    let folder = Path::new("target");
    let path = match asked {
        Some(path) => path.to_owned(),
        None if folder.is_dir() => folder.join("stream.svg"),
        None => PathBuf::from("stream.svg"),
    };
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.with_context(|| format!("cannot write plot '{}'", path.display()))?;
    Ok(path)
}

/// The threads of candle and of sinkcache: both run on the pool they are called from.
fn pool(threads: u32) -> Result<ThreadPool> {
    let builder = ThreadPoolBuilder::new().num_threads(threads as usize);
    builder.build().with_context(|| format!("cannot start {threads} threads"))
}
