//! Snapshots taken apart, changed, and put together again with the right lengths and checksums.

use sinkcache::{Cache, CacheConfig, LayerConfig, Status, StorageType};
use twox_hash::XxHash3_64;

use super::{TAG, TYPES, config, infos, save, step};
use crate::common::new_cache;

/// The parts of a snapshot, which can be put together again with the right lengths and checksums.
#[derive(Clone, Debug)]
pub struct Parts {
    pub version: u32,
    /// Tag, flags, content.
    pub sections: Vec<Part>,
}

#[derive(Clone, Debug)]
pub struct Part {
    pub tag: [u8; 4],
    pub flags: u32,
    pub content: Vec<u8>,
}

impl Part {
    /// Bytes of the section.
    pub fn len(&self) -> usize {
        24 + self.content.len().next_multiple_of(8)
    }
}

impl Part {
    /// Its numbers of 64 bits.
    pub fn numbers(&self) -> Vec<u64> {
        self.content.as_chunks::<8>().0.iter().map(|&x| u64::from_le_bytes(x)).collect()
    }

    pub fn set(&mut self, index: usize, value: u64) {
        self.content[8 * index..8 * index + 8].copy_from_slice(&value.to_le_bytes());
    }
}

impl Parts {
    pub fn of(bytes: &[u8]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut at = 64;
        let sections = (0..u32_at(12))
            .map(|_| {
                let n = u32_at(at + 8) as usize;
                let (tag, flags) = (bytes[at..at + 4].try_into().unwrap(), u32_at(at + 4));
                let content = bytes[at + 16..at + 16 + n].to_vec();
                at += 24 + n.next_multiple_of(8);
                Part { tag, flags, content }
            })
            .collect();
        assert_eq!(at, bytes.len());
        Self { version: u32_at(8), sections }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let hashed = |mut part: Vec<u8>| {
            part.extend(XxHash3_64::oneshot(&part).to_le_bytes());
            part
        };
        let mut sections = vec![];
        for Part { tag, flags, content } in &self.sections {
            let mut section = [tag.as_slice(), &flags.to_le_bytes(), &(content.len() as u64).to_le_bytes()].concat();
            section.extend(content);
            section.resize(section.len().next_multiple_of(8), 0);
            sections.extend(hashed(section));
        }
        let mut header = b"SKC-SEQ\n".to_vec();
        header.extend(self.version.to_le_bytes());
        header.extend((self.sections.len() as u32).to_le_bytes());
        header.extend((64 + sections.len() as u64).to_le_bytes());
        header.extend(TAG);
        [hashed(header), sections].concat()
    }

    pub fn part(&mut self, tag: &[u8; 4]) -> &mut Part {
        self.sections.iter_mut().find(|s| s.tag == *tag).unwrap()
    }

    /// Sets a number of the counters: 0 is the start position, 1 the length, then three for each layer.
    pub fn set(&mut self, index: usize, value: u64) {
        self.part(b"SEQN").content[8 * index..8 * index + 8].copy_from_slice(&value.to_le_bytes());
    }

    pub fn number(&mut self, index: usize) -> u64 {
        u64::from_le_bytes(self.part(b"SEQN").content[8 * index..8 * index + 8].try_into().unwrap())
    }
}

/// A cache with a sequence of 130 tokens, 7 of them evicted, and its snapshot.
pub fn saved() -> (CacheConfig, Cache, Parts) {
    let config = config(TYPES[1]);
    let mut cache = new_cache(&config);
    (0..13).for_each(|i| drop(step(&mut cache, &config, 0, 10, i)));
    cache.evict(&[0], &[7]).unwrap();
    step(&mut cache, &config, 0, 3, 77);
    cache.rewind(&[0], &[2]).unwrap();
    let bytes = save(&mut cache, 0);
    let parts = Parts::of(&bytes);
    assert!(parts.bytes() == bytes, "a snapshot is not made as its description says");
    (config, cache, parts)
}

/// A cache whose first layer has room for pins and ranges, and whose second has for ranges.
pub fn config_with_ranges(types: (StorageType, StorageType)) -> CacheConfig {
    let config = config(types);
    let room = |l: &LayerConfig, max_pinned| LayerConfig { max_pinned, max_segments: 5, ..l.clone() };
    CacheConfig { layers: vec![room(&config.layers[0], 12), room(&config.layers[1], 0)], ..config }
}

/// Pins, evicted ranges and what comes between, over a sequence of 130 tokens.
pub fn edit_ranges(cache: &mut Cache, config: &CacheConfig, seq: i32) {
    (0..13).for_each(|i| drop(step(cache, config, seq, 10, i)));
    cache.pin(&[seq], &[100], &[6]).unwrap();
    cache.evict_range(&[seq], &[110], &[5]).unwrap();
    step(cache, config, seq, 3, 77);
    cache.evict_range(&[seq], &[120], &[2]).unwrap();
    step(cache, config, seq, 10, 78);
    cache.rewind(&[seq], &[3]).unwrap();
}

/// As [`saved`], with pins and ranges: 140 tokens.
pub fn saved_with_ranges() -> (CacheConfig, Cache, Parts) {
    let config = config_with_ranges(TYPES[1]);
    let mut cache = new_cache(&config);
    edit_ranges(&mut cache, &config, 0);
    let bytes = save(&mut cache, 0);
    let parts = Parts::of(&bytes);
    assert!(parts.bytes() == bytes, "a snapshot is not made as its description says");
    (config, cache, parts)
}

/// Loads a snapshot that must be refused, with a text that contains `text`; the sequence stays as it is.
#[track_caller]
pub fn refused(cache: &mut Cache, parts: &Parts, text: &str) {
    let before = (infos(cache, 0), save(cache, 0));
    let error = cache.load_sequence(0, &TAG, &parts.bytes()).unwrap_err();
    assert_eq!(error.status(), Status::InvalidSnapshot, "{error}");
    assert!(error.message().contains(text), "\"{error}\" lacks \"{text}\"");
    assert!((infos(cache, 0), save(cache, 0)) == before, "a refused snapshot changed something");
}
