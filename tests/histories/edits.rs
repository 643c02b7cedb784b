//! The events of a history: the oracle's half and the cache's.

use proptest::test_runner::TestCaseError;
use sinkcache::{BackendKind, Cache, CacheConfig, LayerConfig, Status};

use crate::common;
use crate::common::history::{Anchor, Event, Limit, N_SEQS, Other, TokenRange};
use crate::common::oracle::{Oracle, RangeEdit, Rejected, runs};
use crate::run::Run;

/// An edit: the oracle's half and the cache's.
struct EditCalls {
    check: fn(&Oracle, usize) -> Result<(), Rejected>,
    apply: fn(&mut Oracle, usize),
    call: fn(&mut Cache, &[i32], &[i32]) -> sinkcache::Result<()>,
}

/// What an edit counts as.
#[derive(Clone, Copy)]
struct Names {
    accepted: &'static str,
    rejected: &'static str,
}

impl Names {
    const fn new(accepted: &'static str, rejected: &'static str) -> Self {
        Self { accepted, rejected }
    }
}

const EVICT: Names = Names::new("evict", "rejected evict");
const REWIND: Names = Names::new("rewind", "rejected rewind");
const PIN: Names = Names::new("pin", "rejected pin");
const EVICT_RANGE: Names = Names::new("evicted range", "rejected range");
const ABORT: Names = Names::new("abort", "rejected abort");
// They are never rejected.
const DRAFT: Names = Names::new("poisoned draft", "rejected rewind");
const WINDOW: Names = Names::new("poisoned window", "rejected evict");

fn fail<T>(text: String) -> Result<T, TestCaseError> {
    Err(TestCaseError::fail(text))
}

/// A layer with room for more pinned tokens and segments; one that ignores pins still does.
fn with_spare(layer: &LayerConfig, spare: u32) -> LayerConfig {
    let max_pinned = if layer.max_pinned > 0 { layer.max_pinned + spare } else { 0 };
    LayerConfig { max_pinned, max_segments: layer.max_segments + spare, ..layer.clone() }
}

impl Run {
    /// An edit of one sequence: the cache must accept it if the oracles of all layers do. Returns whether it did.
    fn edit(&mut self, what: Names, seq: usize, n: usize, edit: &EditCalls) -> Result<bool, TestCaseError> {
        let rejections = self.oracles.iter().filter_map(|l| (edit.check)(&l[seq], n).err()).collect();
        let outcome = (edit.call)(&mut self.cache, &[seq as i32], &[n as i32]);
        if !self.expect(what, &[(seq, format!("{n}"))], rejections, outcome)? {
            return Ok(false);
        }
        for (oracles, plains) in self.oracles.iter_mut().zip(&mut self.plains) {
            (edit.apply)(&mut oracles[seq], n);
            plains[seq].follow(&oracles[seq]);
        }
        if n > 0 {
            self.attendable[seq] = Some(0);
            self.note(what.accepted);
        }
        Ok(true)
    }

    /// Compares the outcome of an edit with the oracles' rejections. Returns whether it was accepted; a rejected edit
    /// must have changed nothing, which the comparison of `seq_info` after each event shows.
    fn expect(
        &mut self,
        what: Names,
        entries: &[(usize, String)],
        rejections: Vec<Rejected>,
        outcome: sinkcache::Result<()>,
    ) -> Result<bool, TestCaseError> {
        let text = format!("{} {entries:?}", what.accepted);
        match outcome {
            Ok(()) if rejections.is_empty() => Ok(true),
            Ok(()) => fail(format!("{text} was not rejected: {rejections:?}")),
            Err(e) if rejections.is_empty() => fail(format!("{text} was rejected: {e}")),
            // Which layer comes first is not defined.
            Err(e) if !rejections.iter().any(|r| r.status() == e.status()) => {
                fail(format!("{text} was rejected: {:?}, {e}; the oracle: {rejections:?}", e.status()))
            }
            Err(e) => {
                self.note(what.rejected);
                self.note(&format!("{}, {:?}", what.rejected, e.status()));
                Ok(false)
            }
        }
    }

