//! Snapshots of sequences in device memory: what the device's kernels find after a load, and what cannot be saved.

use sinkcache::{BackendKind, Batch, Cache, CacheConfig, DeviceEdit, HostTag, Status};

use crate::common::device::{Buf, with_host};
use crate::common::{new_cache, transfer};
use crate::support::{Graph, Random, Tensors, close, config, cuda};

const TAG: HostTag = [3; 32];

/// Feeds both layers `n` drawn tokens of a sequence; the output of the last.
fn feed(cache: &mut Cache, t: &mut Tensors, seed: u64, seq: i32, n: usize) -> Vec<f32> {
    t.draw(&mut Random(seed | 1), n);
    let (ids, counts) = ([seq], [n as i32]);
    (0..2).for_each(|layer| t.feed(cache, layer, Batch::new(&ids, &counts)));
    t.out.read()
}

fn save(cache: &mut Cache, seq: i32) -> Vec<u8> {
    let mut bytes = vec![0; cache.snapshot_bytes(seq).unwrap()];
    cache.save_sequence(seq, &TAG, &mut bytes).unwrap();
    bytes
}

/// A graph that was captured before a load appends behind what was loaded: the device has its counters.
#[test]
fn a_graph_goes_on_with_what_was_loaded() {
    let Some(_turn) = cuda() else { return };
    let config = config(2, 2, 4, 30);
    let (mut eager, mut replayed) = (new_cache(&config), new_cache(&config));
    let (mut a, mut b) = (Tensors::new(16), Tensors::new(16));
    let batch = Batch::new(&[1], &[1]);
    with_host(|host| {
        let graph = Graph::capture(host, || {
            // SAFETY: the host's stream lives as long as the thread.
            unsafe { replayed.set_stream(host.stream.cast()) }.unwrap();
            (0..2).for_each(|layer| b.feed(&mut replayed, layer, batch));
        });
        // SAFETY: as above.
        unsafe { replayed.set_stream(host.stream.cast()) }.unwrap();
        for (round, start) in [0, 1 << 40, 7].into_iter().enumerate() {
            eager.reset(&[1], Some(&[start])).unwrap();
            (0..5).for_each(|i| drop(feed(&mut eager, &mut a, 100 * start + i, 1, 9)));
            if round == 1 {
                transfer(&mut eager, 1, &mut replayed, 1, true);
            } else {
                replayed.load_sequence(1, &TAG, &save(&mut eager, 1)).unwrap();
            }
            assert_eq!(replayed.seq_info(1, 1).unwrap(), eager.seq_info(1, 1).unwrap());
            for i in 0..40 {
                b.draw(&mut Random(i + 1), 1);
                graph.launch(host);
                replayed.note_replay(None, &[1], &[1]).unwrap();
                a.draw(&mut Random(i + 1), 1);
                (0..2).for_each(|layer| a.feed(&mut eager, layer, batch));
                let row = ..256;
                assert_eq!(b.out.read()[row], a.out.read()[row], "round {round}, replay {i}");
            }
            replayed.read_back(1).unwrap();
            assert_eq!(replayed.seq_info(0, 1).unwrap(), eager.seq_info(0, 1).unwrap());
        }
        assert_eq!(replayed.take_error().unwrap(), None);
    });
}

/// The device, too, brings back no more than was saved.
#[test]
fn the_device_rewinds_no_further_than_what_was_loaded() {
    let Some(_turn) = cuda() else { return };
    let config = config(2, 1, 2, 20);
    let mut small = new_cache(&CacheConfig { max_rewind: 2, ..config.clone() });
    let mut cache = new_cache(&config);
    let mut t = Tensors::new(16);
    (0..6).for_each(|i| drop(feed(&mut small, &mut t, i, 0, 9)));
    let bytes = save(&mut small, 0);
    let ids = Buf::new(&[0_i32]);
    for (n, works) in [(3_i32, false), (2, true)] {
        cache.load_sequence(0, &TAG, &bytes).unwrap();
        assert_eq!(cache.seq_info(0, 0).unwrap().rewindable, 2);
        let counts = Buf::new(&[n]);
        let edit = DeviceEdit { seq_ids: ids.address, n_tokens: counts.address, first: 0, positions: 0, n_entries: 1 };
        // SAFETY: the arrays live until the read-back has waited.
        unsafe { cache.rewind_on_device(edit) }.unwrap();
        cache.read_back(0).unwrap();
        let error = cache.take_error().unwrap();
        assert_eq!(error.map(|e| e.status), (!works).then_some(Status::TokensGone as i32));
        assert_eq!(cache.seq_info(0, 0).unwrap().len_max, if works { 52 } else { 54 });
    }
}

