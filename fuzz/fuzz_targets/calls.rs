//! Calls of the C ABI in any order with any numbers, over arrays of exactly the length that a call may read. A call
//! that is refused has a text and changes nothing; one that succeeds changes lengths as it says.
#![no_main]

use std::ffi::c_void;

use libfuzzer_sys::fuzz_target;
use sinkcache::ffi::*;
use sinkcache_fuzz::{Bytes, succeeded, zeroed};

const SEQS: usize = 3;
const LAYERS: u32 = 2;
const HEADS: usize = 2;
const DIM: usize = 16;
const MAX_CHUNK: i64 = 6;
/// The most tokens of an entry whose rows may be read.
const MOST_TOKENS: i32 = 50;
const TAG: [u8; 32] = [5; 32];

/// What a caller can know of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// In each layer: length, and how many of its tokens are dropped, and pinned.
    lengths: [(u64, u64, u64); LAYERS as usize],
    /// Its snapshot, or the status of the attempt.
    snapshot: Result<Vec<u8>, i32>,
}

struct Host {
    cache: *mut skc_cache,
}

impl Host {
    fn new(b: &mut Bytes<'_>) -> Self {
        // SAFETY: NULL pointers and zeros.
        let (mut config, mut layer): (skc_cache_config, skc_layer_config) = unsafe { (zeroed(), zeroed()) };
        // SAFETY: structs of these sizes.
        unsafe {
            assert!(succeeded(skc_cache_config_init(&raw mut config, size_of::<skc_cache_config>() as u32)));
            assert!(succeeded(skc_layer_config_init(&raw mut layer, size_of::<skc_layer_config>() as u32)));
        }
        (layer.n_sink, layer.window) = (b.choose(&[0, 2, 5]), b.choose(&[1, 7, 12]));
        (layer.max_pinned, layer.max_segments) = b.choose(&[(0, 0), (4, 3), (4, 3), (0, 2)]);
        let layers = [layer, skc_layer_config { window: layer.window + 9, max_pinned: 0, ..layer }];
        (config.n_layers, config.n_layer_configs, config.layers) = (LAYERS, LAYERS, layers.as_ptr());
        (config.n_seqs, config.n_q_heads, config.n_kv_heads) = (SEQS as u32, HEADS as u32, 1);
        (config.head_dim, config.n_threads) = (DIM as u32, 1);
        (config.kv_dtype, config.v_dtype) = (b.choose(&[1, 2, 3, 4, 5]), b.choose(&[0, 0, 4, 5]));
        (config.max_chunk, config.max_rewind) = (MAX_CHUNK as u32, b.choose(&[0, 3, 20]));
        let mut cache = std::ptr::null_mut();
        // SAFETY: the configuration and its layers live.
        assert!(succeeded(unsafe { skc_create_cache(&raw const config, &raw mut cache) }), "no cache");
        Self { cache }
    }

    fn state(&self, seq: i32) -> State {
        let lengths = std::array::from_fn(|layer| {
            // SAFETY: zeros.
            let mut info: skc_sequence_info = unsafe { zeroed() };
            info.struct_size = size_of::<skc_sequence_info>() as u32;
            // SAFETY: a live cache and a struct of this size.
            assert!(succeeded(unsafe { skc_seq_info(self.cache, layer as u32, seq, &raw mut info) }));
            (info.cached_tokens + info.evicted_tokens, info.evicted_tokens, info.pinned_tokens)
        });
        State { lengths, snapshot: self.save(seq) }
    }

    fn states(&self) -> Vec<State> {
        (0..SEQS as i32).map(|seq| self.state(seq)).collect()
    }

    fn save(&self, seq: i32) -> Result<Vec<u8>, i32> {
        // SAFETY: NULL pointers and zeros.
        let mut args: skc_save_sequence_args = unsafe { zeroed() };
        (args.struct_size, args.seq_id) = (size_of::<skc_save_sequence_args>() as u32, seq);
        let mut n = 0;
        // SAFETY: a live cache; data of as many bytes as it says.
        unsafe {
            let status = skc_snapshot_bytes(self.cache, &raw const args, &raw mut n);
            if !succeeded(status) {
                return Err(status);
            }
            let mut bytes = vec![0; n as usize];
            (args.data, args.n_bytes, args.host_tag) = (bytes.as_mut_ptr().cast(), n, TAG.as_ptr());
            assert!(succeeded(skc_save_sequence(self.cache, &raw const args, &raw mut n)), "not saved");
            Ok(bytes)
        }
    }
}

/// The most entries that any call takes.
fn most_entries() -> u32 {
    // SAFETY: zeros.
    let mut info: skc_capability_info = unsafe { zeroed() };
    info.struct_size = size_of::<skc_capability_info>() as u32;
    // SAFETY: a struct of this size.
    assert!(succeeded(unsafe { skc_capabilities(&raw mut info) }));
    info.max_seqs
}

