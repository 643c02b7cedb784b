//! Threads that call anything on shared caches, through the C ABI: steps, teams, edits, snapshots, copies between two
//! caches, and destruction under the feet of the others. `SKC_HAMMER` is how many calls each thread makes (3,000 unless
//! set), `SKC_SEED` which ones. Most useful under ThreadSanitizer: `make all-tsan`.
//!
//! Each thread has sequences of its own in every cache and knows their lengths: a call that was refused must not change
//! them, a call of another thread neither.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use sinkcache::ffi::*;

const THREADS: usize = 4;
const CACHES: usize = 5;
const DIM: usize = 8;
const HEADS: usize = 4;
const MAX_CHUNK: i32 = 4;
/// The sequence that teams step; below it are two of each thread.
const TEAM_SEQ: i32 = 2 * THREADS as i32;
/// The number in every value, so that every result is this number too.
const VALUE: f32 = 0.5;

/// A zeroed struct of arguments.
fn zeroed<T: Copy>() -> T {
    // SAFETY: all fields of the ABI's structs are integers and pointers, for which zero is valid.
    unsafe { std::mem::zeroed() }
}

/// The same with its size.
macro_rules! args {
    ($type:ty { $($field:ident: $value:expr),* $(,)? }) => {{
        let mut args: $type = zeroed();
        args.struct_size = size_of::<$type>() as u32;
        $(args.$field = $value;)*
        args
    }};
}

unsafe extern "C" fn host_loop(_: *mut c_void, n: u32, task: skc_task_fn, data: *mut c_void) {
    std::thread::scope(|s| {
        for i in 0..n {
            let data = AtomicPtr::new(data);
            // SAFETY: the library waits for this loop, which waits for its threads.
            s.spawn(move || unsafe { task.unwrap()(data.into_inner(), i) });
        }
    });
}

/// Caches of one thread, of the library's threads and of the host's.
fn create(kind: usize) -> *mut skc_cache {
    let layer = skc_layer_config { n_sink: 2, window: 12, max_pinned: 2, max_segments: 2, ..Default::default() };
    let config = skc_cache_config {
        n_seqs: TEAM_SEQ as u32 + 1,
        n_q_heads: HEADS as u32,
        n_kv_heads: 2,
        head_dim: DIM as u32,
        kv_dtype: SKC_DTYPE_F32,
        max_chunk: MAX_CHUNK as u32,
        max_rewind: 4,
        n_threads: [2, 1, 3, 2, 2][kind],
        parallel_for: if kind == 3 { Some(host_loop) } else { None },
        n_layer_configs: 1,
        layers: &raw const layer,
        ..Default::default()
    };
    let mut cache = ptr::null_mut();
    // SAFETY: the configuration is valid, the handle writable.
    check(unsafe { skc_create_cache(&raw const config, &raw mut cache) }, &[]);
    cache
}

/// Returns whether a call succeeded, which else has one of the statuses `allowed`.
#[track_caller]
fn check(status: skc_status, allowed: &[skc_status]) -> bool {
    // SAFETY: a string that lives until the thread's next call.
    let text = || unsafe { CStr::from_ptr(skc_last_error()) }.to_string_lossy();
    assert!(status == SKC_STATUS_OK || allowed.contains(&status), "status {status}: {}", text());
    status == SKC_STATUS_OK
}

/// What calls on a cache may return that another thread uses or has destroyed.
const SHARED: &[skc_status] = &[SKC_STATUS_BUSY, SKC_STATUS_INVALID_HANDLE];
/// The same of edits, which a sequence may not have the tokens for.
const EDIT: &[skc_status] =
    &[SKC_STATUS_BUSY, SKC_STATUS_INVALID_HANDLE, SKC_STATUS_OUT_OF_RANGE, SKC_STATUS_TOKENS_GONE];

/// The arguments of a team's step, the same for all members. Nothing is freed: a member may come late.
struct TeamStep(skc_step_args);
// SAFETY: k, v and q are not written; each member writes its heads' part of `out`, one step at a time.
unsafe impl Sync for TeamStep {}

impl TeamStep {
    fn new() -> Self {
        let rows = |heads| Vec::leak(vec![VALUE; 2 * heads * DIM]).as_mut_ptr();
        Self(args!(skc_step_args {
            n_entries: 1,
            seq_ids: Box::leak(Box::new(TEAM_SEQ)),
            n_tokens: Box::leak(Box::new(2)),
            q: rows(HEADS).cast(),
            k: rows(2).cast(),
            v: rows(2).cast(),
            out: rows(HEADS).cast(),
        }))
    }
}

struct Shared {
    handles: [AtomicPtr<skc_cache>; CACHES],
    teams: [TeamStep; CACHES],
    calls: AtomicU64,
    succeeded: AtomicU64,
    busy: AtomicU64,
    created: AtomicU64,
}

/// What a thread knows of a cache.
#[derive(Clone, Copy)]
struct Known {
    cache: *mut skc_cache,
    lengths: [u64; 2],
}

struct Caller<'a> {
    shared: &'a Shared,
    first_seq: i32,
    known: [Known; CACHES],
    random: u64,
    saved: Option<(Vec<u8>, u64)>,
}

