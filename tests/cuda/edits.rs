//! Edits in the stream: with arrays in host memory, and with arrays in device memory.

use sinkcache::{Batch, Cache, CacheConfig, DeviceEdit, Status};

use crate::common::device::{Buf, with_host};
use crate::common::new_cache;
use crate::support::{Graph, Random, Tensors, close, config, cuda};

fn cpu(config: &CacheConfig) -> Cache {
    Cache::new(&CacheConfig { backend: sinkcache::BackendKind::Cpu, ..config.clone() }).unwrap()
}

fn arrays(ids: &Buf<i32>, tokens: Option<&Buf<i32>>, positions: Option<&Buf<u64>>) -> DeviceEdit {
    DeviceEdit {
        seq_ids: ids.address,
        n_tokens: tokens.map_or(0, |b| b.address),
        first: 0,
        positions: positions.map_or(0, |b| b.address),
        n_entries: ids.len as u32,
    }
}

/// Append, attend and rewind in one graph; only the device knows how many drafts were rejected.
#[test]
fn rejected_drafts_never_leave_the_device() {
    let Some(_turn) = cuda() else { return };
    let config = config(2, 2, 2, 20);
    let (mut cache, mut plain) = (new_cache(&config), cpu(&config));
    let mut t = Tensors::new(8);
    let (ids, rejected) = (Buf::new(&[0_i32, 1]), Buf::new(&[0_i32, 0]));
    let batch = Batch::new(&[0, 1], &[4, 4]);
    with_host(|host| {
        let graph = Graph::capture(host, || {
            // SAFETY: the host's stream, and arrays that outlive the graph.
            unsafe {
                cache.set_stream(host.stream.cast()).unwrap();
                (0..2).for_each(|layer| t.feed(&mut cache, layer, batch));
                cache.rewind_on_device(arrays(&ids, Some(&rejected), None)).unwrap();
            }
        });
        let mut random = Random(5);
        for _ in 0..60 {
            let n = [random.below(5) as i32, random.below(5) as i32];
            rejected.write(&n);
            t.draw(&mut random, 8);
            graph.launch(host);
            t.feed_cpu(&mut plain, 0, batch);
            let want = t.feed_cpu(&mut plain, 1, batch);
            plain.rewind(&[0, 1], &n).unwrap();
            close(&t.out.read(), &want);
        }
        // SAFETY: the host's stream.
        unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
        for seq in 0..2 {
            assert_eq!(cache.seq_info(0, seq).unwrap_err().status(), Status::LengthUnknown);
            cache.read_back(seq).unwrap();
            assert_eq!(cache.seq_info(1, seq).unwrap(), plain.seq_info(1, seq).unwrap());
        }
        assert_eq!(cache.take_error().unwrap(), None);
    });
}

/// Evict, reset to far positions and fork with device arrays, compared with a CPU cache and host arrays.
#[test]
fn edits_by_device_arrays_equal_edits_by_host_arrays() {
    let Some(_turn) = cuda() else { return };
    let config = config(2, 4, 3, 12);
    let (mut cache, mut plain) = (new_cache(&config), cpu(&config));
    let mut t = Tensors::new(14);
    let mut random = Random(9);
    for round in 0..12 {
        let batch = Batch::new(&[0, 1, 2], &[5, 4, 5]);
        t.draw(&mut random, 14);
        for layer in 0..2 {
            t.feed(&mut cache, layer, batch);
            close(&t.out.read(), &t.feed_cpu(&mut plain, layer, batch));
        }
        let ids = Buf::new(&[0_i32, -1, 2]);
        // SAFETY: the arrays are in device memory and outlive the work: each arm waits for it.
        unsafe {
            match round % 3 {
                0 => {
                    let n = Buf::new(&[2_i32, 5, 1]);
                    cache.evict_on_device(arrays(&ids, Some(&n), None)).unwrap();
                    with_host(|host| host.wait());
                    plain.evict(&[0, -1, 2], &[2, 5, 1]).unwrap();
                }
                1 => {
                    let starts = Buf::new(&[1_u64 << 40, 0, (1 << 32) + 7]);
                    cache.reset_on_device(arrays(&ids, None, Some(&starts))).unwrap();
                    with_host(|host| host.wait());
                    plain.reset(&[0, -1, 2], Some(&[1 << 40, 0, (1 << 32) + 7])).unwrap();
                }
                _ => {
                    let sources = Buf::new(&[1_i32, 2, 1]);
                    cache.fork_on_device(arrays(&ids, Some(&sources), None)).unwrap();
                    with_host(|host| host.wait());
                    plain.fork(&[1, 2, 1], &[0, -1, 2]).unwrap();
                }
            }
        }
        for seq in 0..3 {
            cache.read_back(seq).unwrap();
            assert_eq!(cache.seq_info(0, seq).unwrap(), plain.seq_info(0, seq).unwrap(), "round {round}");
        }
    }
    assert_eq!(cache.take_error().unwrap(), None);
}

