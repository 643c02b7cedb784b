//! From a command line to runs, a table and a plot.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::cli::{Args, DEFAULT_TOKENS, ModeChoice};
use crate::data::RunData;
use crate::model::Llama;
use crate::modes::{Mode, Setting, dense_reach};
use crate::pass::run_mode;
use crate::plot;
use crate::report::Report;
use crate::scores::ScoredPositions;
use crate::storage_types::{TypeRun, TypesReport};
use crate::text::Stream;

/// Without `--stride`, scored tokens are at least this far apart ...
const MIN_STRIDE: u64 = 40;
/// ... and there are at most this many.
const MAX_SCORED: u64 = 5000;
/// The number of scored tokens at the beginning of the stream, up to where dense stops. More would make recompute slow.
const BEGINNING_SCORED: u64 = 1024;

/// Executes a command line.
///
/// # Errors
/// Invalid arguments, found before the first token runs, and failures during the runs.
pub fn run(args: &Args, stdout: &mut dyn Write) -> Result<()> {
    if let Some(data) = &args.draw {
        let data = RunData::open(data)?;
        let plot = plot_path(args.plot.as_deref())?;
        plot::draw(&plot, &data)?;
        return Ok(writeln!(stdout, "plot: {}", plot.display())?);
    }
    let llama = Llama::open(&args.model)?;
    let stream = Stream::open(args.text(), args.skip(), args.tokens, DEFAULT_TOKENS)?;
    let trained_length = llama.config().trained_length;
    if args.kv_dtype.len() > 1 {
        return compare_types(args, &llama, &stream, stdout);
    }
    let setting = setting(args, stream.len(), trained_length);
    let modes = modes_of(&args.mode);
    check(&setting, &modes, &llama, &stream)?;
    let plot = plot_path(args.plot.as_deref())?;
    if let Some(data) = &args.data {
        check_writable(data, "data")?;
    }
    let pool = pool(setting.threads)?;

    let report = Report { setting: &setting, tokens: stream.len(), skipped: args.skip(), trained_length, runs: &[] };
    let mut runs = Vec::new();
    for mode in modes {
        runs.push(pool.install(|| run_mode(mode, &setting, &llama, &stream))?);
        if args.json {
            writeln!(stdout, "{}", Report { runs: &runs, ..report }.json(&runs[runs.len() - 1])?)?;
        }
    }
    let data = RunData::new(stream.len(), trained_length, &runs);
    plot::draw(&plot, &data)?;
    if let Some(path) = &args.data {
        data.write(path)?;
    }
    if !args.json {
        writeln!(stdout, "{}\nplot: {}", Report { runs: &runs, ..report }, plot.display())?;
    }
    Ok(())
}

/// Runs mode sink once for each storage type, on the same scored tokens.
fn compare_types(args: &Args, llama: &Llama, stream: &Stream, stdout: &mut dyn Write) -> Result<()> {
    let only_sink = args.mode.iter().all(|&mode| mode == ModeChoice::Sink);
    ensure!(only_sink, "--kv-dtype names several types: only mode sink compares them");
    let no_files = args.plot.is_none() && args.data.is_none();
    ensure!(no_files, "--kv-dtype names several types: no --plot or --data is made of them");
    let base = setting(args, stream.len(), llama.config().trained_length);
    // Nothing at the beginning: only whole streams are compared.
    let beginning = ScoredPositions { end: 0, ..base.beginning };
    let settings: Vec<_> = args.kv_dtype.iter().map(|&kv_dtype| Setting { kv_dtype, beginning, ..base }).collect();
    for setting in &settings {
        check(setting, &[Mode::Sink], llama, stream)?;
    }
    let pool = pool(base.threads)?;
    let mut runs = Vec::new();
    for setting in &settings {
        let run = pool.install(|| run_mode(Mode::Sink, setting, llama, stream))?;
        runs.push(TypeRun { types: setting.kv_dtype, run });
        if args.json {
            writeln!(stdout, "{}", TypesReport { setting: &base, runs: &runs }.last_as_json()?)?;
        }
    }
    if !args.json {
        writeln!(stdout, "{}", TypesReport { setting: &base, runs: &runs })?;
    }
    Ok(())
}

/// The chosen modes without duplicates, in the order in which they run.
fn modes_of(choices: &[ModeChoice]) -> Vec<Mode> {
    let choices = if choices.is_empty() { &[ModeChoice::All] } else { choices };
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

fn setting(args: &Args, tokens: u64, trained_length: usize) -> Setting {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u32));
    let scored = ScoredPositions {
        // Here the cache has been full for as many tokens as it holds, in every mode.
        start: 2 * (u64::from(args.sink) + u64::from(args.window)),
        stride: args.stride.unwrap_or_else(|| MIN_STRIDE.max(tokens.div_ceil(MAX_SCORED))),
        end: tokens,
    };
    let reach = dense_reach(trained_length);
    let beginning = ScoredPositions { start: 0, stride: reach.div_ceil(BEGINNING_SCORED), end: reach.min(tokens) };
    let (sink, window, chunk, kv_dtype) = (args.sink, args.window, args.chunk, args.kv_dtype[0]);
    Setting { sink, window, chunk, kv_dtype, threads, scored, beginning }
}

/// Rejects what could not run to its end.
fn check(setting: &Setting, modes: &[Mode], llama: &Llama, stream: &Stream) -> Result<()> {
    let start = setting.scored.start;
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

/// The file of the plot. It is opened before the runs, because a wrong path must not cost the results of hours.
fn plot_path(asked: Option<&Path>) -> Result<PathBuf> {
    let folder = Path::new("target");
    let path = match asked {
        Some(path) => path.to_owned(),
        None if folder.is_dir() => folder.join("stream.svg"),
        None => PathBuf::from("stream.svg"),
    };
    check_writable(&path, "plot")?;
    Ok(path)
}

/// Fails if a file cannot be written, and leaves none behind that was not there: the run may still be rejected.
fn check_writable(path: &Path, name: &str) -> Result<()> {
    let is_new = !path.exists();
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write {name} '{}'", path.display()))?;
    if is_new {
        // Whoever writes the file creates it again.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// The threads of candle and of sinkcache: both use the pool that they are called from.
fn pool(threads: u32) -> Result<ThreadPool> {
    let builder = ThreadPoolBuilder::new().num_threads(threads as usize);
    builder.build().with_context(|| format!("cannot start {threads} threads"))
}