/// A batch of hostile numbers. The arrays are as long as entries say where a call may read them.
struct Entries {
    n: u32,
    seqs: Vec<i32>,
    counts: Vec<i32>,
    first: Vec<u64>,
}

impl Entries {
    fn new(b: &mut Bytes<'_>, counts: &[i64]) -> Self {
        let n = b.u32(&[1, 1, 1, 2, 3, 0]);
        // Beyond this number a call reads none of them.
        let room = if n <= most_entries() { n as usize } else { 0 };
        let mut some = |usual: &[i64], padding: i64| -> Vec<i64> {
            (0..room).map(|i| if i < 8 { b.number(usual) } else { padding }).collect()
        };
        let seqs: Vec<i32> = some(&[0, 1, 2, 0, 1, -1], -1).into_iter().map(|x| x as i32).collect();
        let mut counts: Vec<i32> = some(counts, 0).into_iter().map(|x| x as i32).collect();
        // Rows of padding are not read, but those behind it are.
        seqs.iter().zip(&mut counts).filter(|(seq, _)| **seq == -1).for_each(|(_, n)| *n = (*n).min(MOST_TOKENS));
        let first = some(&[0, 3, 8, 12, 20, 5, 30], 0).into_iter().map(|x| x as u64).collect();
        Self { n, seqs, counts, first }
    }

    /// Rows of the tensors. A longer chunk is refused before one is read.
    fn rows(&self) -> usize {
        let counts = self.counts.iter().map(|&n| i64::from(n));
        if counts.clone().all(|n| (0..=i64::from(MOST_TOKENS)).contains(&n)) { counts.sum::<i64>() as usize } else { 0 }
    }

    /// Results are averages of values within 1, which q4 rounds by up to an eighth. Rows of entry -1 stay as they were.
    fn check_results(&self, out: &[f32]) {
        let mut rows = out.chunks_exact(HEADS * DIM);
        for (&seq, &n) in self.seqs.iter().zip(&self.counts) {
            for row in rows.by_ref().take(n as usize) {
                let as_it_should =
                    if seq < 0 { row.iter().all(|x| x.is_nan()) } else { row.iter().all(|x| x.abs() < 1.2) };
                assert!(as_it_should, "a result of sequence {seq}: {row:?}");
            }
        }
    }
}

/// Rows of numbers between -1 and 1.
fn noise(rows: usize, heads: usize) -> Vec<f32> {
    (0..rows * heads * DIM).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
}

