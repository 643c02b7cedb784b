//! Cases that random histories do not reach: steps that stop between layers, the last stream positions, huge settings.

use sinkcache::{
    AttendTensors, Batch, Cache, CacheConfig, DType, Error, LayerConfig, RowsIn, RowsOut, SeqInfo, Status, StepTensors,
    StorageType,
};

fn config(n_layers: u32, max_chunk: u32, max_rewind: u32) -> CacheConfig {
    CacheConfig {
        n_layers,
        n_seqs: 2,
        n_q_heads: 2,
        n_kv_heads: 1,
        head_dim: 8,
        max_chunk,
        max_rewind,
        layers: vec![LayerConfig { n_sink: 2, window: 6, ..LayerConfig::default() }],
        ..CacheConfig::default()
    }
}

fn rows(n: usize, from: usize) -> Vec<f32> {
    (from * 16..(from + n) * 16).map(|i| ((i * 37) % 64) as f32 / 32.0 - 1.0).collect()
}

fn append(cache: &mut Cache, layer: u32, seq: i32, n: usize, from: usize) -> Result<(), Error> {
    let x = rows(n, from);
    cache.append(layer, Batch::new(&[seq], &[n as i32]), RowsIn::packed(&x), RowsIn::packed(&x))
}

fn attend(cache: &mut Cache, layer: u32, seq: i32, n: usize, from: usize) -> Result<Vec<f32>, Error> {
    let (q, mut out) = (rows(n, from), vec![0.0; n * 16]);
    let tensors = AttendTensors { q: RowsIn::packed(&q), out: RowsOut::packed(&mut out), lse: None };
    cache.attend(layer, Batch::new(&[seq], &[n as i32]), tensors)?;
    Ok(out)
}

fn step(cache: &mut Cache, layer: u32, n: usize, from: usize) -> Vec<f32> {
    let (x, mut out) = (rows(n, from), vec![0.0; n * 16]);
    let x = RowsIn::packed(&x);
    let tensors = StepTensors { k: x, v: x, q: x, out: RowsOut::packed(&mut out), lse: None };
    cache.step(layer, Batch::new(&[0], &[n as i32]), tensors).unwrap();
    out
}

fn status<T>(result: Result<T, Error>) -> Status {
    result.err().expect("an error").status()
}

#[test]
fn an_aborted_step_can_be_done_again() {
    let run = |abort: bool| {
        let mut cache = Cache::new(&config(2, 4, 0)).unwrap();
        let mut results = Vec::new();
        for at in 0..12 {
            if abort {
                append(&mut cache, 0, 0, 4, 1000 + at).unwrap();
                assert_eq!(status(cache.rewind(&[0], &[1])), Status::LayersOutOfStep);
                assert_eq!(status(cache.fork(&[0], &[1])), Status::LayersOutOfStep);
                let info = cache.seq_info(0, 0).unwrap();
                assert_eq!((info.len_min + 4, info.len_max), (info.len_max, 4 * at as u64 + 4));
                cache.abort_step(if at % 2 == 0 { None } else { Some(&[0]) }).unwrap();
                assert_eq!(status(attend(&mut cache, 0, 0, 1, 0)), Status::OutOfRange);
            }
            for layer in 0..2 {
                append(&mut cache, layer, 0, 4, 4 * at).unwrap();
                results.extend(attend(&mut cache, layer, 0, 4, 4 * at).unwrap());
            }
        }
        results
    };
    assert_eq!(run(true), run(false));
}