impl Caller<'_> {
    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    /// The cache at a place, as this thread knows it.
    fn known(&mut self, at: usize) -> Known {
        let cache = self.shared.handles[at].load(Ordering::Acquire);
        if self.known[at].cache != cache {
            self.known[at] = Known { cache, lengths: [0; 2] };
        }
        self.known[at]
    }

    fn count(&self, status: skc_status) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        self.shared.succeeded.fetch_add(u64::from(status == SKC_STATUS_OK), Ordering::Relaxed);
        self.shared.busy.fetch_add(u64::from(status == SKC_STATUS_BUSY), Ordering::Relaxed);
    }

    fn check(&self, status: skc_status, allowed: &[skc_status]) -> bool {
        self.count(status);
        check(status, allowed)
    }

    fn check_length(&mut self, at: usize, which: usize) {
        let Known { cache, lengths } = self.known[at];
        let mut info = args!(skc_sequence_info {});
        // SAFETY: any handle; a struct of this size.
        if self.check(unsafe { skc_seq_info(cache, 0, self.first_seq + which as i32, &raw mut info) }, SHARED) {
            assert_eq!(info.length_max, lengths[which], "a sequence that only this thread changes");
        }
    }

    fn step(&mut self, at: usize, which: usize) {
        let Known { cache, .. } = self.known(at);
        let n = 1 + self.draw(6) as i32;
        let seq = self.first_seq + which as i32;
        let rows = |heads: usize| vec![VALUE; n as usize * heads * DIM];
        let (q, k, v, mut out) = (rows(HEADS), rows(2), rows(2), vec![f32::NAN; n as usize * HEADS * DIM]);
        let a = args!(skc_step_args {
            n_entries: 1,
            seq_ids: &raw const seq,
            n_tokens: &raw const n,
            q: q.as_ptr().cast(),
            k: k.as_ptr().cast(),
            v: v.as_ptr().cast(),
            out: out.as_mut_ptr().cast(),
        });
        // SAFETY: any handle; tensors of n rows.
        if self.check(unsafe { skc_step(cache, &raw const a) }, SHARED) {
            self.known[at].lengths[which] += n as u64;
            assert!(out.iter().all(|x| (x - VALUE).abs() < 1e-5), "{out:?}");
        }
    }

    fn team_member(&mut self, at: usize) {
        let Known { cache, .. } = self.known(at);
        let ith = self.draw(2) as u32;
        let team = &self.shared.teams[at].0;
        // A member may have come already; a cache of one thread has no team of two.
        let allowed =
            &[SKC_STATUS_BUSY, SKC_STATUS_INVALID_HANDLE, SKC_STATUS_INVALID_ARGUMENT, SKC_STATUS_TOKENS_GONE];
        // SAFETY: any handle; tensors of two rows, which are never freed.
        self.check(unsafe { skc_step_part(cache, team, ith, 2) }, allowed);
    }

    fn edit(&mut self, at: usize, which: usize) {
        let Known { cache, lengths } = self.known(at);
        let length = lengths[which];
        let seq = self.first_seq + which as i32;
        let (n, first) = (1 + self.draw(3) as i32, length.saturating_sub(6));
        // SAFETY: any handle; arrays of one element.
        unsafe {
            match self.draw(6) {
                0 => {
                    let a = args!(skc_rewind_args { n_entries: 1, seq_ids: &raw const seq, n_tokens: &raw const n });
                    if self.check(skc_rewind(cache, &raw const a), EDIT) {
                        self.known[at].lengths[which] -= n as u64;
                    }
                }
                1 => {
                    let a = args!(skc_evict_args { n_entries: 1, seq_ids: &raw const seq, n_tokens: &raw const n });
                    self.check(skc_evict(cache, &raw const a), EDIT);
                }
                2 => {
                    let a = args!(skc_reset_args { n_entries: 1, seq_ids: &raw const seq });
                    if self.check(skc_reset(cache, &raw const a), SHARED) {
                        self.known[at].lengths[which] = 0;
                    }
                }
                3 => {
                    let other = self.first_seq + 1 - which as i32;
                    let a = args!(skc_fork_args {
                        n_entries: 1,
                        src_seq_ids: &raw const seq,
                        dst_seq_ids: &raw const other
                    });
                    if self.check(skc_fork(cache, &raw const a), SHARED) {
                        self.known[at].lengths[1 - which] = length;
                    }
                }
                4 => {
                    let a = args!(skc_pin_args {
                        n_entries: 1,
                        seq_ids: &raw const seq,
                        first: &raw const first,
                        n_tokens: &raw const n
                    });
                    self.check(skc_pin(cache, &raw const a), &[EDIT, &[SKC_STATUS_NO_ROOM]].concat());
                }
                _ => {
                    let a = args!(skc_evict_range_args {
                        n_entries: 1,
                        seq_ids: &raw const seq,
                        first: &raw const first,
                        n_tokens: &raw const n
                    });
                    self.check(skc_evict_range(cache, &raw const a), &[EDIT, &[SKC_STATUS_NO_ROOM]].concat());
                }
            }
        }
    }

    fn snapshot(&mut self, at: usize, which: usize) {
        let Known { cache, lengths } = self.known(at);
        let seq = self.first_seq + which as i32;
        let mut a = args!(skc_save_sequence_args { seq_id: seq });
        let mut n = 0;
        // SAFETY: any handle; data of as many bytes as it says.
        unsafe {
            if !self.check(skc_snapshot_bytes(cache, &raw const a, &raw mut n), EDIT) {
                return;
            }
            let mut bytes = vec![0_u8; n as usize];
            (a.data, a.n_bytes) = (bytes.as_mut_ptr().cast(), n);
            if self.check(skc_save_sequence(cache, &raw const a, &raw mut n), EDIT) {
                bytes.truncate(n as usize);
                self.saved = Some((bytes, lengths[which]));
            }
        }
    }

    fn load(&mut self, at: usize, which: usize) {
        let Known { cache, .. } = self.known(at);
        let Some((bytes, length)) = self.saved.take() else { return };
        let a = args!(skc_load_sequence_args {
            seq_id: self.first_seq + which as i32,
            data: bytes.as_ptr().cast(),
            n_bytes: bytes.len() as u64
        });
        // SAFETY: any handle; data of as many bytes as it says.
        if self.check(unsafe { skc_load_sequence(cache, &raw const a) }, SHARED) {
            self.known[at].lengths[which] = length;
        }
        self.saved = Some((bytes, length));
    }

    fn copy(&mut self, from: usize, to: usize, which: usize) {
        let (source, target) = (self.known(from), self.known(to));
        let seq = self.first_seq + which as i32;
        let a = args!(skc_copy_sequence_args { src_cache: source.cache, src_seq_id: seq, dst_seq_id: seq });
        // SAFETY: any handles.
        if self.check(unsafe { skc_copy_sequence(target.cache, &raw const a) }, EDIT) {
            self.known[to].lengths[which] = source.lengths[which];
        }
    }

    fn abort(&mut self, at: usize) {
        let Known { cache, .. } = self.known(at);
        let a = args!(skc_abort_step_args {});
        // SAFETY: any handle.
        self.check(unsafe { skc_abort_step(cache, &raw const a) }, &[SHARED, &[SKC_STATUS_TOKENS_GONE]].concat());
    }

    /// Destroys a cache that others may be using. Of several threads one succeeds, and puts a new one in its place.
    fn replace(&mut self, at: usize) {
        let Known { cache, .. } = self.known(at);
        if self.check(skc_destroy_cache(cache), SHARED) {
            self.shared.created.fetch_add(1, Ordering::Relaxed);
            let old = self.shared.handles[at].swap(create(at), Ordering::AcqRel);
            assert_eq!(old, cache, "two threads have destroyed one cache");
        }
    }

    fn call(&mut self) {
        let (at, which) = (self.draw(CACHES as u64) as usize, self.draw(2) as usize);
        match self.draw(32) {
            0..=9 => self.step(at, which),
            10..=17 => self.team_member(at),
            18..=21 => self.edit(at, which),
            22 => self.snapshot(at, which),
            23 => self.load(at, which),
            24..=26 => {
                let to = (at + 1 + self.draw(CACHES as u64 - 1) as usize) % CACHES;
                self.copy(at, to, which);
                self.known(to);
                self.check_length(to, which);
            }
            27 => self.abort(at),
            28 => self.replace(at),
            _ => {}
        }
        self.known(at);
        self.check_length(at, which);
    }
}

