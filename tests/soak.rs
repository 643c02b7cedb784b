//! A long life of one cache: sequences that are stepped, edited, saved and loaded, while the memory of its process
//! stays the same to the page. `SKC_SOAK_TOKENS` is how many tokens (3,000,000 unless set). With `SKC_SOAK_STATE`, a
//! file, the stream goes on where an earlier run has left it.
//!
//! All tokens of a sequence have one value, so every result must be this value: no other sequence's, and nothing that
//! an edit has dropped. From time to time a second cache gets all sequences, and must then give the same bits.

use std::path::PathBuf;
use std::time::Instant;

use sinkcache::{
    Batch, Cache, CacheConfig, Error, HostTag, LayerConfig, RowsIn, RowsOut, Status, StepTensors, StorageType,
};

const SEQS: usize = 4;
const HEADS: usize = 2;
const DIM: usize = 8;
/// The most tokens of a sequence in one step.
const MOST: usize = 48;
const TAG: HostTag = [7; 32];
/// After so many tokens memory must not grow.
const WARM_UP: u64 = 1_000_000;

fn new_cache() -> Cache {
    Cache::new(&CacheConfig {
        n_seqs: SEQS as u32,
        n_q_heads: HEADS as u32,
        n_kv_heads: 1,
        head_dim: DIM as u32,
        kv_dtype: StorageType::F32,
        max_chunk: 32,
        max_rewind: 8,
        layers: vec![LayerConfig { n_sink: 2, window: 24, max_pinned: 4, max_segments: 4, ..LayerConfig::default() }],
        ..CacheConfig::default()
    })
    .unwrap()
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// KiB of memory that this process has written, and its page faults, where the system tells them. Counted anew for each
/// question: the numbers in statm are estimates.
fn memory() -> Option<(u64, u64)> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let written = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"))?.trim().strip_suffix(" kB")?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let faults: Vec<u64> =
        stat.rsplit(')').next()?.split(' ').skip(8).step_by(2).take(2).flat_map(str::parse).collect();
    Some((written.parse().ok()?, faults.iter().sum()))
}

/// What the host knows of a sequence: its value and its length.
#[derive(Clone, Copy, Default)]
struct Known {
    value: f32,
    length: u64,
}

struct Soak {
    cache: Cache,
    twin: Cache,
    known: [Known; SEQS],
    random: Random,
    tokens: u64,
    edits: u64,
    refused: u64,
    snapshots: u64,
    /// Queries and keys of a step; its values and results, of both caches.
    noise: Vec<f32>,
    values: Vec<f32>,
    out: [Vec<f32>; 2],
    saved: Vec<u8>,
}

/// Whether an edit succeeded: a sequence may not have what it needs.
fn done(result: Result<(), Error>) -> bool {
    match result.map_err(|e| (e.status(), e)) {
        Ok(()) => true,
        Err((Status::OutOfRange | Status::TokensGone | Status::NoRoom, _)) => false,
        Err((_, e)) => panic!("{e:?}"),
    }
}

impl Soak {
    fn new() -> Self {
        let rows = SEQS * MOST;
        let mut soak = Self {
            cache: new_cache(),
            twin: new_cache(),
            known: std::array::from_fn(|seq| Known { value: seq as f32 - 1.5, length: 0 }),
            random: Random(0x9E37_79B9_7F4A_7C15),
            tokens: 0,
            edits: 0,
            refused: 0,
            snapshots: 0,
            noise: (0..rows * HEADS * DIM).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect(),
            values: vec![0.0; rows * DIM],
            out: std::array::from_fn(|_| vec![0.0; rows * HEADS * DIM]),
            saved: vec![],
        };
        // Far into a stream.
        soak.cache.reset(&[0, 1, 2, 3], Some(&[0, 1 << 20, 1 << 40, 1 << 62])).unwrap();
        soak
    }

    fn step(&mut self, both: bool) {
        let counts: [i32; SEQS] = std::array::from_fn(|_| self.random.below(MOST as u64 + 1) as i32);
        let mut rows = 0;
        for (known, &n) in self.known.iter_mut().zip(&counts) {
            self.values[rows * DIM..][..n as usize * DIM].fill(known.value);
            rows += n as usize;
            known.length += n as u64;
        }
        if both {
            for seq in 0..SEQS as i32 {
                self.twin.copy_sequence(seq, &mut self.cache, seq).unwrap();
            }
        }
        let ids = [0, 1, 2, 3];
        for (cache, out) in [&mut self.cache, &mut self.twin].into_iter().zip(&mut self.out).take(1 + usize::from(both))
        {
            out.fill(f32::NAN);
            let tensors = StepTensors {
                k: RowsIn::packed(&self.noise[..rows * DIM]),
                v: RowsIn::packed(&self.values[..rows * DIM]),
                q: RowsIn::packed(&self.noise[..rows * HEADS * DIM]),
                out: RowsOut::packed(&mut out[..rows * HEADS * DIM]),
                lse: None,
            };
            cache.step(0, Batch::new(&ids, &counts), tensors).unwrap();
        }
        let mut at = 0;
        for (seq, (known, &n)) in self.known.iter().zip(&counts).enumerate() {
            for x in &self.out[0][at..][..n as usize * HEADS * DIM] {
                let rounding = 1e-5 * known.value.abs().max(1.0);
                assert!((x - known.value).abs() <= rounding, "sequence {seq}: {x} in place of {}", known.value);
            }
            at += n as usize * HEADS * DIM;
        }
        if both {
            let [a, b] = &self.out;
            assert!(a[..at].iter().zip(&b[..at]).all(|(a, b)| a.to_bits() == b.to_bits()), "a copy gives other bits");
        }
        self.tokens += rows as u64;
    }

