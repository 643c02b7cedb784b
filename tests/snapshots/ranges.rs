//! Snapshots of sequences with pins and evicted ranges.

use sinkcache::{BackendKind, Batch, Cache, CacheConfig, LayerConfig, RowsIn, Status, StorageType};

use super::parts::{Parts, config_with_ranges, edit_ranges, refused, saved, saved_with_ranges};
use super::{TAG, infos, noise, save, step, types};
use crate::common::{new_cache, transfer};

#[test]
fn a_sequence_with_ranges_goes_on_with_the_same_bits() {
    for types in types() {
        let config = config_with_ranges(types);
        let mut cache = new_cache(&config);
        cache.reset(&[0], Some(&[1 << 40])).unwrap();
        edit_ranges(&mut cache, &config, 0);
        let bytes = save(&mut cache, 0);
        let mut other = new_cache(&config);
        step(&mut other, &config, 1, 50, 77);
        other.load_sequence(1, &TAG, &bytes).unwrap();
        transfer(&mut other, 1, &mut cache, 1, true);
        assert_eq!(infos(&cache, 1), infos(&cache, 0));
        assert_eq!(infos(&other, 1), infos(&cache, 0));
        assert_eq!(infos(&other, 1).map(|i| (i.pinned, i.counted)), [(6, 3), (0, 2)]);
        assert!(save(&mut other, 1) == bytes && save(&mut cache, 1) == bytes);
        for i in 0..12 {
            let n = [1, 16, 5, 40][i % 4];
            let want = step(&mut cache, &config, 0, n, 1000 + i as u64);
            assert!(step(&mut other, &config, 1, n, 1000 + i as u64) == want, "{types:?} step {i}");
            assert!(step(&mut cache, &config, 1, n, 1000 + i as u64) == want, "{types:?} step {i} of the copy");
            if i == 5 {
                // A pin is given up, in part.
                cache.evict_range(&[0, 1], &[102, 102], &[2, 2]).unwrap();
                other.evict_range(&[1], &[102], &[2]).unwrap();
            }
        }
        assert_eq!(infos(&other, 1), infos(&cache, 0));
    }
}

#[test]
fn a_sequence_without_edits_has_no_section_of_them() {
    let (_, _, parts) = saved();
    assert!(parts.sections.iter().all(|s| s.tag != *b"EDIT"));
    let (config, mut cache, _) = saved_with_ranges();
    // evict is no such edit; a pin that is given up leaves its trace.
    step(&mut cache, &config, 1, 50, 1);
    cache.evict(&[1], &[4]).unwrap();
    assert!(Parts::of(&save(&mut cache, 1)).sections.iter().all(|s| s.tag != *b"EDIT"));
    cache.pin(&[1], &[20], &[4]).unwrap();
    cache.evict_range(&[1], &[20], &[4]).unwrap();
    assert!(Parts::of(&save(&mut cache, 1)).sections.iter().any(|s| s.tag == *b"EDIT"));
}

#[test]
fn what_there_is_no_room_for_is_refused() {
    let (config, mut cache, parts) = saved_with_ranges();
    let bytes = parts.bytes();
    let of = |layer: usize, change: &dyn Fn(&mut LayerConfig)| {
        let mut config = config.clone();
        change(&mut config.layers[layer]);
        new_cache(&config)
    };
    let mut check = |mut other: sinkcache::Cache, text: &str| {
        step(&mut other, &config, 0, 9, 3);
        let before = (infos(&other, 0), save(&mut other, 0));
        let errors = [other.load_sequence(0, &TAG, &bytes), other.copy_sequence(0, &mut cache, 0)];
        for error in errors.map(Result::unwrap_err) {
            assert_eq!((error.status(), error.message()), (Status::NoRoom, text));
        }
        assert!((infos(&other, 0), save(&mut other, 0)) == before, "a refused snapshot changed something");
    };
    check(of(0, &|l| l.max_pinned = 5), "layer 0: 6 tokens are pinned, max_pinned is 5");
    check(of(0, &|l| l.max_segments = 2), "layer 0: pinned runs and evicted ranges are 3, max_segments is 2");
    check(of(1, &|l| l.max_segments = 1), "layer 1: pinned runs and evicted ranges are 2, max_segments is 1");
    let mut just = of(0, &|l| (l.max_pinned, l.max_segments) = (6, 3));
    just.load_sequence(0, &TAG, &bytes).unwrap();
    // Once the window has passed them, beyond what a rewind may bring back, evicted ranges need no room.
    (0..12).for_each(|i| drop(step(&mut just, &config, 0, 10, i)));
    assert_eq!(infos(&just, 0).map(|i| (i.pinned, i.counted)), [(6, 1), (0, 0)]);
    let (bytes, want) = (save(&mut just, 0), step(&mut just, &config, 0, 9, 50));
    let mut passed = config.clone();
    (passed.layers[0].max_segments, passed.layers[1].max_segments) = (1, 0);
    let mut passed = new_cache(&passed);
    passed.load_sequence(0, &TAG, &bytes).unwrap();
    assert!(step(&mut passed, &config, 0, 9, 50) == want);
}