/// A batch that is in step is taken where a forward pass in order would bring it, and nowhere else.
#[test]
fn a_batch_in_step_follows_a_forward_pass() {
    let mut cache = Cache::new(&config(3, 8, 0)).unwrap();
    let call = |cache: &mut Cache, layer, seqs: &[i32], n: &[i32], step: bool| {
        let rows = Batch::new(seqs, n).rows() as usize;
        let (x, mut out) = (self::rows(rows, 0), vec![0.0; rows * 16]);
        let (x, batch) = (RowsIn::packed(&x), Batch::new(seqs, n).in_step());
        let before = infos(cache);
        let outcome = if step {
            let tensors = StepTensors { k: x, v: x, q: x, out: RowsOut::packed(&mut out), lse: None };
            cache.step(layer, batch, tensors)
        } else {
            cache.append(layer, batch, x, x)
        };
        assert!(outcome.is_ok() || infos(cache) == before);
        outcome
    };
    for step in [false, true] {
        let mut ok = |layer, seqs: &[i32], n: &[i32]| call(&mut cache, layer, seqs, n, step).unwrap();
        // Two passes: ragged, and of one sequence alone.
        (0..3).for_each(|layer| ok(layer, &[1, -1, 0], &[5, 2, 3]));
        (0..3).for_each(|layer| ok(layer, &[0], &[1]));
        // A third ends behind layer 0.
        ok(0, &[0, 1], &[2, 1]);
        let mut refused = |layer, seqs: &[i32], n: &[i32]| {
            let error = call(&mut cache, layer, seqs, n, step).unwrap_err();
            assert_eq!(error.status(), Status::LayersOutOfStep, "{error}");
            error
        };
        // The next pass, a layer that is left out, and other counts.
        let error = refused(0, &[1], &[1]);
        assert!(error.message().contains("in layer 1: with 1 more for layer 0"), "{error}");
        refused(2, &[0, 1], &[2, 1]);
        refused(1, &[0, 1], &[2, 2]);
        refused(1, &[0, 1], &[1, 1]);
        // What is not in step is as before, and the rest of the pass is taken.
        let mut ok = |layer, seqs: &[i32], n: &[i32]| call(&mut cache, layer, seqs, n, step).unwrap();
        (1..3).for_each(|layer| ok(layer, &[0, 1], &[2, 1]));
        ok(0, &[0], &[1]);
        cache.abort_step(None).unwrap();
        let mut ok = |layer, seqs: &[i32], n: &[i32]| call(&mut cache, layer, seqs, n, step).unwrap();
        (0..3).for_each(|layer| ok(layer, &[0], &[4]));
    }
}

fn infos(cache: &Cache) -> Vec<SeqInfo> {
    (0..3).flat_map(|layer| (0..2).map(move |seq| cache.seq_info(layer, seq).unwrap())).collect()
}

#[test]
fn an_abort_that_cannot_bring_tokens_back_says_so() {
    let mut cache = Cache::new(&config(2, 4, 0)).unwrap();
    for layer in 0..2 {
        step(&mut cache, layer, 20, 0);
    }
    step(&mut cache, 0, 30, 20);
    assert_eq!(status(cache.abort_step(None)), Status::TokensGone);
    assert_eq!(status(cache.abort_step(Some(&[0]))), Status::TokensGone);
    cache.abort_step(Some(&[1, -1])).unwrap();
    cache.reset(&[0], None).unwrap();
    cache.abort_step(None).unwrap();
    let fresh = step(&mut Cache::new(&config(2, 4, 0)).unwrap(), 0, 9, 0);
    assert_eq!(step(&mut cache, 0, 9, 0), fresh);
}

#[test]
fn edits_end_the_latest_append() {
    let mut cache = Cache::new(&config(1, 8, 8)).unwrap();
    append(&mut cache, 0, 0, 8, 0).unwrap();
    assert_eq!(status(attend(&mut cache, 0, 0, 9, 0)), Status::OutOfRange);
    attend(&mut cache, 0, 0, 8, 0).unwrap();
    // Edits of 0 tokens have no effect.
    cache.evict(&[0], &[0]).unwrap();
    cache.rewind(&[0], &[0]).unwrap();
    attend(&mut cache, 0, 0, 8, 0).unwrap();
    cache.fork(&[0], &[1]).unwrap();
    assert_eq!(attend(&mut cache, 0, 1, 8, 0).unwrap(), attend(&mut cache, 0, 0, 8, 0).unwrap());
    cache.rewind(&[0], &[1]).unwrap();
    assert_eq!(status(attend(&mut cache, 0, 0, 1, 0)), Status::OutOfRange);
    append(&mut cache, 0, 0, 2, 0).unwrap();
    cache.evict(&[0], &[1]).unwrap();
    assert_eq!(status(attend(&mut cache, 0, 0, 1, 0)), Status::OutOfRange);
    assert_eq!(status(append(&mut cache, 0, 0, 9, 0)), Status::ChunkTooLong);
}

#[test]
fn the_last_position_is_the_last() {
    let mut cache = Cache::new(&config(1, 8, 8)).unwrap();
    cache.reset(&[0], Some(&[u64::MAX - 5])).unwrap();
    append(&mut cache, 0, 0, 5, 0).unwrap();
    let got = attend(&mut cache, 0, 0, 5, 0).unwrap();
    assert_eq!(status(append(&mut cache, 0, 0, 1, 0)), Status::OutOfRange);
    let mut near = Cache::new(&config(1, 8, 8)).unwrap();
    append(&mut near, 0, 0, 5, 0).unwrap();
    let want = attend(&mut near, 0, 0, 5, 0).unwrap();
    // The stored f16 keys are rotated by other angles: equal within their rounding.
    assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 2e-3));
}

