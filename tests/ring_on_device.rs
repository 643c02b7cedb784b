//! The slot arithmetic exists twice, in `ring.rs` and in `kernels/ring.cuh`: the same random histories drive both.
//!
//! The latter is in the library that `tools/cuda_shim/build.sh` compiles from it; `SKC_SHIM_LIBS` names its folder.

use libloading::{Library, Symbol};
use proptest::prelude::*;
use sinkcache::ring::{EditRejection, Ring, Seq};

/// `struct Ring` of ring.cuh.
#[repr(C)]
struct Plain {
    n_sink: u64,
    window: u64,
    ring_slots: u64,
    max_rewind: u64,
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
        Err(EditRejection::Evicted(_)) => 3,
    }
}

impl Twin {
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
    prop::collection::vec((0..6_u8, prop_oneof![0..12_u64, 0..80_u64, Just(1 << 40)]), 1..60)
}

fn sizes() -> impl Strategy<Value = [u32; 4]> {
    let size = || prop_oneof![0..6_u32, 0..40_u32, Just(u32::MAX - 1)];
    (size(), size(), size(), size()).prop_map(|(a, b, c, d)| [a, b.max(1), c.max(1), d])
}

#[test]
fn both_agree_over_random_histories() {
    let Some(dir) = std::env::var_os("SKC_SHIM_LIBS") else {
        println!("skipped: SKC_SHIM_LIBS is not set");
        return;
    };
    let path = std::path::Path::new(&dir).join("libring_functions.so");
    proptest!(ProptestConfig::with_cases(2_000), |(sizes in sizes(), steps in steps())| {
        let [n_sink, window, chunk, back] = sizes;
        let ring = Ring::new(n_sink, window, chunk, back);
        // SAFETY: plain functions without initialisers.
        let library = unsafe { Library::new(&path) }.unwrap();
        let Ring { n_sink, window, ring_slots, max_rewind } = ring;
        let plain = Plain { n_sink, window, ring_slots, max_rewind };
        let twin = Twin { library, ring: plain };
        let (mut seq, mut other) = (Seq::default(), Seq::default());
        for (what, n) in steps {
            twin.check(&ring, &seq, n);
            let at = &raw mut other;
            match what {
                0..3 => {
                    seq.append(n);
                    call!(twin, b"skc_seq_append\0", (*mut Seq, u64) -> (), at, n);
                }
                3 if ring.check_evict(&seq, n).is_ok() && n > 0 => {
                    seq.evict(&ring, n);
                    call!(twin, b"skc_seq_evict\0", (*mut Seq, *const Plain, u64) -> (), at, &raw const twin.ring, n);
                }
                4 if ring.check_rewind(&seq, n).is_ok() => {
                    let len = seq.len - n;
                    seq.cut(len);
                    call!(twin, b"skc_seq_cut\0", (*mut Seq, u64) -> (), at, len);
                }
                _ => {}
            }
            prop_assert_eq!(seq, other);
        }
    });
}
