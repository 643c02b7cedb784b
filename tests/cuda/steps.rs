//! The fused decode step: it gives the same results as append and attend, and skc_kernel_choice predicts the launches.

use half::{bf16, f16};
use sinkcache::{
    AttendTensors, Batch, Cache, CacheConfig, DType, DeviceBatch, Element, RowsIn, Status, StepTensors, StorageType,
    TokenCall,
};

use crate::common::device::{Buf, Host, with_host};
use crate::common::new_cache;
use crate::common::quantised::KvTypes;
use crate::support::{Graph, Q, Random, Tensors, close, config, cuda};

#[derive(Clone, Copy, Debug)]
struct Case {
    head_dim: u32,
    n_q_heads: u32,
    n_kv_heads: u32,
    dtype: DType,
    /// Of K and V; `None`: as rows.
    types: Option<KvTypes>,
    /// The most tokens of one sequence that a fused step takes.
    tokens: u64,
    window: u32,
    rounds: usize,
}

const fn case(head_dim: u32, heads: (u32, u32), dtype: DType, tokens: u64, window: u32, rounds: usize) -> Case {
    Case { head_dim, n_q_heads: heads.0, n_kv_heads: heads.1, dtype, types: None, tokens, window, rounds }
}

impl Case {
    const fn stored(self, k: StorageType, v: StorageType) -> Self {
        Self { types: Some(KvTypes::new(k, v)), ..self }
    }
}

/// Long windows are split among thread blocks; the last ones store the new tokens.
const CASES: [Case; 12] = [
    case(64, (2, 2), DType::F16, 4, 37, 60),
    case(64, (4, 2), DType::Bf16, 4, 37, 60),
    case(80, (6, 2), DType::F16, 2, 37, 60),
    case(128, (4, 1), DType::Bf16, 2, 37, 60),
    case(256, (8, 1), DType::F16, 1, 37, 60),
    case(64, (2, 1), DType::Bf16, 4, 300, 200),
    case(128, (4, 1), DType::F16, 2, 256, 200),
    case(64, (4, 2), DType::Bf16, 4, 37, 60).stored(StorageType::Q8, StorageType::Q8),
    case(80, (6, 2), DType::F16, 2, 37, 60).stored(StorageType::Q4, StorageType::Q4),
    case(96, (3, 3), DType::Bf16, 4, 37, 60).stored(StorageType::Q8, StorageType::Q4),
    case(256, (8, 1), DType::F16, 1, 37, 60).stored(StorageType::Q8, StorageType::Q4),
    case(128, (4, 1), DType::Bf16, 2, 256, 200).stored(StorageType::Q4, StorageType::Q4),
];

fn shaped(case: Case) -> CacheConfig {
    let Case { head_dim, n_q_heads, n_kv_heads, dtype, window, .. } = case;
    let base = config(1, 2, 5, window);
    let types = case.types.unwrap_or(dtype.into());
    types.config(CacheConfig { n_q_heads, n_kv_heads, head_dim, in_dtype: dtype, ..base })
}

