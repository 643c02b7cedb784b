//! Any bytes as a snapshot, the length and the checksums put right: it is refused without a trace, or leaves a sequence
//! that works. The corpus begins with a snapshot.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use sinkcache::StorageType;
use sinkcache::{Batch, Cache, CacheConfig, HostTag, LayerConfig, RowsIn, RowsOut, SeqInfo, Status, StepTensors};
use twox_hash::XxHash3_64;

const TAG: HostTag = [9; 32];
const DIM: usize = 16;
/// Bytes of the header, and where its checksum is; bytes of a section's head and of its checksum.
const HEADER: usize = 64;
const HEADER_SUM: usize = 56;
const HEAD: usize = 16;
const SUM: usize = 8;

fn step(cache: &mut Cache, seq: i32, n: usize) {
    let rows = |heads: usize, salt: usize| -> Vec<f32> {
        (0..n * heads * DIM).map(|i| ((i * 37 + salt) % 101) as f32 / 50.0 - 1.0).collect()
    };
    let (q, k, v, mut out) = (rows(2, 1), rows(1, 2), rows(1, 3), vec![0.0_f32; n * 2 * DIM]);
    for layer in 0..2 {
        let tensors = StepTensors {
            k: RowsIn::packed(&k),
            v: RowsIn::packed(&v),
            q: RowsIn::packed(&q),
            out: RowsOut::packed(&mut out),
            lse: None,
        };
        cache.step(layer, Batch::new(&[seq], &[n as i32]), tensors).unwrap();
    }
}

fn save(cache: &mut Cache, seq: i32) -> Vec<u8> {
    let mut bytes = vec![0xAA; cache.snapshot_bytes(seq).unwrap()];
    assert_eq!(cache.save_sequence(seq, &TAG, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn infos(cache: &Cache, seq: i32) -> [SeqInfo; 2] {
    [0, 1].map(|layer| cache.seq_info(layer, seq).unwrap())
}

/// A cache whose sequence 0 has pins and evicted ranges.
fn edited() -> Cache {
    let layer = LayerConfig { n_sink: 2, window: 12, max_pinned: 6, max_segments: 4, ..LayerConfig::default() };
    let mut cache = Cache::new(&CacheConfig {
        n_layers: 2,
        n_seqs: 3,
        n_q_heads: 2,
        n_kv_heads: 1,
        head_dim: DIM as u32,
        kv_dtype: StorageType::Q8,
        v_dtype: Some(StorageType::Q4),
        max_chunk: 6,
        max_rewind: 4,
        layers: vec![layer.clone(), LayerConfig { window: 20, max_pinned: 0, ..layer }],
        ..CacheConfig::default()
    })
    .unwrap();
    (0..6).for_each(|_| step(&mut cache, 0, 6));
    cache.pin(&[0], &[28], &[3]).unwrap();
    cache.evict_range(&[0], &[32], &[2]).unwrap();
    step(&mut cache, 0, 5);
    cache.rewind(&[0], &[2]).unwrap();
    cache
}

/// The bytes with the total length and the checksums that belong to them.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER {
        return bytes;
    }
    let n = bytes.len() as u64;
    bytes[16..24].copy_from_slice(&n.to_le_bytes());
    let sum = XxHash3_64::oneshot(&bytes[..HEADER_SUM]);
    bytes[HEADER_SUM..HEADER].copy_from_slice(&sum.to_le_bytes());
    let mut at = HEADER;
    while at + HEAD + SUM <= bytes.len() {
        let n = u64::from_le_bytes(bytes[at + 8..at + HEAD].try_into().unwrap());
        let next = usize::try_from(n).ok().and_then(|n| n.checked_next_multiple_of(8)?.checked_add(at + HEAD + SUM));
        let Some(next) = next.filter(|&next| next <= bytes.len()) else { break };
        let sum = XxHash3_64::oneshot(&bytes[at..next - SUM]);
        bytes[next - SUM..next].copy_from_slice(&sum.to_le_bytes());
        at = next;
    }
    bytes
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(edited());
}

fuzz_target!(|bytes: &[u8]| {
    CACHE.with_borrow_mut(|cache| {
        // The bytes change sequence 0's snapshot, as far as they go: an empty input is that snapshot.
        let mut changed = save(cache, 0);
        let n = changed.len();
        changed.iter_mut().zip(bytes).for_each(|(at, by)| *at ^= by);
        changed.extend(bytes.get(n..).unwrap_or(&[]));
        let before = (infos(cache, 1), save(cache, 1));
        match cache.load_sequence(1, &TAG, &mended(&changed)) {
            Ok(()) => {
                let bytes = save(cache, 1);
                cache.load_sequence(2, &TAG, &bytes).unwrap();
                assert!(save(cache, 2) == bytes && infos(cache, 1) == infos(cache, 2), "a copy that differs");
                let most = infos(cache, 1).map(|i| i.rewindable).into_iter().min().unwrap();
                if let Ok(n) = i32::try_from(most + 1) {
                    assert!(cache.rewind(&[1], &[n]).is_err(), "more than rewindable was rewound");
                    cache.rewind(&[1], &[n - 1]).unwrap();
                }
                let info = infos(cache, 1)[0];
                if info.start_position.checked_add(info.len_max + 60).is_some() {
                    (0..5).for_each(|i| step(cache, 1, 6 - i));
                }
            }
            Err(e) => {
                assert!([Status::InvalidSnapshot, Status::NoRoom].contains(&e.status()), "{e}");
                assert!(e.message().len() > 20, "{e}");
                assert!((infos(cache, 1), save(cache, 1)) == before, "a refused snapshot changed something");
            }
        }
        cache.reset(&[1, 2], None).unwrap();
    });
});
