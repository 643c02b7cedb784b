//! Captured calls: replayed any number of times they do the same as eager calls.

use sinkcache::{Batch, Cache, CacheConfig, DeviceBatch, Status};

use crate::common::device::{Buf, with_host};
use crate::common::new_cache;
use crate::support::{Graph, Q, Random, Tensors, config, cuda};

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
    let config = config(2, 2, 4, 60);
    let (mut replayed, mut eager) = twins(&config);
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
        for i in 0..replays() {
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

/// Invalid entries of a batch in device memory are skipped and reported; the other entries are executed.
#[test]
fn invalid_entries_are_skipped_and_reported() {
    let Some(_turn) = cuda() else { return };
    let mut cache = new_cache(&config(1, 3, 1, 10));
    let rows = 8;
    let t = Tensors::new(rows);
    let mut random = Random(3);
    // More than max_tokens; an id that does not exist; a duplicate; more rows than there are; a negative count.
    let cases: [([i32; 3], [i32; 3], i32, u32); 5] = [
        ([0, 1, 2], [1, 6, 1], Status::ChunkTooLong as i32, 1),
        ([0, 7, 2], [1, 1, 1], Status::OutOfRange as i32, 1),
        ([0, 2, 0], [1, 1, 1], Status::InvalidArgument as i32, 2),
        ([0, 1, 2], [3, 3, 3], Status::OutOfRange as i32, 2),
        ([0, 1, 2], [1, -4, 1], Status::InvalidArgument as i32, 1),
    ];
    with_host(|host| {
        for (ids, counts, status, entry) in cases {
            let (i, n) = (Buf::new(&ids), Buf::new(&counts));
            let (seq_ids, n_tokens) = (i.address, n.address);
            let batch = DeviceBatch { seq_ids, n_tokens, n_entries: 3, max_tokens: 5, n_rows: rows as u64 };
            t.draw(&mut random, rows);
            let before: Vec<_> = (0..3).map(|s| length(&mut cache, s)).collect();
            // SAFETY: both arrays are in device memory and outlive the work.
            cache.append(0, unsafe { Batch::on_device(batch) }, t.k.rows(), t.v.rows()).unwrap();
            host.wait();
            let error = cache.take_error().unwrap().expect("an invalid entry");
            assert_eq!((error.status, error.entry, error.call), (status, entry, 1), "{ids:?} {counts:?}");
            assert_eq!(error.seq_id, ids[entry as usize]);
            assert_eq!(cache.take_error().unwrap(), None);
            for seq in 0..3 {
                let wanted = |&(e, &id): &(usize, &i32)| id == seq && e as u32 != entry;
                let n = ids.iter().enumerate().find(wanted).map_or(0, |(e, _)| counts[e]);
                // After a negative count the rows of the following entries are undefined.
                let defined = status != Status::InvalidArgument as i32 || counts.iter().all(|&n| n >= 0);
                if defined {
                    assert_eq!(length(&mut cache, seq), before[seq as usize] + n as u64, "{ids:?} {counts:?} {seq}");
                }
            }
        }
    });
}

fn length(cache: &mut Cache, seq: i32) -> u64 {
    cache.read_back(seq).unwrap();
    cache.seq_info(0, seq).unwrap().len_min
}