    /// The first token and the number of tokens of a range, by what the oracle of its layer has.
    fn tokens(&self, range: TokenRange) -> (u64, u8) {
        let seq = usize::from(range.seq);
        let oracle = &self.oracles[usize::from(range.layer) % self.oracles.len()][seq];
        let (len, n_sink) = (oracle.len() as i64, i64::from(oracle.cfg.layer.n_sink));
        let beside = |runs: Vec<(usize, usize)>, which: u8, offset: i8| match runs.len() {
            0 => len - i64::from(range.n),
            n => {
                let (first, end) = runs[usize::from(which / 2) % n];
                i64::from(offset) + if which.is_multiple_of(2) { first as i64 } else { end as i64 }
            }
        };
        let first = match range.from {
            Anchor::End(before) => len - i64::from(before) - i64::from(range.n),
            Anchor::Window(offset) => oracle.window().first().map_or(len, |&t| t as i64) + i64::from(offset),
            Anchor::Pin(which, offset) => beside(runs(oracle.pins.iter().copied()), which, offset),
            Anchor::Hole(which, offset) => beside(runs(oracle.holes.iter().copied()), which, offset),
            Anchor::Sinks(offset) => n_sink + i64::from(offset),
            Anchor::Any(part) => len * i64::from(part) / 256,
            Anchor::Huge(n) => return (u64::MAX - u64::from(n), range.n),
        };
        if range.cut {
            let sinks = self.config.layers.iter().map(|l| l.n_sink).max().unwrap();
            let first = first.max(sinks.into()).min(len);
            return (first as u64, (len - first).min(range.n.into()) as u8);
        }
        (first.max(0) as u64, range.n)
    }

    /// Why a cache must reject a range: as its layers say. A layer with `max_pinned` 0 ignores pins.
    fn range_rejections(&self, edit: RangeEdit, seq: usize, first: u64, n: u64) -> Vec<Rejected> {
        let ignores = |o: &Oracle| edit == RangeEdit::Pin && o.cfg.layer.max_pinned == 0;
        let layers = || self.oracles.iter().map(|l| &l[seq]);
        if layers().all(ignores) {
            return vec![Rejected::NoRoom];
        }
        let beyond = first.checked_add(n).is_none_or(|end| end > self.oracles[0][seq].len() as u64);
        let of_layers = layers().filter(|o| !ignores(o)).filter_map(|o| o.check_range(edit, first, n).err());
        if beyond { vec![Rejected::OutOfRange] } else { of_layers.collect() }
    }

    /// Pins or evicts ranges of different sequences in one batch, beside padding.
    fn edit_ranges(&mut self, edit: RangeEdit, entries: &[(usize, u64, u8)]) -> Result<bool, TestCaseError> {
        let mut rejections = vec![];
        for &(seq, first, n) in entries.iter().filter(|e| e.2 > 0) {
            rejections.extend(self.range_rejections(edit, seq, first, n.into()));
        }
        // Nothing of padding is checked.
        let padding = [(-1, u64::MAX, 7), (entries[0].0 as i32, u64::MAX, 0)];
        let batch = entries.iter().map(|&(seq, first, n)| (seq as i32, first, i32::from(n)));
        let batch: Vec<_> = padding.into_iter().chain(batch).collect();
        let (ids, first, counts): (Vec<_>, Vec<_>, Vec<_>) = (
            batch.iter().map(|e| e.0).collect(),
            batch.iter().map(|e| e.1).collect(),
            batch.iter().map(|e| e.2).collect(),
        );
        let (what, outcome) = match edit {
            RangeEdit::Pin => (PIN, self.cache.pin(&ids, &first, &counts)),
            RangeEdit::Evict => (EVICT_RANGE, self.cache.evict_range(&ids, &first, &counts)),
        };
        let named: Vec<_> = entries.iter().map(|&(seq, first, n)| (seq, format!("{first} + {n}"))).collect();
        let accepted = self.expect(what, &named, rejections, outcome)?;
        for &(seq, first, n) in entries.iter().filter(|e| accepted && e.2 > 0) {
            let mut changed = false;
            for oracle in self.oracles.iter_mut().map(|l| &mut l[seq]) {
                if edit == RangeEdit::Evict || oracle.cfg.layer.max_pinned > 0 {
                    changed |= oracle.edit_range(edit, first, n.into()).unwrap();
                }
            }
            if changed {
                self.note(what.accepted);
                self.attendable[seq] = Some(0);
                let len = self.oracles[0][seq].len();
                self.edited_at[seq].get_or_insert(len);
            } else {
                self.note("range without effect");
            }
        }
        for &(seq, ..) in entries {
            self.check_attendable(seq);
        }
        Ok(accepted)
    }