/// Two caches, one fed by fused steps and one by append and attend. Then the same attend on both must give the same
/// bits: so their slots hold the same.
fn twins_agree<T: Element>(case: Case, to: fn(f32) -> T) {
    let config = shaped(case);
    let (mut stepped, mut plain) = (new_cache(&config), new_cache(&config));
    let mut random = Random(9);
    let (wq, wk) = ((config.n_q_heads * config.head_dim) as usize, (config.n_kv_heads * config.head_dim) as usize);
    let ids = [1, 0];
    // From an empty sequence to a ring that has wrapped twice.
    let mut splits = 1;
    for round in 0..case.rounds {
        let n = [1 + random.below(case.tokens) as usize, random.below(case.tokens + 1) as usize];
        let counts = n.map(|n| n as i32);
        let (batch, rows) = (Batch::new(&ids, &counts), n[0] + n[1]);
        let mut draw = |width: usize| Buf::new(&random.rows(rows * width).into_iter().map(to).collect::<Vec<T>>());
        let (q, k, v) = (draw(wq), draw(wk), draw(wk));
        let nan = vec![f32::NAN; rows * wq];
        let [mut a, mut b] = [Buf::new(&nan), Buf::new(&nan)];
        let (mut c, mut d) = (Buf::new(&nan), Buf::new(&nan));
        let choice = stepped.kernel_choice(0, TokenCall::Step, 2, n[0].max(n[1]) as u32).unwrap();
        assert_eq!(choice.kernel, "skc_step_decode");
        splits = splits.max(choice.n_splits);
        let tensors = StepTensors { k: k.rows(), v: v.rows(), q: q.rows(), out: a.rows_out(), lse: None };
        stepped.step(0, batch, tensors).unwrap();
        plain.append(0, batch, k.rows(), v.rows()).unwrap();
        plain.attend(0, batch, AttendTensors { q: q.rows(), out: b.rows_out(), lse: None }).unwrap();
        close(&a.read(), &b.read());
        // The same queries again, by attend alone.
        stepped.attend(0, batch, AttendTensors { q: q.rows(), out: c.rows_out(), lse: None }).unwrap();
        plain.attend(0, batch, AttendTensors { q: q.rows(), out: d.rows_out(), lse: None }).unwrap();
        assert!(c.read().iter().all(|x| x.is_finite()));
        assert_eq!(c.read(), d.read(), "round {round} of {case:?}");
        if round % 7 == 6 {
            let cut = [1, 0];
            stepped.rewind(&ids, &cut).unwrap();
            plain.rewind(&ids, &cut).unwrap();
        }
        // Windows with a floor, and a sequence that was forked.
        for cache in [&mut stepped, &mut plain] {
            match round % 40 {
                20 => cache.evict(&ids, &[10, 0]).unwrap(),
                30 => cache.fork(&[1], &[0]).unwrap(),
                _ => {}
            }
        }
    }
    assert_eq!(splits > 1, case.window > 37 || case.head_dim == 256, "{splits} splits of {case:?}");
    for seq in 0..2 {
        stepped.read_back(seq).unwrap();
        assert_eq!(stepped.seq_info(0, seq).unwrap(), plain.seq_info(0, seq).unwrap());
    }
    assert_eq!((stepped.take_error().unwrap(), plain.take_error().unwrap()), (None, None));
}

#[test]
fn a_step_stores_what_an_append_stores() {
    let Some(_turn) = cuda() else { return };
    for case in CASES {
        match case.dtype {
            DType::F16 => twins_agree(case, f16::from_f32),
            _ => twins_agree(case, bf16::from_f32),
        }
    }
}

/// Number of launches that a call puts into a stream.
fn launches(host: &Host, cache: &mut Cache, call: impl FnOnce(&mut Cache)) -> u64 {
    let graph = Graph::capture(host, || {
        // SAFETY: the host's stream lives as long as the thread.
        unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
        call(cache);
    });
    // SAFETY: as above.
    unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
    graph.nodes()
}

