//! Captured calls: replayed any number of times they do the same as eager calls.

use sinkcache::{AttendTensors, Batch, Cache, CacheConfig, DeviceBatch, Status, StorageType};

use crate::common::device::{Buf, with_host};
use crate::common::new_cache;
use crate::common::quantised::KvTypes;
use crate::support::{Graph, Q, Random, Tensors, config, cuda, to_bf16};

/// Replays of one graph: enough to wrap the ring many times.
fn replays() -> usize {
    std::env::var("SKC_REPLAYS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000)
}

fn twins(config: &CacheConfig) -> (Cache, Cache) {
    (new_cache(config), new_cache(config))
}

/// A decode step of two sequences in two layers, captured once, against eager calls on a cache of its own: bit for bit.
#[test]
fn a_replayed_step_equals_eager_calls() {
    let Some(_turn) = cuda() else { return };
    replay_steps(&config(2, 2, 4, 60), replays());
    let quantised = KvTypes::new(StorageType::Q8, StorageType::Q4).config(config(2, 2, 4, 60));
    replay_steps(&quantised, replays() / 4);
}

fn replay_steps(config: &CacheConfig, replays: usize) {
    let (mut replayed, mut eager) = twins(config);
    let (mut a, mut b) = (Tensors::new(2), Tensors::new(2));
    let ids = [1, 0];
    let batch = Batch::new(&ids, &[1, 1]);
    with_host(|host| {
        let graph = Graph::capture(host, || {
            // SAFETY: the host's stream lives as long as the thread.
            unsafe { replayed.set_stream(host.stream.cast()) }.unwrap();
            (0..2).for_each(|layer| a.feed(&mut replayed, layer, batch));
        });
        // SAFETY: as above.
        unsafe { replayed.set_stream(host.stream.cast()) }.unwrap();
        // Capturing changed no length, but the host's counters are stale: replays will.
        assert_eq!(replayed.seq_info(0, 0).unwrap_err().status(), Status::LengthUnknown);
        let mut random = Random(7);
        for i in 0..replays {
            let seed = random.below(u64::MAX) | 1;
            a.draw(&mut Random(seed), 2);
            b.draw(&mut Random(seed), 2);
            graph.launch(host);
            replayed.note_replay(None, &ids, &[1, 1]).unwrap();
            (0..2).for_each(|layer| b.feed(&mut eager, layer, batch));
            assert_eq!(a.out.read(), b.out.read(), "replay {i}");
        }
        assert_eq!(replayed.seq_info(0, 1).unwrap(), eager.seq_info(0, 1).unwrap());
        replayed.read_back(1).unwrap();
        assert_eq!(replayed.seq_info(1, 1).unwrap(), eager.seq_info(1, 1).unwrap());
        assert_eq!(replayed.take_error().unwrap(), None);
    });
}

/// One graph whose sequence ids and counts are in device memory, with another batch at every replay.
#[test]
fn a_graph_serves_a_changing_batch() {
    let Some(_turn) = cuda() else { return };
    let config = config(1, 4, 2, 30);
    let (mut replayed, mut eager) = twins(&config);
    let rows = 8;
    let (mut a, mut b) = (Tensors::new(rows), Tensors::new(rows));
    let (ids, counts) = (Buf::new(&[-1_i32; 3]), Buf::new(&[0_i32; 3]));
    let device = DeviceBatch {
        seq_ids: ids.address,
        n_tokens: counts.address,
        n_entries: 3,
        max_tokens: 5,
        n_rows: rows as u64,
    };
    with_host(|host| {
        let graph = Graph::capture(host, || {
            // SAFETY: the host's stream, and arrays that outlive the graph.
            unsafe {
                replayed.set_stream(host.stream.cast()).unwrap();
                a.feed(&mut replayed, 0, Batch::on_device(device));
            }
        });
        let mut random = Random(11);
        for i in 0..replays() / 4 {
            // Three different sequences, perhaps one of them padding, with at most as many tokens as there are rows.
            let first = random.below(4) as i32;
            let mut chosen = [first, (first + 1) % 4, (first + 3) % 4];
            if random.below(3) == 0 {
                chosen[random.below(3) as usize] = -1;
            }
            let n = [random.below(4) as i32, random.below(3) as i32, random.below(3) as i32];
            ids.write(&chosen);
            counts.write(&n);
            let seed = random.below(u64::MAX) | 1;
            a.draw(&mut Random(seed), rows);
            b.draw(&mut Random(seed), rows);
            graph.launch(host);
            b.feed(&mut eager, 0, Batch::new(&chosen, &n));
            // The eager call may run another kernel, because its largest count is known.
            crate::support::close(&a.out.read(), &b.out.read());
            assert!(i > 0 || a.out.read().len() == rows * Q);
        }
        for seq in 0..4 {
            // SAFETY: the host's stream lives as long as the thread.
            unsafe { replayed.set_stream(host.stream.cast()) }.unwrap();
            replayed.read_back(seq).unwrap();
            assert_eq!(replayed.seq_info(0, seq).unwrap().len_min, eager.seq_info(0, seq).unwrap().len_min);
        }
        assert_eq!(replayed.take_error().unwrap(), None);
    });
}

/// A batch of three entries in device memory, one of which is invalid.
struct InvalidBatch {
    ids: [i32; 3],
    counts: [i32; 3],
    /// What is reported of the invalid entry.
    status: Status,
    entry: u32,
}

const fn invalid(ids: [i32; 3], counts: [i32; 3], status: Status, entry: u32) -> InvalidBatch {
    InvalidBatch { ids, counts, status, entry }
}

/// Invalid entries of a device array are skipped and reported, and the others are appended.
#[test]
fn invalid_entries_are_skipped_and_reported() {
    let Some(_turn) = cuda() else { return };
    // Rows are appended by two kernels.
    for kv_dtype in [StorageType::Bf16, StorageType::Q8] {
        expect_invalid_entries(&CacheConfig { kv_dtype, ..config(1, 3, 1, 10) });
    }
}

fn expect_invalid_entries(config: &CacheConfig) {
    let mut cache = new_cache(config);
    let rows = 8;
    let t = Tensors::new(rows);
    let mut random = Random(3);
    // More than max_tokens; an invalid id; a duplicate; more rows than there are; a negative count.
    let cases = [
        invalid([0, 1, 2], [1, 6, 1], Status::ChunkTooLong, 1),
        invalid([0, 7, 2], [1, 1, 1], Status::OutOfRange, 1),
        invalid([0, 2, 0], [1, 1, 1], Status::InvalidArgument, 2),
        invalid([0, 1, 2], [3, 3, 3], Status::OutOfRange, 2),
        invalid([0, 1, 2], [1, -4, 1], Status::InvalidArgument, 1),
    ];
    with_host(|host| {
        for InvalidBatch { ids, counts, status, entry } in cases {
            let (i, n) = (Buf::new(&ids), Buf::new(&counts));
            let (seq_ids, n_tokens) = (i.address, n.address);
            let batch = DeviceBatch { seq_ids, n_tokens, n_entries: 3, max_tokens: 5, n_rows: rows as u64 };
            t.draw(&mut random, rows);
            let before: Vec<_> = (0..3).map(|s| length(&mut cache, s)).collect();
            // SAFETY: arrays in device memory that live until `host.wait()` has returned.
            cache.append(0, unsafe { Batch::on_device(batch) }, t.k.rows(), t.v.rows()).unwrap();
            host.wait();
            let error = cache.take_error().unwrap().expect("an invalid entry");
            assert_eq!((error.status, error.call), (status as i32, 1), "{ids:?} {counts:?}");
            assert_eq!((error.entry, error.seq_id), (entry, ids[entry as usize]), "{ids:?} {counts:?}");
            assert_eq!(cache.take_error().unwrap(), None);
            for seq in 0..3 {
                let wanted = |&(e, &id): &(usize, &i32)| id == seq && e as u32 != entry;
                let n = ids.iter().enumerate().find(wanted).map_or(0, |(e, _)| counts[e]);
                // Behind a negative count it is not defined where the next rows lie.
                let defined = status != Status::InvalidArgument || counts.iter().all(|&n| n >= 0);
                if defined {
                    assert_eq!(length(&mut cache, seq), before[seq as usize] + n as u64, "{ids:?} {counts:?} {seq}");
                }
            }
        }
    });
}

/// The same of attends, in every attention kernel.
#[test]
fn invalid_attends_are_skipped_and_reported() {
    let Some(_turn) = cuda() else { return };
    // More than were appended; an invalid id; a duplicate; more than max_tokens; a negative count.
    let cases = [
        invalid([0, 1, 2], [1, 3, 1], Status::OutOfRange, 1),
        invalid([0, 9, 2], [1, 1, 1], Status::OutOfRange, 1),
        invalid([0, 1, 0], [1, 1, 1], Status::InvalidArgument, 2),
        invalid([0, 1, 2], [1, 6, 1], Status::ChunkTooLong, 1),
        invalid([0, 1, 2], [1, -1, 1], Status::InvalidArgument, 1),
    ];
    // Up to three tokens of two heads are a decode, five are a chunk; heads of 40 have neither.
    for (head_dim, max_tokens) in [(64, 3), (64, 5), (40, 3)] {
        let config = CacheConfig { head_dim, ..config(1, 3, 1, 10) };
        let mut cache = new_cache(&config);
        let mut random = Random(3);
        let rows = 8;
        let (wq, wk) = ((config.n_q_heads * head_dim) as usize, (config.n_kv_heads * head_dim) as usize);
        let mut draw = |width: usize| Buf::new(&to_bf16(&random.rows(rows * width)));
        let (q, k, v) = (draw(wq), draw(wk), draw(wk));
        cache.append(0, Batch::new(&[0, 1, 2], &[2, 2, 2]), k.rows(), v.rows()).unwrap();
        with_host(|host| {
            for InvalidBatch { ids, counts, status, entry } in &cases {
                let (i, n) = (Buf::new(ids), Buf::new(counts));
                let (seq_ids, n_tokens) = (i.address, n.address);
                let batch = DeviceBatch { seq_ids, n_tokens, n_entries: 3, max_tokens, n_rows: rows as u64 };
                let mut out = Buf::new(&vec![f32::NAN; rows * wq]);
                let tensors = AttendTensors { q: q.rows(), out: out.rows_out(), lse: None };
                // SAFETY: arrays in device memory that live until `host.wait()` has returned.
                cache.attend(0, unsafe { Batch::on_device(batch) }, tensors).unwrap();
                host.wait();
                let error = cache.take_error().unwrap().expect("an invalid entry");
                assert_eq!((error.status, error.call), (*status as i32, 2), "{ids:?} {counts:?}");
                assert_eq!((error.entry, error.seq_id), (*entry, ids[*entry as usize]), "{ids:?} {counts:?}");
                assert_eq!(cache.take_error().unwrap(), None);
                assert!(out.read()[..wq].iter().all(|x| x.is_finite()), "the first entry is attended");
            }
        });
    }
}

/// Capturing it changes nothing, but the host no longer knows the length of the copy, nor of a copy of that.
#[test]
fn a_captured_fork_copies_at_each_replay() {
    let Some(_turn) = cuda() else { return };
    let mut cache = new_cache(&config(2, 3, 2, 20));
    let (mut t, mut random) = (Tensors::new(5), Random(3));
    let mut feed = |cache: &mut Cache, seq, seed| {
        t.draw(&mut Random(seed), 5);
        (0..2).for_each(|layer| t.feed(cache, layer, Batch::new(&[seq], &[5])));
        t.out.read()
    };
    let stale = |cache: &Cache, seq| cache.seq_info(0, seq).is_err_and(|e| e.status() == Status::LengthUnknown);
    with_host(|host| {
        feed(&mut cache, 0, random.below(u64::MAX) | 1);
        let graph = Graph::capture(host, || {
            // SAFETY: the host's stream lives as long as the thread.
            unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
            cache.fork(&[0], &[1]).unwrap();
        });
        // SAFETY: as above.
        unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
        assert!(!stale(&cache, 0) && stale(&cache, 1));
        cache.fork(&[1], &[2]).unwrap();
        assert!(stale(&cache, 2));
        for seq in [1, 2] {
            cache.read_back(seq).unwrap();
            assert_eq!(cache.seq_info(1, seq).unwrap().len_max, 0);
        }
        for _ in 0..6 {
            graph.launch(host);
            cache.read_back(1).unwrap();
            assert_eq!(cache.seq_info(1, 1).unwrap(), cache.seq_info(1, 0).unwrap());
            let seed = random.below(u64::MAX) | 1;
            assert_eq!(feed(&mut cache, 0, seed), feed(&mut cache, 1, seed));
        }
        // What a replay would have removed.
        cache.note_replay(None, &[1], &[-2]).unwrap();
        assert_eq!(cache.seq_info(0, 1).unwrap().len_max, 33);
        assert_eq!(cache.note_replay(None, &[1], &[-34]).unwrap_err().status(), Status::OutOfRange);
        assert_eq!(cache.note_replay(None, &[1, 2], &[1]).unwrap_err().status(), Status::InvalidArgument);
        cache.read_back(1).unwrap();
        assert_eq!(cache.seq_info(0, 1).unwrap().len_max, 35);
        assert_eq!(cache.take_error().unwrap(), None);
    });
}

fn length(cache: &mut Cache, seq: i32) -> u64 {
    cache.read_back(seq).unwrap();
    cache.seq_info(0, seq).unwrap().len_min
}
