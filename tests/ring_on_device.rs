//! The slot arithmetic and the lists of ranges exist twice, in `ring.rs` and `ranges.rs`, and in `kernels/ring.cuh`,
//! `kernels/ranges.cuh` and `kernels/range_edit.cuh`: the same random histories drive both.
//!
//! The latter is in the library that `tools/cuda_shim/build.sh` compiles from it; `SKC_SHIM_LIBS` names its folder.

use std::cell::Cell;

use libloading::{Library, Symbol};
use proptest::prelude::*;
use sinkcache::ranges::{self, EditedRange, RangeEdit, RangeRejection};
use sinkcache::ring::{EditRejection, Ring, Seq};

/// `struct Ring` of ring.cuh.
#[repr(C)]
struct Plain {
    n_sink: u64,
    window: u64,
    ring_slots: u64,
    max_rewind: u64,
    max_pinned: u64,
    max_segments: u64,
}

struct Twin {
    library: Library,
    ring: Plain,
}

macro_rules! call {
    ($twin:expr, $name:expr, ($($kind:ty),*) -> $out:ty, $($value:expr),*) => {{
        // SAFETY: the types are those of ring_functions.cpp.
        unsafe {
            let f: Symbol<'_, unsafe extern "C" fn($($kind),*) -> $out> = $twin.library.get($name).unwrap();
            f($($value),*)
        }
    }};
}

fn rejection_code(outcome: Result<(), EditRejection>) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(EditRejection::TooMany(_)) => 1,
        Err(EditRejection::Overwritten(_)) => 2,
        Err(EditRejection::Edited(_)) => 3,
    }
}

fn range_rejection_code(outcome: Result<RangeEdit, RangeRejection>) -> i32 {
    match outcome {
        Ok(_) => 0,
        Err(RangeRejection::Beyond(_)) => 1,
        Err(RangeRejection::Sink) => 2,
        Err(RangeRejection::NotHeld) => 3,
        Err(RangeRejection::Pinned(_)) => 4,
        Err(RangeRejection::Segments(_)) => 5,
    }
}

/// The counters of a sequence and its list, with room for `max_segments` ranges.
#[derive(Clone, Debug, PartialEq)]
struct State {
    seq: Seq,
    list: Vec<EditedRange>,
}

impl State {
    fn ranges(&self) -> &[EditedRange] {
        &self.list[..self.seq.n_ranges as usize]
    }
}

/// A pin, or an evict_range, of `n` tokens.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u64,
    n: u64,
    pins: bool,
}

impl Range {
    fn check(self, ring: &Ring, state: &State) -> Result<RangeEdit, RangeRejection> {
        let check = if self.pins { RangeEdit::pin } else { RangeEdit::evict };
        check(ring, &state.seq, state.ranges(), self.first, self.n)
    }
}

impl Twin {
    /// An edit of ranges on both sides: outcomes, moves, counters and lists agree.
    fn edit(&self, ring: &Ring, state: &mut State, range: Range) -> bool {
        let checked = range.check(ring, state);
        let numbers = [range.first, range.n, u64::from(range.pins)];
        let list = state.list.as_mut_ptr();
        let code = call!(self, b"skc_check_range\0",
            (*const Plain, *const Seq, *const EditedRange, *const u64, i32) -> i32,
            &raw const self.ring, &raw const state.seq, list, numbers.as_ptr(), i32::from(range.pins));
        assert_eq!(code, range_rejection_code(checked), "{range:?} of {state:?} in {ring:?}");
        let Ok(edit) = checked else { return false };
        let mut want = vec![];
        edit.moves(ring, &state.seq, state.ranges(), |from, to, n| want.extend((n > 0).then_some([from, to, n])));
        let mut other = state.clone();
        edit.apply(ring, &mut state.seq, &mut state.list);
        let mut moves = vec![[0_u64; 3]; 4096];
        let n = call!(self, b"skc_apply_range\0",
            (*const Plain, *mut Seq, *mut EditedRange, *const u64, *mut u64) -> u64,
            &raw const self.ring, &raw mut other.seq, other.list.as_mut_ptr(), numbers.as_ptr(),
            moves.as_mut_ptr().cast());
        moves.truncate(n as usize);
        assert_eq!(moves, want, "{range:?} of {state:?} in {ring:?}");
        assert_eq!((other.seq, other.ranges()), (state.seq, state.ranges()), "{range:?} in {ring:?}");
        true
    }

