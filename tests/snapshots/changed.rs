//! Random changes of snapshots, with checksums put right.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sinkcache::{BackendKind, Cache, CacheConfig, Status};

use super::parts::{Parts, saved, saved_with_ranges};
use super::{TAG, infos, save, step};

/// A change of a snapshot, whose checksums are put right afterwards.
#[derive(Clone, Debug)]
enum Change {
    Byte { section: Index, at: Index, value: u8 },
    Counter { index: Index, value: u64 },
    Length { section: Index, longer: i16 },
    Remove(Index),
    Repeat(Index, Index),
    Swap(Index, Index),
    Head { section: Index, tag: u8, flags: u32 },
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    let number = prop_oneof![
        0..300_u64,
        Just(u64::MAX),
        any::<u64>(),
        (0..64_u32, -3..4_i64).prop_map(|(bit, n)| (1_u64 << bit).wrapping_add_signed(n)),
    ];
    prop_oneof![
        3 => (index(), index(), any::<u8>()).prop_map(|(section, at, value)| Change::Byte { section, at, value }),
        6 => (index(), number).prop_map(|(index, value)| Change::Counter { index, value }),
        1 => (index(), -900..900_i16).prop_map(|(section, longer)| Change::Length { section, longer }),
        1 => index().prop_map(Change::Remove),
        1 => (index(), index()).prop_map(|(a, b)| Change::Repeat(a, b)),
        1 => (index(), index()).prop_map(|(a, b)| Change::Swap(a, b)),
        1 => (index(), any::<u8>(), 0..3_u32).prop_map(|(section, tag, flags)| Change::Head { section, tag, flags }),
    ]
}

impl Parts {
    fn apply(&mut self, change: &Change) {
        let n = self.sections.len();
        match *change {
            _ if n == 0 => {}
            Change::Byte { section, at, value } => {
                let content = &mut self.sections[section.index(n)].content;
                if !content.is_empty() {
                    let at = at.index(content.len());
                    content[at] = value;
                }
            }
            Change::Counter { index, value } => {
                let numbers = self.sections.iter_mut().filter(|s| [*b"SEQN", *b"EDIT"].contains(&s.tag));
                let mut numbers: Vec<_> = numbers.flat_map(|s| s.content.chunks_exact_mut(8)).collect();
                if !numbers.is_empty() {
                    let at = index.index(numbers.len());
                    numbers[at].copy_from_slice(&value.to_le_bytes());
                }
            }
            Change::Length { section, longer } => {
                let content = &mut self.sections[section.index(n)].content;
                content.resize(content.len().saturating_add_signed(longer.into()), 0);
            }
            Change::Remove(at) => drop(self.sections.remove(at.index(n))),
            Change::Repeat(from, to) => self.sections.insert(to.index(n), self.sections[from.index(n)].clone()),
            Change::Swap(a, b) => self.sections.swap(a.index(n), b.index(n)),
            Change::Head { section, tag, flags } => {
                let section = &mut self.sections[section.index(n)];
                (section.tag[0], section.flags) = (tag, flags);
            }
        }
    }
}

/// What was loaded can be used: it is saved as it is, rewound as far as it says, and goes on.
fn use_loaded(cache: &mut Cache, config: &CacheConfig) {
    let bytes = save(cache, 1);
    cache.load_sequence(2, &TAG, &bytes).unwrap();
    assert!(save(cache, 2) == bytes && infos(cache, 1) == infos(cache, 2));
    for seq in [1, 2] {
        let most = infos(cache, seq).map(|i| i.rewindable).into_iter().min().unwrap().min(i32::MAX as u64);
        let more = cache.rewind(&[seq], &[most as i32 + 1]);
        assert!(most == i32::MAX as u64 || more.is_err(), "more than rewindable was rewound");
        cache.rewind(&[seq], &[most as i32]).unwrap();
        let info = infos(cache, seq)[0];
        if info.start_position.checked_add(info.len_max + 60).is_some() {
            step(cache, config, seq, 50, 5);
            step(cache, config, seq, 1, 6);
        }
    }
}

/// Runs `SKC_MENDED` snapshots (default 2,000) with one to three changes and right checksums: each is refused without
/// a trace, or leaves a sequence that works. `SKC_SEED` says which.
#[test]
fn changed_snapshots_with_right_checksums_do_no_harm() {
    let (config, cache, parts) = saved();
    change_snapshots(&config, cache, &parts);
}

/// The same of a sequence with pins and evicted ranges.
#[test]
fn changed_snapshots_with_ranges_do_no_harm() {
    let (config, cache, parts) = saved_with_ranges();
    change_snapshots(&config, cache, &parts);
}

fn change_snapshots(config: &CacheConfig, cache: Cache, parts: &Parts) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    let cases = number("SKC_MENDED").unwrap_or(if config.backend == BackendKind::Cpu { 2_000 } else { 50 });
    let seed = number("SKC_SEED").unwrap_or(1).to_le_bytes().repeat(8);
    let runner = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(runner, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let (cache, loaded) = (std::cell::RefCell::new(cache), std::cell::Cell::new(0));
    runner
        .run(&prop::collection::vec(change(), 1..4), |changes| {
            let mut parts = parts.clone();
            changes.iter().for_each(|change| parts.apply(change));
            let cache = &mut *cache.borrow_mut();
            let before = (infos(cache, 1), save(cache, 1));
            match cache.load_sequence(1, &TAG, &parts.bytes()) {
                Ok(()) => {
                    loaded.set(loaded.get() + 1);
                    use_loaded(cache, config);
                }
                Err(e) => {
                    let statuses = [Status::InvalidSnapshot, Status::NoRoom];
                    assert!(statuses.contains(&e.status()) && e.message().len() > 20, "{e}");
                    assert!((infos(cache, 1), save(cache, 1)) == before, "a refused snapshot changed something");
                }
            }
            Ok(())
        })
        .unwrap();
    println!("{cases} changed snapshots, {} of them loaded", loaded.get());
    assert!(20 * loaded.get() >= cases || cases < 500, "too few changes are harmless");
}