#[test]
fn memory_that_cannot_be_allocated_is_a_status() {
    let huge = |n_seqs, window| {
        let layers = vec![LayerConfig { window, ..LayerConfig::default() }];
        CacheConfig {
            n_layers: 65_536,
            n_seqs,
            n_q_heads: 65_536,
            n_kv_heads: 65_536,
            head_dim: 512,
            layers,
            ..config(1, 8, 8)
        }
    };
    for config in [huge(1 << 24, u32::MAX), huge(1, u32::MAX), huge(1 << 24, 1)] {
        assert_eq!(status(Cache::new(&config)), Status::OutOfMemory);
    }
    assert_eq!(status(Cache::footprint(&huge(1 << 24, u32::MAX))), Status::OutOfMemory);
    let one = CacheConfig { n_layers: 1, n_q_heads: 1, n_kv_heads: 1, head_dim: 8, ..huge(1, u32::MAX) };
    assert!(Cache::footprint(&one).unwrap().host > u64::from(u32::MAX) * 8 * 2 * 2);
}

#[test]
fn an_empty_batch_is_nothing() {
    let mut cache = Cache::new(&config(1, 8, 8)).unwrap();
    let x = RowsIn::packed(&[0.0_f32; 0]);
    for (ids, counts) in [(&[][..], &[][..]), (&[-1, 0], &[0, 0])] {
        cache.append(0, Batch::new(ids, counts), x, x).unwrap();
        let tensors = AttendTensors { q: x, out: RowsOut::packed(&mut [0.0_f32; 0]), lse: None };
        cache.attend(0, Batch::new(ids, counts), tensors).unwrap();
    }
    assert_eq!(cache.seq_info(0, 0).unwrap().len_max, 0);
}

#[test]
fn a_rejected_batch_changes_nothing() {
    let mut cache = Cache::new(&config(1, 8, 8)).unwrap();
    append(&mut cache, 0, 0, 3, 0).unwrap();
    let x = rows(4, 0);
    let x = RowsIn::packed(&x);
    let mut reject = |ids: &[i32], counts: &[i32]| status(cache.append(0, Batch::new(ids, counts), x, x));
    assert_eq!(reject(&[0, 0], &[1, 1]), Status::InvalidArgument);
    assert_eq!(reject(&[1, 2], &[1, 1]), Status::OutOfRange);
    assert_eq!(reject(&[1, -2], &[1, 1]), Status::OutOfRange);
    assert_eq!(reject(&[1, 0], &[1, -1]), Status::InvalidArgument);
    assert_eq!(reject(&[1, 0], &[1]), Status::InvalidArgument);
    assert_eq!(reject(&[1, 0], &[8, 1]), Status::InvalidArgument);
    assert_eq!(status(cache.evict(&[1, 0], &[0, 2])), Status::OutOfRange);
    assert_eq!((cache.seq_info(0, 0).unwrap().len_max, cache.seq_info(0, 1).unwrap().len_max), (3, 0));
    attend(&mut cache, 0, 0, 3, 0).unwrap();
}

/// An entry of one list belongs to that of the other at the same place.
#[test]
fn lists_of_different_lengths_are_rejected() {
    let layers = vec![LayerConfig { n_sink: 2, window: 6, max_pinned: 2, max_segments: 4, ..LayerConfig::default() }];
    let mut cache = Cache::new(&CacheConfig { layers, ..config(3, 8, 8) }).unwrap();
    (0..3).for_each(|layer| append(&mut cache, layer, 0, 5, 0).unwrap());
    let before = infos(&cache);
    for rejected in [
        cache.evict(&[0], &[1, 1]),
        cache.rewind(&[0, 1], &[1]),
        cache.reset(&[0, 1], Some(&[7])),
        cache.reset(&[], Some(&[7])),
        cache.fork(&[0], &[]),
        cache.fork(&[], &[1]),
        cache.pin(&[0], &[], &[1]),
        cache.pin(&[0], &[2], &[]),
        cache.evict_range(&[0], &[2, 3], &[1]),
        cache.evict_range(&[], &[2], &[1]),
    ] {
        assert_eq!(status(rejected), Status::InvalidArgument);
    }
    assert_eq!(infos(&cache), before);
    attend(&mut cache, 0, 0, 5, 0).unwrap();
}