#[test]
fn wrong_ranges_with_right_checksums_are_refused() {
    let (_, mut cache, parts) = saved_with_ranges();
    // Two layers; three ranges of the first (a pin of 6 at 100, 5 at 110 and 2 at 120 evicted), two of the second.
    let numbers: Vec<u64> = parts.clone().part(b"EDIT").numbers();
    let kinds = [1, 0, 0, 0, 0];
    let ranges = [(100, 6), (110, 5), (120, 2), (110, 5), (120, 2)];
    let want: Vec<u64> = ranges.iter().zip(kinds).flat_map(|(&(first, n), kind)| [first, n, kind]).collect();
    assert_eq!((&numbers[..6], &numbers[6..]), (&[122, 0, 3, 122, 3, 2][..], &want[..]));
    let mut refuse = |changes: &[(usize, u64)], text: &str| {
        let mut parts = parts.clone();
        changes.iter().for_each(|&(index, value)| parts.part(b"EDIT").set(index, value));
        refused(&mut cache, &parts, text);
    };
    refuse(&[(0, 141)], "layer 0: its edits end at 141: ");
    refuse(&[(0, u64::MAX)], "layer 0: its edits end at 18446744073709551615: ");
    refuse(&[(3, 5)], "layer 1: its edits end at 5: ");
    refuse(&[(0, 121)], "layer 0: a range of 2 tokens from 120 on, kind 0: from 115 to 121");
    refuse(&[(1, 1)], "layer 0: its ranges begin at 1: 0 is needed");
    refuse(&[(2, 4)], "layer 1: its ranges begin at 3: 4 is needed");
    refuse(&[(5, 1)], "bytes of 4 ranges");
    refuse(&[(5, u64::from(u32::MAX))], "bytes of 4294967298 ranges");
    refuse(&[(2, 3 | 1 << 40)], "layer 0: a reserved word of its edits is not 0");
    refuse(&[(6, 2)], "layer 0: a range of 6 tokens from 2 on, kind 1: from 3 to 122");
    refuse(&[(7, 0)], "layer 0: a range of 0 tokens");
    refuse(&[(7, u64::MAX)], "layer 0: a range of 18446744073709551615 tokens");
    refuse(&[(9, 105)], "layer 0: a range of 5 tokens from 105 on, kind 0: from 106");
    refuse(&[(8, 2)], "layer 0: a range of 6 tokens from 100 on, kind 2");
    refuse(&[(8, 1 | 1 << 32)], "layer 0: a range of 6 tokens from 100 on, kind 2");
    refuse(&[(9, 106), (11, 1)], "layer 0: two ranges of one kind meet at 106");
    refuse(&[(6, 3), (7, 107)], "layer 0: 107 tokens are pinned: 0 to ");
    // Possible, but not with so many rows.
    refuse(&[(7, 7)], "bytes are not the K and V of");
    let change = |change: &dyn Fn(&mut Parts)| {
        let mut parts = parts.clone();
        change(&mut parts);
        parts
    };
    let c = &mut cache;
    refused(c, &change(&|p| p.part(b"EDIT").content.truncate(40)), "40 bytes of edits: at least 48 are needed");
    refused(c, &change(&|p| p.part(b"EDIT").content.extend([0; 8])), "bytes of 5 ranges");
    refused(c, &change(&|p| p.sections.swap(2, 3)), "a section EDIT of the snapshot is in the wrong place");
    refused(c, &change(&|p| p.sections.swap(1, 2)), "a section EDIT of the snapshot is in the wrong place");
    refused(c, &change(&|p| p.sections.insert(3, p.sections[2].clone())), "a section EDIT");
    // Behind the sinks and the edited tokens.
    refused(
        c,
        &change(&|p| (p.set(3, 6), p.set(4, 15)).0),
        "begin at 15: at least 16 is possible with 13 edited tokens",
    );
    // Without the section the rows are too many.
    refused(c, &change(&|p| drop(p.sections.remove(2))), "bytes are not the K and V of");
}