    fn check_list(&self, state: &State, at: u64) {
        let (list, n) = (state.list.as_ptr(), u64::from(state.seq.n_ranges));
        let look_up = |name: &[u8]| call!(self, name, (*const EditedRange, u64, u64) -> u64, list, n, at);
        if at >= state.ranges().iter().map(|r| r.n + r.later).max().unwrap_or(0) {
            assert_eq!(look_up(b"skc_index_of\0"), ranges::index_of(state.ranges(), at));
        }
        assert_eq!(look_up(b"skc_ring_index_from\0"), ranges::ring_index_from(state.ranges(), at));
    }

    fn check(&self, ring: &Ring, seq: &Seq, n: u64) {
        let (r, s) = (&raw const self.ring, std::ptr::from_ref(seq));
        let two = |name: &[u8], a: u64, b: u64| call!(self, name, (*const Plain, u64, u64) -> u64, r, a, b);
        let one = |name: &[u8], a: u64| call!(self, name, (*const Plain, u64) -> u64, r, a);
        let (len, floor) = (seq.len, seq.floor);
        assert_eq!(call!(self, b"skc_ring_total_slots\0", (*const Plain) -> u64, r), ring.slots());
        for t in [len, len.saturating_sub(n), len.saturating_add(n), ring.n_sink, ring.n_sink.saturating_sub(1)] {
            assert_eq!(one(b"skc_ring_slot\0", t), ring.slot(t));
        }
        assert_eq!(two(b"skc_ring_evicted\0", len, floor), ring.evicted(len, floor));
        assert_eq!(two(b"skc_ring_window_start\0", len, floor), ring.window_start(len, floor));
        assert_eq!(two(b"skc_ring_window_len\0", len, floor), ring.window_len(len, floor));
        assert_eq!(one(b"skc_ring_intact_from\0", seq.highest), ring.intact_from(seq.highest));
        let intact = call!(self, b"skc_ring_intact\0", (*const Plain, u64, *const Seq) -> i32, r, len, s);
        assert_eq!(intact != 0, ring.intact(len, seq));
        let evict = call!(self, b"skc_ring_check_evict\0", (*const Plain, *const Seq, u64) -> i32, r, s, n);
        assert_eq!(evict, rejection_code(ring.check_evict(seq, n)));
        let rewind = call!(self, b"skc_ring_check_rewind\0", (*const Plain, *const Seq, u64) -> i32, r, s, n);
        assert_eq!(rewind, rejection_code(ring.check_rewind(seq, n)), "rewind {n} of {seq:?} in {ring:?}");
    }
}

/// Steps of a history: an event, and a number of tokens.
fn steps() -> impl Strategy<Value = Vec<(u8, u64)>> {
    prop::collection::vec((0..9_u8, prop_oneof![0..12_u64, 0..80_u64, Just(1 << 40)]), 1..60)
}

fn sizes() -> impl Strategy<Value = [u32; 4]> {
    let size = || prop_oneof![0..6_u32, 0..40_u32, Just(u32::MAX - 1)];
    (size(), size(), size(), size()).prop_map(|(a, b, c, d)| [a, b.max(1), c.max(1), d])
}

/// Sizes, and the most pinned tokens and segments, often neither.
type Settings = ([u32; 4], u32, u32);

fn settings() -> impl Strategy<Value = Settings> {
    (sizes(), prop_oneof![Just(0_u32), 1..40_u32], prop_oneof![Just(0_u32), 1..12_u32])
}