#[test]
fn an_error_prints_its_text() {
    let error = Cache::new(&config(0, 8, 8)).unwrap_err();
    assert!(error.message().contains("n_layers is 0"), "{error}");
    assert_eq!(error.to_string(), error.message());
    assert!(format!("{error:?}").contains(&format!("{:?}", error.message())), "{error:?}");
}

/// Rows of a type are stored as they are in the storage type of that name.
#[test]
fn each_type_of_tensors_has_a_storage_type() {
    for (dtype, stored) in
        [(DType::F32, StorageType::F32), (DType::F16, StorageType::F16), (DType::Bf16, StorageType::Bf16)]
    {
        assert_eq!(StorageType::from(dtype), stored);
    }
}

/// A token does not change a query that it is not visible to, even in the same block of keys: 0 x NaN is NaN, so masked
/// values must be skipped.
#[test]
fn poison_reaches_only_those_who_see_it() {
    let q = rows(30, 0);
    let clean = q[..30 * 8].to_vec();
    let run = |k: &[f32]| {
        let mut out = vec![0.0; 30 * 16];
        let mut cache = Cache::new(&config(1, 16, 0)).unwrap();
        let (k, q) = (RowsIn::packed(k), RowsIn::packed(&q));
        let tensors = StepTensors { k, v: k, q, out: RowsOut::packed(&mut out), lse: None };
        cache.step(0, Batch::new(&[0], &[30]), tensors).unwrap();
        out
    };
    let want = run(&clean);
    for at in 2..30 {
        let mut poisoned = clean.clone();
        poisoned[at * 8..(at + 1) * 8].fill(f32::NAN);
        let got = run(&poisoned);
        for row in 0..30 {
            let (got, want) = (&got[row * 16..(row + 1) * 16], &want[row * 16..(row + 1) * 16]);
            // The window is 6 tokens, the query's own included.
            let visible = (at..at + 6).contains(&row);
            assert_eq!(got.iter().any(|x| x.is_nan()), visible, "token {at}, query {row}");
            assert!(visible || got == want, "token {at} changed query {row}");
        }
    }
}

/// An abort succeeds exactly as long as the step has not overwritten a token that is visible without it. Sinks and
/// pins, which have slots of their own, make no difference. The step can then be done again.
#[test]
fn an_abort_knows_which_tokens_are_overwritten() {
    const HELD: usize = 20;
    for (n_sink, max_pinned, max_rewind) in [(0, 0, 0), (2, 0, 0), (2, 3, 0), (5, 0, 7)] {
        let plain = config(2, 4, max_rewind);
        let room = LayerConfig { n_sink, max_pinned, max_segments: max_pinned, ..plain.layers[0].clone() };
        let config = CacheConfig { layers: vec![room], ..plain };
        let spare = config.max_chunk.max(max_rewind) as usize;
        for n in 1..spare + 8 {
            let mut cache = Cache::new(&config).unwrap();
            let both = |cache: &mut Cache, n, from| [0, 1].map(|layer| step(cache, layer, n, from));
            both(&mut cache, HELD, 0);
            if max_pinned > 0 {
                cache.pin(&[0], &[HELD as u64 - 2], &[2]).unwrap();
                both(&mut cache, 2, HELD);
            }
            let mut never_aborted = Cache::new(&config).unwrap();
            never_aborted.copy_sequence(0, &mut cache, 0).unwrap();
            step(&mut cache, 0, n, 100);
            let aborted = cache.abort_step(None);
            assert_eq!(aborted.is_ok(), n <= spare, "{n_sink} sinks, {max_pinned} pins, {n} tokens: {aborted:?}");
            if aborted.is_ok() {
                assert_eq!(both(&mut cache, n, 50), both(&mut never_aborted, n, 50), "{n_sink} sinks, {n} tokens");
            }
        }
    }
}

#[test]
fn a_first_step_can_always_be_aborted() {
    let mut cache = Cache::new(&config(2, 4, 0)).unwrap();
    cache.reset(&[0], Some(&[1 << 33])).unwrap();
    step(&mut cache, 0, 100, 0);
    cache.abort_step(None).unwrap();
    let info = cache.seq_info(0, 0).unwrap();
    assert_eq!((info.len_max, info.start_position), (0, 1 << 33));
    let mut fresh = Cache::new(&config(2, 4, 0)).unwrap();
    fresh.reset(&[0], Some(&[1 << 33])).unwrap();
    for layer in 0..2 {
        assert_eq!(step(&mut cache, layer, 30, 7), step(&mut fresh, layer, 30, 7));
    }
}