/// Performs one call. Returns its status, and in which layers it has appended which counts.
fn call(host: &Host, b: &mut Bytes<'_>, saved: &mut Vec<u8>) -> (i32, Option<(u32, Entries)>) {
    let cache = host.cache;
    let tokens = [1, 3, 6, 1, 2, 0, 7];
    let layer = b.u32(&[0, 1, 0, 1, 2]);
    let flags = if b.byte() < 240 { 0 } else { b.u32(&[2, 4, 8]) };
    macro_rules! args {
        ($type:ty { $($field:ident: $value:expr),* $(,)? }) => {{
            // NULL pointers and zeros.
            let mut args: $type = zeroed();
            args.struct_size = size_of::<$type>() as u32;
            args.flags = flags;
            $(args.$field = $value;)*
            args
        }};
    }
    // An edit with so many tokens of each sequence.
    macro_rules! edit {
        ($call:ident, $type:ty { $($field:ident: $array:ident),* }) => {{
            let e = Entries::new(b, &tokens);
            let args = args!($type { n_entries: e.n, $($field: e.$array.as_ptr()),* });
            ($call(cache, &raw const args), None)
        }};
    }
    let kind = b.byte() % 16;
    // SAFETY: a live cache. Arrays and tensors are as long as a call that is not refused reads.
    unsafe {
        match kind {
            0..=6 => {
                let mut e = Entries::new(b, &tokens);
                // A step takes any number of tokens, an append at most max_chunk.
                let most = if kind >= 3 { MOST_TOKENS } else { i32::MAX };
                e.counts.iter_mut().for_each(|n| *n = (*n).min(most));
                let rows = e.rows();
                let (q, k, v) = (noise(rows, HEADS), noise(rows, 1), noise(rows, 1));
                let mut out = vec![f32::NAN; rows * HEADS * DIM];
                let (seqs, counts) = (e.seqs.as_ptr(), e.counts.as_ptr());
                let (qp, kp, vp): (*const c_void, *const c_void, *const c_void) =
                    (q.as_ptr().cast(), k.as_ptr().cast(), v.as_ptr().cast());
                let outp: *mut c_void = out.as_mut_ptr().cast();
                let status = match kind {
                    0 | 1 => skc_append_kv(
                        cache,
                        &args!(skc_append_kv_args {
                            layer: layer,
                            n_entries: e.n,
                            seq_ids: seqs,
                            n_tokens: counts,
                            k: kp,
                            v: vp,
                        }),
                    ),
                    2 => skc_attend(
                        cache,
                        &args!(skc_attend_args {
                            layer: layer,
                            n_entries: e.n,
                            seq_ids: seqs,
                            n_tokens: counts,
                            q: qp,
                            out: outp,
                        }),
                    ),
                    3..=5 => skc_step(
                        cache,
                        &args!(skc_step_args {
                            layer: layer,
                            n_entries: e.n,
                            seq_ids: seqs,
                            n_tokens: counts,
                            q: qp,
                            k: kp,
                            v: vp,
                            out: outp,
                        }),
                    ),
                    _ => {
                        let nth = b.u32(&[1, 1, 2]);
                        let ith = b.u32(&[0, 0, 1]);
                        skc_step_part(
                            cache,
                            &args!(skc_step_args {
                                layer: layer,
                                n_entries: e.n,
                                seq_ids: seqs,
                                n_tokens: counts,
                                q: qp,
                                k: kp,
                                v: vp,
                                out: outp,
                            }),
                            // A team of one: of more, each would wait for the others.
                            if nth > 1 { nth } else { ith },
                            nth,
                        )
                    }
                };
                if status == 0 && kind >= 2 {
                    e.check_results(&out);
                }
                (status, (status == 0 && kind != 2).then_some((layer, e)))
            }
            7 => edit!(skc_evict, skc_evict_args { seq_ids: seqs, n_tokens: counts }),
            8 => edit!(skc_rewind, skc_rewind_args { seq_ids: seqs, n_tokens: counts }),
            9 => {
                let e = Entries::new(b, &tokens);
                let positions = if b.byte() < 128 { std::ptr::null() } else { e.first.as_ptr() };
                let args =
                    args!(skc_reset_args { n_entries: e.n, seq_ids: e.seqs.as_ptr(), start_positions: positions });
                (skc_reset(cache, &raw const args), None)
            }
            10 => {
                let e = Entries::new(b, &[0, 1, 2, -1]);
                let args = args!(skc_fork_args {
                    n_entries: e.n,
                    src_seq_ids: e.seqs.as_ptr(),
                    dst_seq_ids: e.counts.as_ptr()
                });
                (skc_fork(cache, &raw const args), None)
            }
            11 => edit!(skc_pin, skc_pin_args { seq_ids: seqs, first: first, n_tokens: counts }),
            12 => edit!(skc_evict_range, skc_evict_range_args { seq_ids: seqs, first: first, n_tokens: counts }),
            13 => {
                let e = Entries::new(b, &tokens);
                let seqs = if b.byte() < 128 { std::ptr::null() } else { e.seqs.as_ptr() };
                let args = args!(skc_abort_step_args { n_entries: e.n, seq_ids: seqs });
                (skc_abort_step(cache, &raw const args), None)
            }
            14 => {
                let (from, to) = (b.choose(&[0, 1, 2]), b.i32(&[0, 1, 2, 3]));
                if let Ok(bytes) = host.save(from) {
                    *saved = bytes;
                }
                let args = args!(skc_load_sequence_args {
                    seq_id: to,
                    data: saved.as_ptr().cast(),
                    n_bytes: saved.len() as u64,
                    host_tag: TAG.as_ptr(),
                });
                (skc_load_sequence(cache, &raw const args), None)
            }
            _ => {
                let args = args!(skc_copy_sequence_args {
                    src_cache: cache,
                    src_seq_id: b.i32(&[0, 1, 2]),
                    dst_seq_id: b.i32(&[1, 2, 0]),
                });
                (skc_copy_sequence(cache, &raw const args), None)
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let b = &mut Bytes::new(bytes);
    let host = Host::new(b);
    let mut saved = vec![];
    let mut before = host.states();
    while !b.is_empty() {
        let (status, appended) = call(&host, b, &mut saved);
        let after = host.states();
        if !succeeded(status) {
            assert!(before == after, "a call that was refused changed something");
        }
        if let Some((layer, e)) = appended {
            let mut expected: Vec<u64> = before.iter().map(|s| s.lengths[layer as usize].0).collect();
            for (&seq, &n) in e.seqs.iter().zip(&e.counts).filter(|(seq, n)| **seq >= 0 && **n > 0) {
                expected[seq as usize] += n as u64;
            }
            let got: Vec<u64> = after.iter().map(|s| s.lengths[layer as usize].0).collect();
            assert!(expected == got, "lengths {got:?} in place of {expected:?}");
        }
        before = after;
    }
    assert!(succeeded(skc_destroy_cache(host.cache)));
});