    /// Appends poisoned tokens between others, and evicts them, if that can be done.
    fn poison_range(&mut self, seq: usize, n: [usize; 3], pinned: bool) -> Result<(), TestCaseError> {
        let trial = |o: &Oracle| -> Result<bool, Rejected> {
            let mut o = o.without_rows();
            let first = o.len() + n[0];
            (0..n.iter().sum()).for_each(|_| o.push(&[], &[]));
            let (first, n) = (first as u64, n[1] as u64);
            if pinned && o.cfg.layer.max_pinned > 0 {
                o.edit_range(RangeEdit::Pin, first, n)?;
            }
            o.edit_range(RangeEdit::Evict, first, n)
        };
        let layers: Vec<_> = self.oracles.iter().map(|l| trial(&l[seq])).collect();
        let can_pin = self.oracles.iter().any(|l| l[seq].cfg.layer.max_pinned > 0);
        // A layer whose window they have left by themselves drops nothing: a rewind may bring them back.
        let dropped = layers.iter().all(|outcome| *outcome == Ok(true));
        if dropped && (can_pin || !pinned) {
            let first = (self.oracles[0][seq].len() + n[0]) as u64;
            self.poison(seq, n);
            let entries = [(seq, first, n[1] as u8)];
            assert!(!pinned || self.edit_ranges(RangeEdit::Pin, &entries)?);
            assert!(self.edit_ranges(RangeEdit::Evict, &entries)?);
            self.note("poisoned range");
        }
        Ok(())
    }

    /// Appends tokens to the first layer alone, and aborts the step. Between, no edit is possible.
    fn abort(&mut self, seq: usize, n: usize) -> Result<(), TestCaseError> {
        if self.oracles.len() == 1 {
            return Ok(());
        }
        let before = self.oracles[0][seq].len();
        self.poison_first_layer(seq, n);
        let (ids, first, one) = ([seq as i32], [before as u64], [1]);
        let outcomes = [self.cache.pin(&ids, &first, &one), self.cache.evict_range(&ids, &first, &one)];
        for error in outcomes.map(Result::unwrap_err) {
            assert_eq!(error.status(), Status::LayersOutOfStep, "{error}");
        }
        let slots = |l: &LayerConfig| (l.window + self.config.max_chunk.max(self.config.max_rewind)) as usize;
        let slots: Vec<_> = self.config.layers.iter().map(slots).collect();
        let allowed: Vec<_> = (0..slots.len())
            .map(|layer| self.oracles[layer][seq].clone().abort(if layer == 0 { n } else { 0 }, slots[layer]))
            .collect();
        let rejections: Vec<_> = allowed.into_iter().filter_map(Result::err).collect();
        let outcome = self.cache.abort_step(Some(&ids));
        if self.expect(ABORT, &[(seq, format!("{n}"))], rejections, outcome)? {
            for (layer, slots) in slots.into_iter().enumerate() {
                let oracle = &mut self.oracles[layer][seq];
                oracle.abort(if layer == 0 { n } else { 0 }, slots).unwrap();
                self.plains[layer][seq].follow(oracle);
            }
            self.attendable[seq] = None;
            if before == 0 {
                self.edited_at[seq] = None;
            }
            self.note("abort");
            return Ok(());
        }
        // Only a reset helps.
        self.run_event(&Event::Reset { seq: seq as u8, start: 5 })
    }

