//! Pins and evicted ranges on the device: what attention sees, where rows go, arrays in device memory, graphs.

use half::{bf16, f16};
use sinkcache::{
    AttendTensors, BackendKind, Batch, Cache, CacheConfig, DType, DeviceBatch, DeviceEdit, HostTag, LayerConfig,
    PositionMode, RowsIn, Status, StorageType,
};

use crate::common::device::{Buf, Host, with_host};
use crate::common::quantised::KvTypes;
use crate::common::{new_cache, transfer};
use crate::differential::{Pair, SHAPES, Tally, draw_config, draw_types};
use crate::support::{Graph, Random, Tensors, config, cuda};

const TAG: HostTag = [5; 32];

/// A pin, or an evict_range, of tokens of one sequence.
#[derive(Clone, Copy, Debug)]
struct Edit {
    pins: bool,
    seq: i32,
    first: u64,
    n: i32,
}

impl Edit {
    fn on(self, cache: &mut Cache) -> Result<(), Status> {
        let edit = if self.pins { Cache::pin } else { Cache::evict_range };
        edit(cache, &[self.seq], &[self.first], &[self.n]).map_err(|e| e.status())
    }

    /// With arrays in device memory that hold it now. Returns the status of the entry, if the device has skipped it.
    fn on_device(self, cache: &mut Cache) -> Result<(), i32> {
        let (ids, n_tokens, first) = (Buf::new(&[self.seq]), Buf::new(&[self.n]), Buf::new(&[self.first]));
        let arrays = edit_arrays(&ids, &n_tokens, &first);
        // SAFETY: the arrays are in device memory until the work has been waited for.
        unsafe { if self.pins { cache.pin_on_device(arrays) } else { cache.evict_range_on_device(arrays) } }.unwrap();
        with_host(|host| host.wait());
        let Some(error) = cache.take_error().unwrap() else { return Ok(()) };
        assert_eq!((error.call, error.seq_id, error.entry), (if self.pins { 9 } else { 10 }, self.seq, 0));
        assert_eq!((error.value, error.count), (i64::from(self.n) as u64, 1));
        Err(error.status)
    }
}

fn edit_arrays(ids: &Buf<i32>, n_tokens: &Buf<i32>, first: &Buf<u64>) -> DeviceEdit {
    DeviceEdit {
        seq_ids: ids.address,
        n_tokens: n_tokens.address,
        first: first.address,
        positions: 0,
        n_entries: ids.len as u32,
    }
}

/// Some edit of what a sequence of `len` tokens may hold; now and then one that is refused.
fn draw_edit(random: &mut Random, seq: i32, len: u64, window: u64) -> Edit {
    let pins = random.below(5) < 2;
    let longest = [2, 7, 25][random.below(3) as usize];
    let n = 1 + random.below(longest);
    let back = match random.below(8) {
        0 => random.below(len + 3),
        1 => window.saturating_sub(random.below(6)),
        _ => n + random.below(window.min(len).max(1)),
    };
    Edit { pins, seq, first: len.saturating_sub(back), n: n as i32 }
}

fn save(cache: &mut Cache, seq: i32) -> Vec<u8> {
    let mut bytes = vec![0; cache.snapshot_bytes(seq).unwrap()];
    cache.save_sequence(seq, &TAG, &mut bytes).unwrap();
    bytes
}

/// The results of a step, those of rows that it does not have as NaN.
fn bits(t: &Tensors) -> Vec<u32> {
    t.out.read().into_iter().map(f32::to_bits).collect()
}

fn with_room(layer: &LayerConfig, max_pinned: u32, max_segments: u32) -> LayerConfig {
    LayerConfig { max_pinned, max_segments, ..layer.clone() }
}