/// A sink whose score is minus infinity (its key overflowed the storage type) gets probability 0, and does not change
/// others.
#[test]
fn a_key_of_no_weight_is_no_key() {
    let layers = vec![LayerConfig { n_sink: 1, window: 1, ..LayerConfig::default() }];
    let mut cache = Cache::new(&CacheConfig { layers, ..config(1, 8, 0) }).unwrap();
    let (mut k, q) = (vec![0.1_f32; 3 * 8], vec![1.0_f32; 3 * 16]);
    // The last pair of dims has the lowest frequency: both stay negative for the first three positions.
    (k[3], k[7]) = (-1e6, -1e6);
    let v: Vec<f32> = (0..3 * 8).map(|i| (i / 8) as f32).collect();
    let (mut out, mut lse) = (vec![0.0_f32; 3 * 16], vec![0.0_f32; 3 * 2]);
    let tensors = StepTensors {
        k: RowsIn::packed(&k),
        v: RowsIn::packed(&v),
        q: RowsIn::packed(&q),
        out: RowsOut::packed(&mut out),
        lse: Some(RowsOut::packed(&mut lse)),
    };
    cache.step(0, Batch::new(&[0], &[3]), tensors).unwrap();
    assert!(out[16..32].iter().all(|&x| x == 1.0) && out[32..].iter().all(|&x| x == 2.0), "{out:?}");
    assert!(lse[2..].iter().all(|x| x.is_finite()));
}

/// All values are 1, so every result is 1 up to the rounding of the sums, which must not grow with the window.
#[test]
fn long_windows_keep_their_digits() {
    const N: usize = 1 << 18;
    let layers = vec![LayerConfig { n_sink: 4, window: N as u32, ..LayerConfig::default() }];
    let mut cache = Cache::new(&CacheConfig { layers, max_chunk: 1 << 14, ..config(1, 8, 0) }).unwrap();
    let (k, ones) = (rows(1 << 13, 0), vec![1.0_f32; 8 << 14]);
    for _ in 0..N >> 14 {
        let batch = Batch::new(&[0], &[1 << 14]);
        cache.append(0, batch, RowsIn::packed(&k), RowsIn::packed(&ones)).unwrap();
    }
    let worst = attend(&mut cache, 0, 0, 4, 0).unwrap().iter().fold(0.0_f32, |m, x| m.max((x - 1.0).abs()));
    assert!(worst <= 3e-6, "{worst:e}");
}

/// Rows of scratch are as long as the longer of K and V: those of short heads take a part.
#[test]
fn queries_of_short_heads_are_turned() {
    let layer = LayerConfig { n_sink: 1, window: 12, max_pinned: 4, max_segments: 4, ..LayerConfig::default() };
    let base = config(1, 4, 0);
    let config = CacheConfig { head_dim: 24, head_dim_v: 64, layers: vec![layer], ..base };
    let outputs = [StorageType::F32, StorageType::Q8].map(|k| {
        let mut cache = Cache::new(&CacheConfig { k_dtype: Some(k), ..config.clone() }).unwrap();
        let mut out = vec![f32::NAN; 2 * 64];
        for at in 0..30 {
            let [q, k, v] = [2 * 24, 24, 64].map(|n| (0..n).map(move |i| ((at * n + i) * 37 % 64) as f32 / 32.0 - 1.0));
            let [q, k, v] = [q.collect::<Vec<_>>(), k.collect(), v.collect()];
            let [q, k, v] = [&q, &k, &v].map(|x| RowsIn::packed(x));
            let tensors = StepTensors { k, v, q, out: RowsOut::packed(&mut out), lse: None };
            cache.step(0, Batch::new(&[0], &[1]), tensors).unwrap();
            if at == 10 {
                cache.pin(&[0], &[5], &[3]).unwrap();
                cache.evict_range(&[0], &[9], &[1]).unwrap();
            }
        }
        assert_eq!(cache.seq_info(0, 0).unwrap().segments, 3);
        out
    });
    for (a, b) in outputs[0].iter().zip(&outputs[1]) {
        assert!((a - b).abs() < 2e-2, "{a}, {b} with keys in q8");
    }
}