    /// The settings of another cache that a sequence of this one can be loaded into.
    fn other_config(&self, other: Other) -> CacheConfig {
        let backend = match common::device::backend() {
            BackendKind::Cuda if other.elsewhere => BackendKind::Cpu,
            backend => backend,
        };
        CacheConfig {
            backend,
            max_chunk: other.max_chunk.into(),
            max_rewind: other.max_rewind.into(),
            n_seqs: other.n_seqs.into(),
            n_threads: other.n_threads.into(),
            isa: self.config.isa.filter(|_| backend == BackendKind::Cpu),
            layers: self.config.layers.iter().map(|l| with_spare(l, other.spare.into())).collect(),
            ..self.config.clone()
        }
    }

    fn load(&mut self, src: usize, dst: usize, other: Other) {
        self.note("load");
        if self.forks {
            if src != dst {
                self.cache.fork(&[src as i32], &[dst as i32]).unwrap();
            }
        } else {
            let mut via = common::new_cache(&self.other_config(other));
            let there = i32::from(other.n_seqs) - 1;
            common::transfer(&mut self.cache, src as i32, &mut via, there, other.copied);
            common::transfer(&mut via, there, &mut self.cache, dst as i32, !other.copied);
        }
        let (max_chunk, max_rewind) = (self.config.max_chunk as usize, self.config.max_rewind as usize);
        for (oracles, plains) in self.oracles.iter_mut().zip(&mut self.plains) {
            oracles[dst] = oracles[src].clone();
            oracles[dst].load(other.max_chunk.into(), other.max_rewind.into());
            oracles[dst].load(max_chunk, max_rewind);
            plains[dst] = plains[src].clone();
        }
        self.copied(src, dst);
        if !self.forks {
            self.attendable[dst] = Some(0);
        }
    }

    /// Brings up to date what is known of a sequence that has become a copy.
    fn copied(&mut self, src: usize, dst: usize) {
        self.starts[dst] = self.starts[src];
        self.attendable[dst] = self.attendable[src];
        self.edited_at[dst] = self.edited_at[src];
    }

    fn move_all(&mut self, other: Other) {
        if self.forks {
            return;
        }
        self.note("move");
        let config = self.other_config(other);
        let mut cache = common::new_cache(&config);
        for seq in 0..N_SEQS as i32 {
            common::transfer(&mut self.cache, seq, &mut cache, seq, other.copied);
        }
        (self.cache, self.config) = (cache, config);
        for (oracles, layer) in self.oracles.iter_mut().zip(&self.config.layers) {
            for oracle in oracles {
                oracle.load(other.max_chunk.into(), other.max_rewind.into());
                oracle.cfg.layer = layer.clone();
            }
        }
        self.attendable = [Some(0); N_SEQS];
    }

    fn evict(&mut self, what: Names, seq: usize, n: usize) -> Result<bool, TestCaseError> {
        let evict = EditCalls { check: Oracle::check_evict, apply: |o, n| o.evict(n).unwrap(), call: Cache::evict };
        self.edit(what, seq, n, &evict)
    }

    fn rewind(&mut self, what: Names, seq: usize, n: usize) -> Result<bool, TestCaseError> {
        let rewind = EditCalls { check: Oracle::check_rewind, apply: |o, n| o.rewind(n).unwrap(), call: Cache::rewind };
        self.edit(what, seq, n, &rewind)
    }

    /// Runs an event, and compares what the cache says of each sequence.
    pub fn event(&mut self, event: &Event) -> Result<(), TestCaseError> {
        self.run_event(event)?;
        self.check_infos();
        Ok(())
    }