    fn edit(&mut self) {
        let seq = self.random.below(SEQS as u64) as usize;
        let other = (seq + 1 + self.random.below(SEQS as u64 - 1) as usize) % SEQS;
        let (n, back) = (1 + self.random.below(5), 1 + self.random.below(26));
        let Known { value, length } = self.known[seq];
        let (id, count, first) = ([seq as i32], [n as i32], [length.saturating_sub(back)]);
        let ok = match self.random.below(8) {
            0 | 1 => {
                let ok = done(self.cache.rewind(&id, &count));
                self.known[seq].length -= if ok { n } else { 0 };
                ok
            }
            2 => done(self.cache.evict(&id, &count)),
            3 => done(self.cache.pin(&id, &first, &count)),
            4 => done(self.cache.evict_range(&id, &first, &count)),
            5 => {
                self.known[other] = self.known[seq];
                done(self.cache.fork(&id, &[other as i32]))
            }
            6 => {
                // A new conversation, with a value that none of the others has.
                let start = self.random.below(1 << 50);
                self.known[seq] = Known { value: (self.tokens % 4093) as f32 / 64.0, length: 0 };
                done(self.cache.reset(&id, Some(&[start])))
            }
            _ => {
                let n = self.cache.snapshot_bytes(id[0]).unwrap();
                let n = self.cache.save_sequence(id[0], &TAG, &mut self.saved[..n]).unwrap();
                self.cache.load_sequence(other as i32, &TAG, &self.saved[..n]).unwrap();
                self.known[other] = Known { value, length };
                self.snapshots += 1;
                true
            }
        };
        self.edits += u64::from(ok);
        self.refused += u64::from(!ok);
    }

    fn check_lengths(&self) {
        for (seq, known) in self.known.iter().enumerate() {
            let info = self.cache.seq_info(0, seq as i32).unwrap();
            assert_eq!((info.len_min, info.len_max), (known.length, known.length), "sequence {seq}");
        }
    }

    /// All that a later run goes on with.
    fn state(&mut self) -> Vec<u8> {
        let mut bytes: Vec<u8> = [self.random.0, self.tokens].into_iter().flat_map(u64::to_le_bytes).collect();
        for (seq, known) in self.known.iter().enumerate() {
            let mut saved = vec![0; self.cache.snapshot_bytes(seq as i32).unwrap()];
            self.cache.save_sequence(seq as i32, &TAG, &mut saved).unwrap();
            bytes.extend(known.value.to_le_bytes());
            bytes.extend([known.length, saved.len() as u64].into_iter().flat_map(u64::to_le_bytes));
            bytes.extend(saved);
        }
        bytes
    }

    fn go_on(&mut self, mut state: &[u8]) {
        let mut take = |n: usize| state.split_off(..n).expect("a whole state");
        let u64_of = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        (self.random.0, self.tokens) = (u64_of(take(8)), u64_of(take(8)));
        for seq in 0..SEQS {
            let value = f32::from_le_bytes(take(4).try_into().unwrap());
            self.known[seq] = Known { value, length: u64_of(take(8)) };
            let n = u64_of(take(8)) as usize;
            self.cache.load_sequence(seq as i32, &TAG, take(n)).unwrap();
        }
    }
}

#[test]
fn a_long_life_takes_no_more_memory_than_a_short_one() {
    let count = std::env::var("SKC_SOAK_TOKENS").map_or(3_000_000, |n| n.parse().expect("SKC_SOAK_TOKENS is a number"));
    let file = std::env::var_os("SKC_SOAK_STATE").map(PathBuf::from);
    let mut soak = Soak::new();
    if let Some(state) = file.as_ref().and_then(|file| std::fs::read(file).ok()) {
        soak.go_on(&state);
        println!("goes on after {} tokens", soak.tokens);
    }
    // What a sequence may take at most, so that the loop allocates nothing.
    soak.saved.resize(1 << 16, 0);
    let (first, began) = (soak.tokens, Instant::now());
    let (mut warm, mut most, mut rounds) = (None, 0, 0_u64);
    while soak.tokens < first + count {
        soak.step(rounds.is_multiple_of(1024));
        soak.edit();
        if rounds.is_multiple_of(256) {
            soak.check_lengths();
            let now = memory();
            if soak.tokens < first + WARM_UP {
                warm = now;
            } else if let (Some((written, _)), Some((warm, _))) = (now, warm) {
                assert!(written <= warm, "{written} KiB after {} tokens, {warm} when warm", soak.tokens);
                most = most.max(written);
            }
        }
        rounds += 1;
    }
    soak.check_lengths();
    println!(
        "{} tokens in {:.0} s: {rounds} steps, {} edits, {} of them snapshots, and {} refused",
        soak.tokens - first,
        began.elapsed().as_secs_f64(),
        soak.edits,
        soak.snapshots,
        soak.refused
    );
    match (warm, memory()) {
        (Some((warm, faults)), Some((last, all))) => println!(
            "memory: {warm} KiB when warm, at most {most} later, {last} at the end; page faults since: {}",
            all - faults
        ),
        _ => println!("skipped: the system does not tell what memory is written"),
    }
    assert!(soak.edits > rounds / 4 && soak.snapshots > rounds / 32, "hardly an edit");
    if let Some(file) = file {
        std::fs::write(file, soak.state()).unwrap();
    }
}
