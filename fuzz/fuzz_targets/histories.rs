//! The histories of tests/histories against the oracle, with events that the fuzzer's bytes choose: those that reach
//! new code are kept and changed further. Two bytes choose the cache.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/histories/edits.rs"]
mod edits;
// Its summary is for the tests.
#[allow(dead_code)]
#[path = "../../tests/histories/run.rs"]
mod run;

use common::history::{Anchor, Event, History, Limit, N_SEQS, Other, TokenRange, histories};
use common::oracle::RangeEdit;
use libfuzzer_sys::fuzz_target;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sinkcache_fuzz::Bytes;

/// More reach nothing new, and are slow.
const MOST_EVENTS: usize = 30;

/// A cache as the tests draw it, without events.
fn history_of(number: u16) -> History {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&number.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng);
    let drawn = histories().new_tree(&mut runner).expect("nothing is filtered").current();
    History { events: vec![], seed: number.into(), ..drawn }
}

struct Draw<'a, 'b> {
    bytes: &'b mut Bytes<'a>,
    window: u8,
    max_chunk: u8,
}

impl Draw<'_, '_> {
    /// From 0 to `most`.
    fn to(&mut self, most: u8) -> u8 {
        (u16::from(self.bytes.byte()) % (u16::from(most) + 1)) as u8
    }

    fn seq(&mut self) -> u8 {
        self.to(N_SEQS as u8 - 1)
    }

    /// From 1 to what one call of append takes.
    fn chunk(&mut self) -> u8 {
        1 + self.to(self.max_chunk - 1)
    }

    fn flag(&mut self) -> bool {
        self.bytes.byte() % 2 == 1
    }

    fn offset(&mut self) -> i8 {
        self.to(7) as i8 - 4
    }

    fn range(&mut self) -> TokenRange {
        let from = match self.to(15) {
            0..=3 => Anchor::End(self.to(self.window + 3) as i8 - 1),
            4..=6 => Anchor::Window(self.offset()),
            7..=9 => Anchor::Pin(self.bytes.byte(), self.offset()),
            10..=12 => Anchor::Hole(self.bytes.byte(), self.offset()),
            13 => Anchor::Sinks(self.offset()),
            14 => Anchor::Any(self.bytes.byte()),
            _ => Anchor::Huge(self.bytes.byte()),
        };
        TokenRange { seq: self.seq(), layer: self.bytes.byte(), from, n: self.to(self.window + 2), cut: self.flag() }
    }

    fn other(&mut self, least_chunk: u8) -> Other {
        Other {
            max_chunk: least_chunk + self.to(19),
            max_rewind: self.to(13),
            n_seqs: N_SEQS as u8 + self.to(2),
            n_threads: 1,
            spare: self.to(2),
            elsewhere: false,
            copied: self.flag(),
        }
    }

    fn event(&mut self) -> Event {
        let seq = self.seq();
        match self.to(23) {
            0..=4 => {
                let n = [self.chunk(), self.to(self.max_chunk), self.to(self.max_chunk.min(3))];
                Event::Feed { n, step: false, repeat: self.to(3) }
            }
            5..=8 => {
                let n = [1 + self.to(3 * self.window + 2), self.to(4), self.to(self.window)];
                Event::Feed { n, step: true, repeat: 0 }
            }
            9 => Event::Evict { seq, n: self.to(self.window + 1) },
            10 => Event::Rewind { seq, n: self.to(12) },
            11 => {
                let limit = if self.flag() { Limit::Edited } else { Limit::Rewindable };
                Event::RewindTo { seq, layer: self.bytes.byte(), limit, offset: self.offset() }
            }
            12..=15 => {
                let edit = if self.flag() { RangeEdit::Pin } else { RangeEdit::Evict };
                let (a, two) = (self.range(), self.to(3) == 0);
                Event::Ranges { edit, ranges: [a, if two { self.range() } else { a }] }
            }
            16 => Event::Reset { seq, start: self.bytes.choose(&[0, 1 << 24, (1 << 32) + 7, 1 << 40, u64::MAX / 2]) },
            17 => Event::Fork { src: seq, dst: self.seq() },
            18 => Event::Poison { seq, n: self.chunk() },
            19 => Event::PoisonEvicted { seq, n: self.chunk() },
            20 => {
                let n = [self.to(self.max_chunk), 1 + self.to(self.max_chunk.min(5) - 1), self.to(self.window.min(6))];
                Event::PoisonRange { seq, n, pinned: self.flag() }
            }
            21 => Event::Abort { seq, n: self.chunk() },
            22 => Event::Load { src: seq, dst: self.seq(), other: self.other(1) },
            _ => Event::Move(self.other(self.max_chunk)),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let bytes = &mut Bytes::new(bytes);
    let mut history = history_of(u16::from_le_bytes([bytes.byte(), bytes.byte()]));
    // Threads are slow to start, and change no result.
    history.config.n_threads = 1;
    let window = history.config.layers.iter().map(|l| l.window).max().unwrap() as u8;
    let mut draw = Draw { bytes, window, max_chunk: history.config.max_chunk.min(9) as u8 };
    while !draw.bytes.is_empty() && history.events.len() < MOST_EVENTS {
        history.events.push(draw.event());
    }
    let mut run = run::Run::new(&history);
    for event in &history.events {
        run.event(event).unwrap_or_else(|e| panic!("{e}: {history:?}"));
    }
    run.finish().unwrap_or_else(|e| panic!("{e}: {history:?}"));
});