    fn run_event(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Feed { n, step, repeat } => {
                self.note(if step { "step" } else { "append + attend" });
                self.feed(n.map(usize::from), step, repeat.into());
            }
            Event::Evict { seq, n } => {
                self.evict(EVICT, seq.into(), n.into())?;
            }
            Event::Rewind { seq, n } => {
                self.rewind(REWIND, seq.into(), n.into())?;
            }
            Event::RewindTo { seq, layer, limit, offset } => {
                let oracle = &self.oracles[usize::from(layer) % self.oracles.len()][usize::from(seq)];
                let n = match limit {
                    Limit::Edited => oracle.len().saturating_sub(oracle.edited),
                    Limit::Rewindable => oracle.rewindable(),
                };
                self.rewind(REWIND, seq.into(), n.saturating_add_signed(offset.into()))?;
            }
            Event::Ranges { edit, ranges: [a, b] } => {
                let entry = |r: TokenRange| {
                    let (first, n) = self.tokens(r);
                    (usize::from(r.seq), first, n)
                };
                let entries = [entry(a), entry(b)];
                let n = if a.seq == b.seq { 1 } else { 2 };
                self.edit_ranges(edit, &entries[..n])?;
            }
            Event::PoisonRange { seq, n, pinned } => self.poison_range(seq.into(), n.map(usize::from), pinned)?,
            Event::Reset { seq, start } => {
                self.note("reset");
                self.cache.reset(&[seq.into()], Some(&[start])).unwrap();
                for (oracles, plains) in self.oracles.iter_mut().zip(&mut self.plains) {
                    oracles[usize::from(seq)].reset();
                    plains[usize::from(seq)].follow(&oracles[usize::from(seq)]);
                }
                let seq = usize::from(seq);
                (self.starts[seq], self.attendable[seq], self.edited_at[seq]) = (start, Some(0), None);
            }
            Event::Fork { src, dst } => {
                let (src, dst) = (usize::from(src), usize::from(dst));
                let outcome = self.cache.fork(&[src as i32], &[dst as i32]);
                if src == dst {
                    assert_eq!(outcome.unwrap_err().status(), Status::InvalidArgument);
                    return Ok(());
                }
                outcome.unwrap();
                self.note("fork");
                for (oracles, plains) in self.oracles.iter_mut().zip(&mut self.plains) {
                    oracles[dst] = oracles[src].clone();
                    plains[dst] = plains[src].clone();
                }
                self.copied(src, dst);
            }
            Event::Poison { seq, n } => {
                let (seq, n) = (usize::from(seq), usize::from(n).min(self.config.max_rewind as usize));
                // Only drafts that can be rewound: a token that may become visible again must be valid.
                let rejectable = |o: &Oracle| {
                    let mut o = o.without_rows();
                    (0..n).for_each(|_| o.push(&[], &[]));
                    o.check_rewind(n).is_ok()
                };
                if n > 0 && self.oracles.iter().all(|l| rejectable(&l[seq])) {
                    self.poison(seq, [0, n, 0]);
                    assert!(self.rewind(DRAFT, seq, n)?);
                }
            }
            Event::PoisonEvicted { seq, n } => {
                let (seq, n) = (usize::from(seq), usize::from(n));
                let (first, others) = self.oracles.split_first().unwrap();
                // All layers must be able to evict the same number, and no poisoned token may be a sink.
                let after = |o: &Oracle| (o.window_len() + n).min(o.cfg.layer.window as usize);
                let same = others.iter().all(|l| after(&l[seq]) == after(&first[seq]));
                let past_sinks = self.oracles.iter().all(|l| l[seq].len() >= l[seq].cfg.layer.n_sink as usize);
                if same && past_sinks {
                    self.poison(seq, [0, n, 0]);
                    let window = self.oracles[0][seq].window_len();
                    assert!(self.evict(WINDOW, seq, window)?);
                }
            }
            Event::Abort { seq, n } => self.abort(seq.into(), n.into())?,
            Event::Load { src, dst, other } => self.load(src.into(), dst.into(), other),
            Event::Move(other) => self.move_all(other),
        }
        Ok(())
    }
}