/// The value of an environment variable that is a number.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn any_calls_on_shared_caches_end_with_a_status_and_right_lengths() {
    let (rounds, seed) = (number("SKC_HAMMER", 3000), number("SKC_SEED", 1));
    let shared = Shared {
        handles: std::array::from_fn(|kind| AtomicPtr::new(create(kind))),
        teams: std::array::from_fn(|_| TeamStep::new()),
        calls: AtomicU64::new(0),
        succeeded: AtomicU64::new(0),
        busy: AtomicU64::new(0),
        created: AtomicU64::new(0),
    };
    let start = Barrier::new(THREADS);
    std::thread::scope(|s| {
        for thread in 0..THREADS {
            let (shared, start) = (&shared, &start);
            s.spawn(move || {
                let mut caller = Caller {
                    shared,
                    first_seq: 2 * thread as i32,
                    known: [Known { cache: ptr::null_mut(), lengths: [0; 2] }; CACHES],
                    random: (seed * THREADS as u64 + thread as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
                    saved: None,
                };
                start.wait();
                for _ in 0..rounds {
                    caller.call();
                }
            });
        }
    });
    let [calls, succeeded, busy, created] =
        [&shared.calls, &shared.succeeded, &shared.busy, &shared.created].map(|n| n.load(Ordering::Relaxed));
    println!("{calls} calls: {succeeded} succeeded, {busy} found the cache in use; {created} caches destroyed");
    assert!(succeeded > rounds, "hardly a call succeeded");
    for handle in shared.handles {
        // A team may be waiting for its other member.
        check(skc_destroy_cache(handle.into_inner()), &[]);
    }
}