#[test]
fn kernel_choice_predicts_the_launches() {
    let Some(_turn) = cuda() else { return };
    let mut cache = new_cache(&config(1, 3, 4, 60));
    let mut t = Tensors::new(3 * 40);
    let ids = [0, 1, 2];
    with_host(|host| {
        for (n, name, expected) in [
            (1, "skc_step_decode", 1),
            (4, "skc_step_decode", 1),
            (5, "skc_attend_chunk", 2),
            (16, "skc_attend_chunk", 2),
            // Chunks of 16; the last one has few tokens.
            (17, "skc_attend_chunk", 3),
            (40, "skc_attend_chunk", 6),
        ] {
            let counts = [n; 3];
            let batch = Batch::new(&ids, &counts);
            let choice = cache.kernel_choice(0, TokenCall::Step, 3, n as u32).unwrap();
            assert_eq!((choice.kernel, choice.launches), (name, expected), "{n} tokens");
            assert_eq!((choice.grid[0], choice.grid[1]), (3, 2));
            assert_eq!(launches(host, &mut cache, |cache| t.step(cache, 0, batch)), expected, "{n} tokens");
            if n <= 16 {
                let attend = cache.kernel_choice(0, TokenCall::Attend, 3, n as u32).unwrap();
                assert_eq!((attend.kernel == "skc_attend_decode", attend.launches), (n <= 4, 1), "{n} tokens");
                assert_eq!(launches(host, &mut cache, |cache| t.feed(cache, 0, batch)), 2);
            }
        }
        // Rows that are not aligned to 16 bytes take two launches, of kernels that can read them.
        let counts = [1; 3];
        let odd = launches(host, &mut cache, |cache| {
            // SAFETY: device memory; the rows of the call end before the end of the buffer, one element late.
            let q =
                unsafe { RowsIn::<'_>::from_raw(std::ptr::with_exposed_provenance(t.q.address as usize + 2), 0, 0) };
            let (k, v) = (t.k.rows(), t.v.rows());
            let tensors = StepTensors { k, v, q, out: t.out.rows_out(), lse: None };
            cache.step(0, Batch::new(&ids, &counts), tensors).unwrap();
        });
        assert_eq!(odd, 2);
    });
    // A shape without specialised kernels.
    let cache = new_cache(&CacheConfig { head_dim: 40, ..config(1, 1, 4, 60) });
    assert_eq!(cache.kernel_choice(0, TokenCall::Step, 1, 1).unwrap().kernel, "skc_attend_generic");
    assert_eq!(cache.kernel_choice(0, TokenCall::Append, 1, 1).unwrap().kernel, "skc_append");
}

#[test]
fn invalid_queries_are_rejected() {
    let Some(_turn) = cuda() else { return };
    let cache = new_cache(&config(1, 1, 4, 60));
    for (layer, call, n_entries, n_tokens, text) in [
        (1, TokenCall::Step, 1, 1, "layer is 1"),
        (0, TokenCall::Step, 0, 1, "n_entries is 0"),
        (0, TokenCall::Step, 1, 0, "n_tokens is 0"),
        (0, TokenCall::Attend, 1, 17, "n_tokens is 17: 1 to 16"),
        (0, TokenCall::Step, 1, 1 << 31, "n_tokens is 2147483648"),
    ] {
        let error = cache.kernel_choice(layer, call, n_entries, n_tokens).unwrap_err();
        assert_eq!(error.status(), Status::OutOfRange);
        assert!(error.message().contains(text), "{error}");
    }
}

/// A fused step reports an invalid entry as append and attend do, does not count its tokens, and executes the other
/// entries.
#[test]
fn an_invalid_entry_changes_nothing() {
    let Some(_turn) = cuda() else { return };
    let mut cache = new_cache(&config(1, 3, 1, 10));
    let mut t = Tensors::new(8);
    let mut random = Random(3);
    let cases: [([i32; 3], [i32; 3], i32, u32); 4] = [
        ([0, 1, 2], [1, 4, 1], Status::ChunkTooLong as i32, 1),
        ([0, 7, 2], [1, 1, 1], Status::OutOfRange as i32, 1),
        ([0, 2, 0], [1, 1, 1], Status::InvalidArgument as i32, 2),
        ([0, 1, 2], [3, 3, 3], Status::OutOfRange as i32, 2),
    ];
    for (ids, counts, status, entry) in cases {
        let (i, n) = (Buf::new(&ids), Buf::new(&counts));
        let (seq_ids, n_tokens) = (i.address, n.address);
        let batch = DeviceBatch { seq_ids, n_tokens, n_entries: 3, max_tokens: 3, n_rows: 8 };
        t.draw(&mut random, 8);
        let length = |cache: &mut Cache, seq: i32| {
            cache.read_back(seq).unwrap();
            cache.seq_info(0, seq).unwrap().len_min
        };
        let before: Vec<_> = (0..3).map(|s| length(&mut cache, s)).collect();
        // SAFETY: both arrays are in device memory and outlive the work.
        t.step(&mut cache, 0, unsafe { Batch::on_device(batch) });
        let out = t.out.read();
        let error = cache.take_error().unwrap().expect("an invalid entry");
        assert_eq!((error.status, error.entry, error.call, error.count), (status, entry, 1, 2), "{ids:?} {counts:?}");
        let mut row = 0;
        for (e, (&id, &n)) in ids.iter().zip(&counts).enumerate() {
            let rows = &out[(row * Q).min(out.len())..((row + n as usize) * Q).min(out.len())];
            assert_eq!(rows.iter().all(|x| x.is_nan()), e as u32 == entry, "{ids:?} {counts:?}: rows of entry {e}");
            row += n as usize;
            if e as u32 != entry && (0..3).contains(&id) {
                assert_eq!(length(&mut cache, id), before[id as usize] + n as u64, "{ids:?} {counts:?} {id}");
            } else if (0..3).contains(&id) && !ids[..e].contains(&id) {
                assert_eq!(length(&mut cache, id), before[id as usize], "{ids:?} {counts:?} {id}");
            }
        }
        assert_eq!(cache.take_error().unwrap(), None);
    }
}

/// Programmatic launches, whose blocks may be scheduled before the preceding kernel has ended, give the same bits.
#[test]
fn programmatic_launches_change_no_bit() {
    let Some(_turn) = cuda() else { return };
    let plain = config(2, 2, 4, 60);
    let mut early = plain.clone();
    early.cuda.programmatic = true;
    if with_host(|host| host.compute_capability()) < 9 {
        assert_eq!(Cache::new(&early).unwrap_err().status(), Status::InvalidConfig);
        return;
    }
    let (mut a, mut b) = (new_cache(&early), new_cache(&plain));
    let (mut ta, mut tb) = (Tensors::new(40), Tensors::new(40));
    let ids = [1, 0];
    with_host(|host| {
        let batch = Batch::new(&ids, &[1, 1]);
        let graph = Graph::capture(host, || {
            // SAFETY: the host's stream lives as long as the thread.
            unsafe { a.set_stream(host.stream.cast()) }.unwrap();
            (0..2).for_each(|layer| ta.step(&mut a, layer, batch));
        });
        // SAFETY: as above.
        unsafe { a.set_stream(host.stream.cast()) }.unwrap();
        let mut random = Random(17);
        for i in 0..80 {
            let seed = random.below(u64::MAX) | 1;
            ta.draw(&mut Random(seed), 40);
            tb.draw(&mut Random(seed), 40);
            // Sometimes a chunk, by append, attend and rewind.
            if i % 10 == 9 {
                let batch = Batch::new(&ids, &[16, 16]);
                (0..2).for_each(|layer| ta.feed(&mut a, layer, batch));
                (0..2).for_each(|layer| tb.feed(&mut b, layer, batch));
                a.rewind(&ids, &[3, 2]).unwrap();
                b.rewind(&ids, &[3, 2]).unwrap();
            } else {
                graph.launch(host);
                a.note_replay(None, &ids, &[1, 1]).unwrap();
                (0..2).for_each(|layer| tb.step(&mut b, layer, batch));
            }
            let bits = |t: &Tensors| t.out.read().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(&ta), bits(&tb), "round {i}");
        }
        // A fork; more entries than fit into the launch parameters, most of them padding; both also for a shape without
        // specialised kernels.
        let (mut many, mut counts) = (vec![-1; 70], vec![0; 70]);
        (many[3], many[69], counts[3], counts[69]) = (0, 1, 2, 1);
        let generic = CacheConfig { head_dim: 40, ..plain.clone() };
        let mut early = generic.clone();
        early.cuda.programmatic = true;
        let (mut c, mut d) = (new_cache(&early), new_cache(&generic));
        for cache in [&mut a, &mut c, &mut b, &mut d] {
            // SAFETY: as above.
            unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
            let batch = Batch::new(&many, &counts);
            ta.draw(&mut Random(99), 40);
            (0..2).for_each(|layer| ta.feed(cache, layer, batch));
            cache.fork(&[0], &[1]).unwrap();
            (0..2).for_each(|layer| ta.step(cache, layer, batch));
        }
        for pair in [[&mut a, &mut b], [&mut c, &mut d]] {
            let outs = pair.map(|cache| {
                ta.draw(&mut Random(101), 40);
                ta.step(cache, 1, Batch::new(&ids, &[1, 1]));
                ta.out.read().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            });
            assert_eq!(outs[0], outs[1]);
        }
        for cache in [&mut a, &mut b, &mut c, &mut d] {
            assert_eq!(cache.take_error().unwrap(), None);
        }
    });
}