#[test]
fn unknown_lengths_and_captures_are_refused() {
    let Some(_turn) = cuda() else { return };
    let config = config(2, 2, 2, 20);
    let (mut cache, mut other) = (new_cache(&config), new_cache(&config));
    let mut t = Tensors::new(16);
    feed(&mut cache, &mut t, 1, 0, 12);
    let bytes = save(&mut cache, 0);
    with_host(|host| {
        let graph = Graph::capture(host, || {
            // SAFETY: the host's stream lives as long as the thread.
            unsafe {
                cache.set_stream(host.stream.cast()).unwrap();
                other.set_stream(host.stream.cast()).unwrap();
            }
            let mut out = bytes.clone();
            for refused in [
                cache.snapshot_bytes(0).map(drop),
                cache.save_sequence(0, &TAG, &mut out).map(drop),
                cache.load_sequence(0, &TAG, &bytes),
                other.copy_sequence(0, &mut cache, 0),
            ] {
                let error = refused.unwrap_err();
                assert!(error.status() == Status::InvalidArgument && error.message().contains("captured"), "{error}");
            }
            (0..2).for_each(|layer| t.feed(&mut cache, layer, Batch::new(&[0], &[1])));
        });
        // SAFETY: as above.
        unsafe {
            cache.set_stream(host.stream.cast()).unwrap();
            other.set_stream(host.stream.cast()).unwrap();
        }
        graph.launch(host);
        assert_eq!(cache.snapshot_bytes(0).unwrap_err().status(), Status::LengthUnknown);
        assert_eq!(other.copy_sequence(0, &mut cache, 0).unwrap_err().status(), Status::LengthUnknown);
        // Another sequence's length is known.
        transfer(&mut cache, 1, &mut other, 1, false);
        cache.read_back(0).unwrap();
        let now = save(&mut cache, 0);
        assert_eq!(Cache::seq_info(&cache, 0, 0).unwrap().len_max, 13);
        other.load_sequence(0, &TAG, &now).unwrap();
        assert_eq!(other.seq_info(1, 0).unwrap(), cache.seq_info(1, 0).unwrap());
        // A load makes an unknown length known.
        graph.launch(host);
        cache.load_sequence(0, &TAG, &now).unwrap();
        assert_eq!(cache.seq_info(0, 0).unwrap().len_max, 13);
    });
}

/// From device to host, and back: within tolerance of the other backend, and the bytes as they were.
#[test]
fn backends_load_each_others_snapshots() {
    let Some(_turn) = cuda() else { return };
    let config = config(2, 2, 3, 25);
    let mut gpu = new_cache(&config);
    let mut cpu = Cache::new(&CacheConfig { backend: BackendKind::Cpu, max_chunk: 5, ..config.clone() }).unwrap();
    let mut t = Tensors::new(16);
    for round in 0..6 {
        (0..3).for_each(|i| drop(feed(&mut gpu, &mut t, 10 * round + i, 0, 11)));
        let bytes = save(&mut gpu, 0);
        if round % 2 == 0 {
            cpu.load_sequence(1, &TAG, &bytes).unwrap();
        } else {
            cpu.copy_sequence(1, &mut gpu, 0).unwrap();
        }
        assert!(save(&mut cpu, 1) == bytes, "round {round}");
        if round % 2 == 0 {
            gpu.copy_sequence(0, &mut cpu, 1).unwrap();
        } else {
            gpu.load_sequence(0, &TAG, &save(&mut cpu, 1)).unwrap();
        }
        assert!(save(&mut gpu, 0) == bytes, "round {round}, back");
        let got = feed(&mut gpu, &mut t, 77 + round, 0, 4);
        t.out.write(&vec![f32::NAN; t.out.len]);
        let mut want = vec![];
        (0..2).for_each(|layer| want = t.feed_cpu(&mut cpu, layer, Batch::new(&[1], &[4])));
        close(&got, &want);
    }
}