/// As the snapshots of the other kinds, this one loads for ever.
#[test]
fn the_committed_snapshot_with_ranges_loads() {
    let of = (StorageType::F16, StorageType::F16);
    if !types().any(|types| types == of) {
        return;
    }
    let config = CacheConfig { n_kv_heads: 1, head_dim: 16, head_dim_v: 8, ..config_with_ranges(of) };
    let mut cache = new_cache(&config);
    cache.reset(&[0], Some(&[1 << 33])).unwrap();
    edit_ranges(&mut cache, &config, 0);
    let path = std::path::PathBuf::from("tests/data/snapshot_1_ranges.skc");
    if std::env::var_os("SKC_WRITE_SNAPSHOTS").is_some() && !path.exists() {
        std::fs::write(&path, save(&mut cache, 0)).unwrap();
    }
    let bytes = std::fs::read(&path).unwrap();
    let mut loaded = new_cache(&config);
    loaded.load_sequence(1, &TAG, &bytes).unwrap();
    assert_eq!(infos(&loaded, 1), infos(&cache, 0));
    assert_eq!(save(&mut loaded, 1), bytes, "it is not saved as it was");
    // The keys of the file were rotated by the processor that wrote it.
    for seed in 50..60 {
        let (got, want) = (step(&mut loaded, &config, 1, 3, seed), step(&mut cache, &config, 0, 3, seed));
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 2e-2), "{got:?}, not {want:?}");
    }
}

/// Appends the next tokens of a sequence of a CPU cache in every layer: attention would take long under QEMU.
fn append(cache: &mut Cache, config: &CacheConfig, seq: i32, n: usize, seed: u64) {
    for layer in 0..config.n_layers {
        let seed = 8 * seed + u64::from(layer);
        let row = |dim: u32| n * (config.n_kv_heads * dim) as usize;
        let (k, v) = (noise(row(config.head_dim), 3 * seed + 1), noise(row(config.head_dim_v), 3 * seed + 2));
        cache.append(layer, Batch::new(&[seq], &[n as i32]), RowsIn::packed(&k), RowsIn::packed(&v)).unwrap();
    }
}

/// The CPU backend divides layers among threads where many rows move.
#[test]
fn threads_move_the_same_rows() {
    for of in types() {
        let config = CacheConfig { backend: BackendKind::Cpu, ..config_with_ranges(of) };
        let layer = |window| LayerConfig { window, max_pinned: 90, ..config.layers[0].clone() };
        let layers = [900, 700, 80, 900, 900].map(layer).to_vec();
        let one = CacheConfig { n_layers: 5, head_dim: 128, head_dim_v: 128, max_chunk: 100, layers, ..config };
        let mut caches = [1, 3].map(|n_threads| new_cache(&CacheConfig { n_threads, ..one.clone() }));
        let saved = caches.each_mut().map(|cache| {
            (0..11).for_each(|i| append(cache, &one, 0, 97, i));
            cache.pin(&[0], &[1000], &[35]).unwrap();
            cache.evict_range(&[0], &[1050], &[13]).unwrap();
            cache.evict_range(&[0], &[1005], &[9]).unwrap();
            (save(cache, 0), step(cache, &one, 0, 30, 50))
        });
        assert!(saved[0] == saved[1], "{of:?}");
        assert!(of.0 != StorageType::F32 || saved[0].0.len() > 1 << 22, "so few rows are moved by one thread");
    }
}