/// An edit that the device rejects changes no layer, and has the status that the host would have returned.
#[test]
fn rejected_edits_change_nothing() {
    let Some(_turn) = cuda() else { return };
    let config = config(2, 3, 1, 6);
    let mut cache = new_cache(&config);
    let mut t = Tensors::new(9);
    t.draw(&mut Random(1), 9);
    (0..2).for_each(|layer| t.feed(&mut cache, layer, Batch::new(&[0, 1], &[9, 0])));
    // Sequence 2 has one token more in one layer.
    t.feed(&mut cache, 0, Batch::new(&[2], &[1]));
    let state = |cache: &mut Cache, seq| {
        cache.read_back(seq).unwrap();
        [0, 1].map(|layer| cache.seq_info(layer, seq).unwrap())
    };
    let before: Vec<_> = (0..3).map(|seq| state(&mut cache, seq)).collect();
    let ids = Buf::new(&[0_i32]);
    let third = Buf::new(&[2_i32]);
    type Edit = unsafe fn(&mut Cache, DeviceEdit) -> sinkcache::Result<()>;
    let cases: [(Edit, &Buf<i32>, i32, Status, u32); 6] = [
        (Cache::evict_on_device, &ids, 7, Status::OutOfRange, 3),
        (Cache::rewind_on_device, &ids, 10, Status::OutOfRange, 4),
        (Cache::rewind_on_device, &ids, -1, Status::InvalidArgument, 4),
        (Cache::rewind_on_device, &third, 1, Status::LayersOutOfStep, 4),
        (Cache::fork_on_device, &ids, 2, Status::LayersOutOfStep, 6),
        (Cache::fork_on_device, &ids, 0, Status::InvalidArgument, 6),
    ];
    for (edit, ids, n, status, call) in cases {
        let n_tokens = Buf::new(&[n]);
        // SAFETY: the arrays are in device memory and outlive the work.
        unsafe { edit(&mut cache, arrays(ids, Some(&n_tokens), None)) }.unwrap();
        with_host(|host| host.wait());
        let error = cache.take_error().unwrap().expect("a rejected edit");
        assert_eq!((error.status, error.call, error.layer), (status as i32, call, u32::MAX), "{n}");
        let after: Vec<_> = (0..3).map(|seq| state(&mut cache, seq)).collect();
        assert_eq!(before, after);
    }
    // Aborting the step works as on the CPU.
    cache.abort_step(Some(&[2])).unwrap();
    assert_eq!(state(&mut cache, 2)[0].len_max, 0);
    cache.abort_step(None).unwrap();
    assert_eq!(state(&mut cache, 0)[0], before[0][0]);
}

/// More entries than fit into the launch parameters, padding among them.
#[test]
fn long_host_batches_are_staged() {
    let Some(_turn) = cuda() else { return };
    let n_seqs = 150;
    let config = config(1, n_seqs, 1, 5);
    let (mut cache, mut plain) = (new_cache(&config), cpu(&config));
    let ids: Vec<i32> = (0..n_seqs as i32).rev().flat_map(|s| if s % 3 == 0 { vec![-1, s] } else { vec![s] }).collect();
    let counts: Vec<i32> = ids.iter().enumerate().map(|(i, _)| (i % 3) as i32).collect();
    let rows = counts.iter().sum::<i32>() as usize;
    let mut t = Tensors::new(rows);
    let mut random = Random(2);
    let starts: Vec<u64> = ids.iter().map(|&s| if s < 0 { 9 } else { 1 << (s % 50) }).collect();
    cache.reset(&ids, Some(&starts)).unwrap();
    plain.reset(&ids, Some(&starts)).unwrap();
    for _ in 0..4 {
        t.draw(&mut random, rows);
        let batch = Batch::new(&ids, &counts);
        t.feed(&mut cache, 0, batch);
        close(&t.out.read(), &t.feed_cpu(&mut plain, 0, batch));
        let few: Vec<i32> = ids.iter().map(|&s| i32::from(s % 7 == 0)).collect();
        let held: Vec<i32> =
            ids.iter().zip(&few).map(|(&s, &n)| if s >= 0 && held(&plain, s) { n } else { 0 }).collect();
        cache.evict(&ids, &held).unwrap();
        plain.evict(&ids, &held).unwrap();
        for seq in 0..n_seqs as i32 {
            cache.read_back(seq).unwrap();
            assert_eq!(cache.seq_info(0, seq).unwrap(), plain.seq_info(0, seq).unwrap());
        }
    }
    assert_eq!(cache.take_error().unwrap(), None);
}

fn held(cache: &Cache, seq: i32) -> bool {
    let info = cache.seq_info(0, seq).unwrap();
    info.cached > info.len_min.min(1)
}
