//! Random histories of ragged batches, edits and poisoned tokens against the definition.

#[path = "../common/mod.rs"]
mod common;

mod edits;
mod run;

use std::collections::BTreeSet;

use common::history::{Event, History, Other, histories, histories_with_snapshots};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use run::{Run, Summary};
use sinkcache::BackendKind;

fn replay(history: &History) -> Result<Summary, TestCaseError> {
    let mut run = Run::new(history);
    for event in &history.events {
        run.event(event)?;
    }
    run.finish()
}

/// The same with sequences that are saved and loaded. Those that come back to a cache of the same settings, by way of
/// one that keeps as much, go on with the same bits as a fork.
fn replay_with_snapshots(history: &History) -> Result<Summary, TestCaseError> {
    let summary = replay(history)?;
    let c = &history.config;
    let events: Vec<_> = history.events.iter().filter(|e| !matches!(e, Event::Move(_))).cloned().collect();
    let keeps = |o: &Other| u32::from(o.max_rewind) >= c.max_rewind && u32::from(o.max_chunk) >= c.max_chunk;
    if events.iter().any(|e| matches!(e, Event::Load { .. }))
        && events.iter().all(|e| !matches!(e, Event::Load { other, .. } if !keeps(other)))
    {
        let mut runs = [Run::new(history), Run::new(history)];
        runs[1].forks = true;
        for event in &events {
            for run in &mut runs {
                run.event(event)?;
            }
        }
        let bits = |run: &Run| run.got.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&runs[0]) == bits(&runs[1]), "a loaded sequence does not go on as a fork");
    }
    Ok(summary)
}

/// The histories are run in two halves, each with a seed of its own: they are the same for any number of cores.
const HALVES: u8 = 2;

/// The value of an environment variable that is a number.
fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok())
}

/// Runs so many histories, always the same ones unless `SKC_SEED` is set. `SKC_SHRINK`: tries to find a smaller history
/// that fails too (default 2,000).
fn run_all<S: Strategy<Value = History>>(
    cases: u32,
    histories: impl Fn() -> S + Sync,
    replay: impl Fn(&History) -> Result<Summary, TestCaseError> + Sync,
) -> Vec<Summary> {
    let half = |index: u8| {
        let mut seed = number("SKC_SEED").unwrap_or(1).to_le_bytes().repeat(8);
        seed[31] ^= index;
        let cases = (cases + u32::from(index)) / u32::from(HALVES);
        let max_shrink_iters = number("SKC_SHRINK").unwrap_or(2_000);
        let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let summaries = std::cell::RefCell::new(Vec::new());
        TestRunner::new_with_rng(config, rng)
            .run(&histories(), |history| {
                summaries.borrow_mut().push(replay(&history)?);
                Ok(())
            })
            .map(|()| summaries.into_inner())
            .map_err(|e| e.to_string())
    };
    // One thread at a time uses the device.
    let outcomes: Vec<_> = match common::device::backend() {
        BackendKind::Cpu => std::thread::scope(|scope| {
            let half = &half;
            let halves: Vec<_> = (0..HALVES).map(|index| scope.spawn(move || half(index))).collect();
            halves.into_iter().map(|half| half.join().unwrap()).collect()
        }),
        BackendKind::Cuda => (0..HALVES).map(half).collect(),
    };
    outcomes.into_iter().flat_map(|half| half.unwrap_or_else(|e| panic!("{e}"))).collect()
}

/// Runs `SKC_HISTORIES` histories (default 10,000).
#[test]
fn random_histories_match_the_definition() {
    report(&run_all(number("SKC_HISTORIES").unwrap_or(10_000), histories, replay), &[]);
}

/// Runs `SKC_SNAPSHOT_HISTORIES` histories (default 300).
#[test]
fn random_histories_with_snapshots_match_the_definition() {
    let cases = number("SKC_SNAPSHOT_HISTORIES").unwrap_or(300);
    report(&run_all(cases, histories_with_snapshots, replay_with_snapshots), &["load", "move"]);
}

/// Prints the distribution of events, and checks that no kind is rare.
fn report(summaries: &[Summary], more: &[&str]) {
    let n = summaries.len();
    let share = |part: usize| 100.0 * part as f64 / n as f64;
    let mut ratios: Vec<_> = summaries.iter().map(|s| s.length as f64 / s.capacity as f64).collect();
    ratios.sort_by(f64::total_cmp);
    let wrapped = summaries.iter().filter(|s| s.wrapped).count();
    println!(
        "{n} histories; length / capacity: median {:.1}, 10 % {:.1}, 90 % {:.1}",
        ratios[n / 2],
        ratios[n / 10],
        ratios[n * 9 / 10]
    );
    println!("wrapped: {:.1} %", share(wrapped));
    assert!(ratios[n / 2] >= 3.0 && 2 * wrapped >= n);
    let ranges = |s: &&Summary| s.counts.contains_key("pin") && s.counts.contains_key("evicted range");
    let edited = summaries.iter().filter(ranges).count();
    let wrapped = summaries.iter().filter(ranges).filter(|s| s.wrapped_after_edit).count();
    println!("with pins and evicted ranges: {:.1} %, that wrapped after one: {:.1} %", share(edited), share(wrapped));
    let rejected: BTreeSet<&str> = summaries.iter().flat_map(|s| s.counts.keys()).map(String::as_str).collect();
    let rejected: Vec<_> = rejected.into_iter().filter(|kind| kind.contains(", ")).collect();
    let kinds = [
        "append + attend",
        "step",
        "evict",
        "rejected evict",
        "rewind",
        "rejected rewind",
        "pin",
        "rejected pin",
        "evicted range",
        "rejected range",
        "range without effect",
        "reset",
        "fork",
        "poisoned draft",
        "poisoned window",
        "poisoned range",
        "abort",
    ];
    let mut rare: Vec<&str> = vec![];
    for kind in kinds.iter().chain(more).chain(&rejected) {
        let of_kind = || summaries.iter().filter_map(|s| s.counts.get(*kind));
        println!("with {kind}: {:.1} %, {} in all", share(of_kind().count()), of_kind().sum::<usize>());
        rare.extend((5 * of_kind().count() < n && !rejected.contains(kind)).then_some(kind));
    }
    // Chance has much to say in few, and those with snapshots have more kinds of events.
    if n >= 200 || more.is_empty() {
        assert!(rare.is_empty(), "too few histories with {rare:?}");
        let percent = if n >= 1000 && more.is_empty() { 50 } else { 40 };
        assert!(100 * edited >= percent * n, "too few histories with pins and evicted ranges");
        assert!(100 * wrapped >= 95 * edited, "too few histories that wrap after an edit");
    }
}