#[test]
fn both_agree_over_random_histories() {
    let Some(dir) = std::env::var_os("SKC_SHIM_LIBS") else {
        println!("skipped: SKC_SHIM_LIBS is not set");
        return;
    };
    let path = std::path::Path::new(&dir).join("libring_functions.so");
    let edits = [const { Cell::new(0_usize) }; 2];
    proptest!(ProptestConfig::with_cases(4_000), |(settings in settings(), steps in steps())| {
        let ([n_sink, window, chunk, back], max_pinned, max_segments) = settings;
        let ring = Ring::new(n_sink, window, chunk, back).with_edits(max_pinned, max_segments);
        // SAFETY: plain functions without initialisers.
        let library = unsafe { Library::new(&path) }.unwrap();
        let Ring { n_sink, window, ring_slots, max_rewind, max_pinned, max_segments } = ring;
        let plain = Plain { n_sink, window, ring_slots, max_rewind, max_pinned, max_segments };
        let twin = Twin { library, ring: plain };
        let mut state = State { seq: Seq::default(), list: vec![EditedRange::default(); max_segments as usize] };
        for (what, n) in steps {
            twin.check(&ring, &state.seq, n);
            twin.check_list(&state, n);
            twin.check_list(&state, ring.window_start(state.seq.len, state.seq.floor));
            let mut other = state.seq;
            let (at, list) = (&raw mut other, state.list.as_ptr());
            match what {
                0..3 => {
                    state.seq.append(n);
                    call!(twin, b"skc_seq_append\0", (*mut Seq, u64) -> (), at, n);
                }
                3 if ring.check_evict(&state.seq, n).is_ok() && n > 0 => {
                    let ranges = state.ranges().to_vec();
                    state.seq.evict(&ring, &ranges, n);
                    call!(twin, b"skc_seq_evict\0", (*mut Seq, *const Plain, *const EditedRange, u64) -> (),
                        at, &raw const twin.ring, list, n);
                }
                4 if ring.check_rewind(&state.seq, n).is_ok() => {
                    let len = state.seq.len - n;
                    state.seq.cut(len);
                    call!(twin, b"skc_seq_cut\0", (*mut Seq, u64) -> (), at, len);
                }
                // Ranges among the newest tokens, at the sinks, and anywhere.
                5.. => {
                    let (len, size) = (state.seq.len, 1 + n % 7);
                    let first = match what {
                        5 => n_sink,
                        6 => n % (len + 2),
                        _ => len.saturating_sub(n % 61),
                    };
                    let range = Range { first, n: size, pins: n % 2 == 0 };
                    edits[usize::from(twin.edit(&ring, &mut state, range))].update(|n| n + 1);
                    other = state.seq;
                }
                _ => {}
            }
            prop_assert_eq!(state.seq, other);
        }
    });
    println!("{} edits of ranges, {} more were refused", edits[1].get(), edits[0].get());
}

/// Ends that overflow are beyond every sequence.
#[test]
fn overflowing_ends_are_refused_by_both() {
    let Some(dir) = std::env::var_os("SKC_SHIM_LIBS") else {
        println!("skipped: SKC_SHIM_LIBS is not set");
        return;
    };
    // SAFETY: plain functions without initialisers.
    let library = unsafe { Library::new(std::path::Path::new(&dir).join("libring_functions.so")) }.unwrap();
    let ring = Ring::new(2, 8, 4, 4).with_edits(4, 4);
    let plain = Plain { n_sink: 2, window: 8, ring_slots: 12, max_rewind: 4, max_pinned: 4, max_segments: 4 };
    let twin = Twin { library, ring: plain };
    let mut state = State { seq: Seq::default(), list: vec![EditedRange::default(); 4] };
    state.seq.append(8);
    for first in [u64::MAX, u64::MAX - 3, u64::MAX - 4, 5, 4] {
        for pins in [false, true] {
            let before = state.clone();
            let accepted = twin.edit(&ring, &mut state, Range { first, n: 4, pins });
            assert_eq!((accepted, state == before), (first == 4, first != 4), "{first}");
            state = before;
        }
    }
}