/// How many of something; `SKC_STREAMS` for short runs.
fn streams() -> usize {
    std::env::var("SKC_STREAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(44)
}

/// Random edits between steps, chunks, evicts, rewinds and forks, in every shape: the device attends as the CPU does.
#[test]
fn segments_agree_with_the_cpu() {
    let Some(_turn) = cuda() else { return };
    let seed = std::env::var("SKC_SEED").ok().and_then(|n| n.parse::<u64>().ok()).unwrap_or(1);
    let shape = std::env::var("SKC_SHAPE").ok().and_then(|n| n.parse::<usize>().ok());
    let mut random = Random(2 * seed + 1);
    let mut counts = [0_usize; 4];
    for stream in 0..streams() {
        let shape = SHAPES[shape.unwrap_or(stream) % SHAPES.len()];
        let types = draw_types(&mut random, shape.dtype);
        let mut config = types.config(draw_config(&mut random, shape));
        // Longer than what is pinned at a time, so that edits wrap.
        config.layers[0].window = 20 + random.below(120) as u32;
        let (max_pinned, max_segments) = (20 + random.below(60) as u32, 4 + random.below(16) as u32);
        config.layers[0] = with_room(&config.layers[0], max_pinned, max_segments);
        let window = config.layers[0].window.into();
        let mut pair = Pair::new(config);
        let start = [0, (1 << 24) - 5, (1 << 32) + 7, 1 << 40][random.below(4) as usize];
        pair.device.reset(&[0, 1], Some(&[start, start])).unwrap();
        pair.cpu.reset(&[0, 1], Some(&[start, start])).unwrap();
        let mut tally = Tally::default();
        for _ in 0..9 {
            let n = match random.below(8) {
                0..3 => [1, 1],
                3..5 => [1 + random.below(8) as usize, random.below(3) as usize],
                5..7 => [random.below(96) as usize, 1 + random.below(20) as usize],
                _ => [random.below(190) as usize, random.below(40) as usize],
            };
            let one_call = n.iter().any(|&n| n > 96) || random.below(2) == 0;
            match pair.config.in_dtype {
                DType::F16 => pair.step(&mut random, n, one_call, f16::from_f32, &mut tally),
                _ => pair.step(&mut random, n, one_call, bf16::from_f32, &mut tally),
            }
            for _ in 0..2 + random.below(6) {
                let seq = i32::from(random.below(4) != 0);
                let edit = draw_edit(&mut random, seq, pair.cpu.seq_info(0, seq).unwrap().len_max, window);
                let outcome = edit.on(&mut pair.device);
                assert_eq!(outcome, edit.on(&mut pair.cpu), "{edit:?}");
                counts[usize::from(outcome.is_ok())] += 1;
            }
            match random.below(8) {
                0 => {
                    pair.device.fork(&[1], &[0]).unwrap();
                    pair.cpu.fork(&[1], &[0]).unwrap();
                }
                1 if pair.cpu.seq_info(0, 1).unwrap().rewindable >= 2 => {
                    pair.device.rewind(&[1], &[2]).unwrap();
                    pair.cpu.rewind(&[1], &[2]).unwrap();
                }
                _ => {}
            }
            for seq in 0..2 {
                pair.device.read_back(seq).unwrap();
                let info = pair.device.seq_info(0, seq).unwrap();
                assert_eq!(info, pair.cpu.seq_info(0, seq).unwrap());
                counts[2] += 1;
                counts[3] += info.segments as usize;
            }
        }
        assert_eq!(pair.device.take_error().unwrap(), None);
        let bound = if types.k == StorageType::F16 { 1.5e-3 } else { 1.5e-2 };
        assert!(tally.relative() <= bound, "{}: {:?}", tally.relative(), pair.config);
    }
    println!(
        "{} edits, {} refused; {:.1} segments on average",
        counts[1],
        counts[0],
        counts[3] as f64 / counts[2] as f64
    );
    assert!(counts[1] > 2 * streams() && counts[3] > 2 * counts[2], "too few: {counts:?}");
}

/// One sequence of plain rows of any length in a cache on either backend.
fn append(cache: &mut Cache, config: &CacheConfig, random: &mut Random, n: usize) {
    let dim = (config.n_kv_heads * config.head_dim) as usize;
    let (k, v) = (random.rows(n * dim), random.rows(n * dim));
    for layer in 0..config.n_layers {
        let counts = [n as i32];
        let batch = Batch::new(&[0], &counts);
        if config.backend == BackendKind::Cuda {
            let (k, v) = (Buf::new(&k), Buf::new(&v));
            cache.append(layer, batch, k.rows(), v.rows()).unwrap();
            with_host(|host| host.wait());
        } else {
            cache.append(layer, batch, RowsIn::packed(&k), RowsIn::packed(&v)).unwrap();
        }
    }
}

/// Rows move by their bits: both backends hold the same after the same edits, in every storage type, for rows of every
/// alignment, in windows longer than what a block moves at a time.
#[test]
fn rows_move_as_on_the_cpu() {
    let Some(_turn) = cuda() else { return };
    let types = [
        (KvTypes::new(StorageType::F32, StorageType::F16), 8),
        (KvTypes::new(StorageType::Bf16, StorageType::Q8), 40),
        (KvTypes::new(StorageType::Q8, StorageType::Q4), 24),
        (KvTypes::new(StorageType::Q4, StorageType::Q4), 8),
        (KvTypes::new(StorageType::F32, StorageType::F32), 64),
    ];
    let mut accepted = 0;
    for (round, (types, head_dim)) in types.into_iter().enumerate() {
        let mut random = Random(round as u64 + 3);
        // The second layer ignores pins, the third has no room for ranges.
        let wide = LayerConfig { n_sink: 3, window: 190, position_mode: PositionMode::None, ..LayerConfig::default() };
        let narrow = LayerConfig { n_sink: 1, window: 37, ..wide.clone() };
        let config = types.config(CacheConfig {
            n_layers: 2,
            head_dim,
            in_dtype: DType::F32,
            max_chunk: 64,
            layers: vec![with_room(&wide, 60, 9), with_room(&narrow, 0, 9)],
            ..config(2, 1, 0, 1)
        });
        let mut device = new_cache(&config);
        let plain = CacheConfig { backend: BackendKind::Cpu, ..config.clone() };
        for _ in 0..5 {
            append(&mut device, &config, &mut random, 60);
            // Codes may differ in ties: the CPU goes on with those of the device.
            let mut cpu = Cache::new(&plain).unwrap();
            cpu.load_sequence(0, &TAG, &save(&mut device, 0)).unwrap();
            assert_eq!(save(&mut cpu, 0), save(&mut device, 0));
            for _ in 0..6 {
                let len = cpu.seq_info(0, 0).unwrap().len_max;
                let edit = draw_edit(&mut random, 0, len, 190);
                let outcome = edit.on(&mut cpu);
                assert_eq!(edit.on(&mut device), outcome, "{edit:?}");
                accepted += usize::from(outcome.is_ok());
                device.read_back(0).unwrap();
                for layer in 0..2 {
                    assert_eq!(device.seq_info(layer, 0).unwrap(), cpu.seq_info(layer, 0).unwrap());
                }
                assert!(save(&mut device, 0) == save(&mut cpu, 0), "{types:?}: rows after {edit:?}");
            }
        }
        assert_eq!(device.take_error().unwrap(), None);
    }
    assert!(accepted > 60, "only {accepted} edits were accepted");
}

/// A cache whose layers differ: a wide window with pins, and a narrow one that ignores them.
fn uneven(n_seqs: u32) -> CacheConfig {
    let base = config(2, n_seqs, 2, 40);
    let layer = &base.layers[0];
    let narrow = LayerConfig { n_sink: 1, window: 13, ..layer.clone() };
    CacheConfig { layers: vec![with_room(layer, 7, 3), with_room(&narrow, 0, 4)], ..base }
}

/// What the host decides for arrays of its own, the device decides for arrays in its memory: the same edits are
/// accepted, the same are refused with the same status, and they leave the same bits.
#[test]
fn device_arrays_equal_host_arrays() {
    let Some(_turn) = cuda() else { return };
    let config = uneven(2);
    let (mut known, mut unknown) = (new_cache(&config), new_cache(&config));
    let (mut a, mut b) = (Tensors::new(8), Tensors::new(8));
    let mut random = Random(17);
    let mut seen = std::collections::BTreeMap::new();
    for round in 0..60 {
        let n = [random.below(5) as i32, 1 + random.below(4) as i32];
        let seed = random.below(u64::MAX) | 1;
        for (t, cache) in [(&mut a, &mut known), (&mut b, &mut unknown)] {
            t.draw(&mut Random(seed), 8);
            (0..2).for_each(|layer| t.feed(cache, layer, Batch::new(&[0, 1], &n)));
        }
        assert!(bits(&a) == bits(&b), "round {round}");
        for _ in 0..5 {
            let seq = random.below(2) as i32;
            let len = known.seq_info(0, seq).unwrap().len_max;
            let mut edit = draw_edit(&mut random, seq, len, 40);
            match random.below(12) {
                0 => edit.first = u64::MAX - random.below(9),
                1 => edit.first = random.below(3),
                2 => edit.n = -edit.n,
                _ => {}
            }
            let outcome = edit.on(&mut known);
            let status = outcome.err().map(|status| status as i32);
            assert_eq!(edit.on_device(&mut unknown).err(), status, "round {round}: {edit:?}");
            *seen.entry(status).or_insert(0) += 1;
            unknown.read_back(seq).unwrap();
            for layer in 0..2 {
                assert_eq!(unknown.seq_info(layer, seq).unwrap(), known.seq_info(layer, seq).unwrap(), "{edit:?}");
            }
            assert!(save(&mut unknown, seq) == save(&mut known, seq), "round {round}: rows after {edit:?}");
        }
        // No rewind may cut into what was edited.
        let (ids, n) = (Buf::new(&[1_i32]), Buf::new(&[1 + random.below(6) as i32]));
        let status = known.rewind(&[1], &n.read()).err().map(|e| e.status() as i32);
        // SAFETY: the arrays are in device memory until the work has been waited for.
        unsafe { unknown.rewind_on_device(edit_arrays(&ids, &n, &Buf::new(&[0]))) }.unwrap();
        with_host(|host| host.wait());
        assert_eq!(unknown.take_error().unwrap().map(|e| e.status), status, "round {round}: rewind {:?}", n.read());
        unknown.read_back(1).unwrap();
        // A fork has the rows and the ranges of its source.
        if round % 6 == 5 {
            for cache in [&mut known, &mut unknown] {
                cache.fork(&[1], &[0]).unwrap();
                cache.read_back(0).unwrap();
                assert!(save(cache, 0) == save(cache, 1), "round {round}");
            }
        }
        unknown.read_back(0).unwrap();
    }
    println!("{seen:?}");
    for status in [Status::OutOfRange, Status::TokensGone, Status::NoRoom, Status::InvalidArgument] {
        assert!(seen.get(&Some(status as i32)).is_some_and(|&n| n > 1), "{status:?}: {seen:?}");
    }
}

/// Where no layer has room for pins, the device refuses them too; an evict_range of a sequence whose layers differ in
/// length is refused; a sequence that appears twice is edited once.
#[test]
fn the_device_refuses_what_the_host_refuses() {
    let Some(_turn) = cuda() else { return };
    let mut cache = new_cache(&config(2, 3, 1, 9));
    let t = Tensors::new(9);
    t.draw(&mut Random(1), 9);
    (0..2).for_each(|layer| cache.append(layer, Batch::new(&[0, 1], &[6, 2]), t.k.rows(), t.v.rows()).unwrap());
    cache.append(0, Batch::new(&[2], &[2]), t.k.rows(), t.v.rows()).unwrap();
    let edit = |pins, seq, first| Edit { pins, seq, first, n: 1 };
    for (edit, status) in [
        (edit(true, 0, 3), Status::NoRoom),
        (edit(false, 0, 3), Status::NoRoom),
        (edit(false, 2, 1), Status::LayersOutOfStep),
        (edit(false, 7, 1), Status::OutOfRange),
        (edit(false, 1, 2), Status::OutOfRange),
        (edit(false, 1, 0), Status::OutOfRange),
        (Edit { n: -1, ..edit(false, 1, 1) }, Status::InvalidArgument),
    ] {
        assert_eq!(edit.on_device(&mut cache), Err(status as i32), "{edit:?}");
    }
    // The oldest tokens of the window leave no range behind.
    assert_eq!(edit(false, 0, 1).on_device(&mut cache), Ok(()));
    let (ids, n, first) = (Buf::new(&[0, -1, 0, 1]), Buf::new(&[1, 1, 1, 0]), Buf::new(&[2_u64, 5, 3, 99]));
    // SAFETY: the arrays are in device memory until the work has been waited for.
    unsafe { cache.evict_range_on_device(edit_arrays(&ids, &n, &first)) }.unwrap();
    with_host(|host| host.wait());
    let error = cache.take_error().unwrap().expect("a duplicate");
    assert_eq!((error.status, error.entry, error.count), (Status::InvalidArgument as i32, 2, 1));
    cache.read_back(0).unwrap();
    let info = cache.seq_info(0, 0).unwrap();
    assert_eq!((info.evicted, info.cached, info.counted), (2, 4, 0));
}

/// What the window had passed at an edit is gone for good, although the edit's own tokens are older.
#[test]
fn no_rewind_goes_below_the_window_of_an_edit() {
    let Some(_turn) = cuda() else { return };
    let base = config(1, 1, 1, 6);
    let config = CacheConfig { layers: vec![with_room(&base.layers[0], 2, 2)], ..base };
    let mut cache = new_cache(&config);
    let t = Tensors::new(5);
    t.draw(&mut Random(1), 5);
    cache.append(0, Batch::new(&[0], &[4]), t.k.rows(), t.v.rows()).unwrap();
    assert_eq!(Edit { pins: true, seq: 0, first: 1, n: 1 }.on_device(&mut cache), Ok(()));
    cache.append(0, Batch::new(&[0], &[5]), t.k.rows(), t.v.rows()).unwrap();
    // The window begins at token 3.
    assert_eq!(Edit { pins: false, seq: 0, first: 1, n: 1 }.on_device(&mut cache), Ok(()));
    let ids = Buf::new(&[0]);
    for (n, status) in [(7, Some(Status::TokensGone as i32)), (6, None)] {
        let n = Buf::new(&[n]);
        // SAFETY: the arrays are in device memory until the work has been waited for.
        unsafe { cache.rewind_on_device(edit_arrays(&ids, &n, &Buf::new(&[0]))) }.unwrap();
        with_host(|host| host.wait());
        assert_eq!(cache.take_error().unwrap().map(|e| e.status), status, "{:?}", n.read());
    }
    cache.read_back(0).unwrap();
    assert_eq!(cache.seq_info(0, 0).unwrap().len_max, 3);
}

/// An edit of one layer alone makes the queries of the latest append unavailable in all layers, as on the host.
#[test]
fn no_query_sees_what_was_before_an_edit() {
    let Some(_turn) = cuda() else { return };
    let mut cache = new_cache(&uneven(2));
    let mut t = Tensors::new(8);
    t.draw(&mut Random(1), 8);
    (0..2).for_each(|layer| t.feed(&mut cache, layer, Batch::new(&[0, 1], &[4, 4])));
    // The second layer ignores pins.
    assert_eq!(Edit { pins: true, seq: 0, first: 2, n: 1 }.on_device(&mut cache), Ok(()));
    let (ids, n) = (Buf::new(&[0_i32, 1]), Buf::new(&[1_i32, 1]));
    let batch = DeviceBatch { seq_ids: ids.address, n_tokens: n.address, n_entries: 2, max_tokens: 4, n_rows: 8 };
    for layer in 0..2 {
        let tensors = AttendTensors { q: t.q.rows(), out: t.out.rows_out(), lse: None };
        // SAFETY: the arrays are in device memory until the work has been waited for.
        cache.attend(layer, unsafe { Batch::on_device(batch) }, tensors).unwrap();
        with_host(|host| host.wait());
        let error = cache.take_error().unwrap().expect("queries of an edited sequence");
        assert_eq!((error.status, error.entry, error.count), (Status::OutOfRange as i32, 0, 1), "layer {layer}");
    }
}

/// Replays of one graph: enough to wrap rings and to pass ranges many times.
fn replays() -> usize {
    std::env::var("SKC_REPLAYS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000)
}

/// Enters the stream of the thread.
fn set_stream(cache: &mut Cache, host: &Host) {
    // SAFETY: the host's stream lives as long as the thread.
    unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
}

/// A step, a pin and an evict_range with device arrays in one graph, replayed with other arrays each time: bit for bit
/// what eager calls give.
#[test]
fn replayed_edits_equal_eager_calls() {
    let Some(_turn) = cuda() else { return };
    let config = uneven(2);
    let (mut replayed, mut eager) = (new_cache(&config), new_cache(&config));
    let (mut a, mut b) = (Tensors::new(2), Tensors::new(2));
    let (ids, batch) = (Buf::new(&[0_i32, 1]), Batch::new(&[0, 1], &[1, 1]));
    let arrays = [(); 2].map(|()| (Buf::new(&[0_i32, 0]), Buf::new(&[0_u64, 0])));
    with_host(|host| {
        let graph = Graph::capture(host, || {
            set_stream(&mut replayed, host);
            (0..2).for_each(|layer| a.step(&mut replayed, layer, batch));
            // SAFETY: the arrays outlive the graph.
            unsafe {
                replayed.pin_on_device(edit_arrays(&ids, &arrays[0].0, &arrays[0].1)).unwrap();
                replayed.evict_range_on_device(edit_arrays(&ids, &arrays[1].0, &arrays[1].1)).unwrap();
            }
        });
        set_stream(&mut replayed, host);
        let mut random = Random(23);
        let mut edits = 0;
        for i in 0..replays() {
            let seed = random.below(u64::MAX) | 1;
            a.draw(&mut Random(seed), 2);
            b.draw(&mut Random(seed), 2);
            (0..2).for_each(|layer| b.step(&mut eager, layer, batch));
            // Decided on the eager cache; what it refuses is refused on the device, too.
            for (pins, (n_tokens, first)) in [true, false].into_iter().zip(&arrays) {
                let drawn = [0, 1].map(|seq| {
                    let len = eager.seq_info(0, seq).unwrap().len_max;
                    let edit = Edit { pins, ..draw_edit(&mut random, seq, len, 40) };
                    if random.below(3) == 0 && edit.first > 1 { edit } else { Edit { n: 0, ..edit } }
                });
                n_tokens.write(&drawn.map(|edit| edit.n));
                first.write(&drawn.map(|edit| edit.first));
                edits += drawn.iter().filter(|edit| edit.n > 0 && edit.on(&mut eager).is_ok()).count();
            }
            graph.launch(host);
            assert!(bits(&a) == bits(&b), "replay {i}");
        }
        println!("{} replays, {edits} edits", replays());
        // In a short run the sequences are too short for most of them.
        let least = if replays() < 200 { 0 } else { replays() / 4 };
        assert!(edits > least, "only {edits} edits");
        // The host cannot count what it does not see.
        let refused = replayed.note_replay(None, &[0], &[1]).unwrap_err();
        assert_eq!(refused.status(), Status::LengthUnknown);
        assert!(refused.message().contains("read-back"), "{refused}");
        assert_eq!(replayed.seq_info(0, 0).unwrap_err().status(), Status::LengthUnknown);
        for seq in 0..2 {
            replayed.read_back(seq).unwrap();
            for layer in 0..2 {
                assert_eq!(replayed.seq_info(layer, seq).unwrap(), eager.seq_info(layer, seq).unwrap());
            }
            assert!(save(&mut replayed, seq) == save(&mut eager, seq), "rows of sequence {seq}");
        }
        replayed.note_replay(None, &[0], &[0]).unwrap();
    });
}

/// Edits captured with arrays of the host: their sequences alone become unknown to `note_replay`, until a reset, a load
/// or a copy.
#[test]
fn captured_edits_of_host_arrays_end_with_a_reset() {
    let Some(_turn) = cuda() else { return };
    let config = uneven(2);
    let (mut replayed, mut eager) = (new_cache(&config), new_cache(&config));
    let mut t = Tensors::new(16);
    t.draw(&mut Random(3), 16);
    with_host(|host| {
        for cache in [&mut replayed, &mut eager] {
            set_stream(cache, host);
            (0..2).for_each(|layer| t.feed(cache, layer, Batch::new(&[0, 1], &[12, 4])));
        }
        let graph = Graph::capture(host, || {
            set_stream(&mut replayed, host);
            replayed.pin(&[0], &[3], &[2]).unwrap();
            replayed.evict_range(&[0], &[7], &[3]).unwrap();
        });
        set_stream(&mut replayed, host);
        graph.launch(host);
        eager.pin(&[0], &[3], &[2]).unwrap();
        eager.evict_range(&[0], &[7], &[3]).unwrap();
        assert_eq!(replayed.note_replay(None, &[0], &[0]).unwrap_err().status(), Status::LengthUnknown);
        replayed.note_replay(None, &[1], &[0]).unwrap();
        assert!(save(&mut replayed, 1) == save(&mut eager, 1));
        replayed.read_back(0).unwrap();
        assert!(save(&mut replayed, 0) == save(&mut eager, 0));
        // A replay changes nothing more: the tokens are pinned, and gone. The host does not know that.
        graph.launch(host);
        replayed.read_back(0).unwrap();
        assert!(save(&mut replayed, 0) == save(&mut eager, 0));
        Graph::capture(host, || {
            set_stream(&mut replayed, host);
            replayed.evict_range(&[1], &[2], &[1]).unwrap();
        });
        set_stream(&mut replayed, host);
        assert_eq!(replayed.note_replay(None, &[1], &[0]).unwrap_err().status(), Status::LengthUnknown);
        replayed.reset(&[1], None).unwrap();
        replayed.note_replay(None, &[1], &[0]).unwrap();
        for copied in [false, true] {
            Graph::capture(host, || {
                set_stream(&mut replayed, host);
                replayed.pin(&[1], &[2], &[1]).unwrap();
            });
            set_stream(&mut replayed, host);
            assert_eq!(replayed.note_replay(None, &[1], &[0]).unwrap_err().status(), Status::LengthUnknown);
            transfer(&mut eager, 0, &mut replayed, 1, copied);
            replayed.note_replay(None, &[1], &[0]).unwrap();
            assert!(replayed.seq_info(0, 1).unwrap() == eager.seq_info(0, 0).unwrap());
        }
        assert_eq!(replayed.take_error().unwrap(), None);
    });
}
