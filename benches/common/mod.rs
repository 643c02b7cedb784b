//! Shared by the benches: one layer of a Llama-3-8B-like shape.
#![allow(dead_code, reason = "no bench uses all of it")]

use sinkcache::{AttendTensors, Batch, Cache, CacheConfig, LayerConfig, RowsIn, RowsOut, StorageType};

pub const N_Q_HEADS: usize = 32;
pub const N_KV_HEADS: usize = 8;
pub const HEAD_DIM: usize = 128;
pub const N_SINK: u32 = 4;

/// One sequence in one layer.
pub fn cache(window: u32, kv_dtype: StorageType, n_threads: u32) -> Cache {
    Cache::new(&CacheConfig {
        n_q_heads: N_Q_HEADS as u32,
        n_kv_heads: N_KV_HEADS as u32,
        head_dim: HEAD_DIM as u32,
        kv_dtype,
        n_threads,
        layers: vec![LayerConfig { n_sink: N_SINK, window, ..LayerConfig::default() }],
        ..CacheConfig::default()
    })
    .unwrap()
}

/// `n` rows of `heads` heads.
pub fn rows(n: usize, heads: usize) -> Vec<f32> {
    (0..n * heads * HEAD_DIM).map(|i| ((i * 37) % 64) as f32 / 32.0 - 1.0).collect()
}

/// Fills the ring until it has wrapped. The stream position of the next token is about `position`.
pub fn fill(cache: &mut Cache, window: u32, position: u64) {
    let total = u64::from(window) * 2 + 600;
    cache.reset(&[0], Some(&[position.saturating_sub(total)])).unwrap();
    let x = rows(500, N_KV_HEADS);
    let mut left = total as usize;
    while left > 0 {
        let n = left.min(500);
        let x = RowsIn::packed(&x[..n * N_KV_HEADS * HEAD_DIM]);
        cache.append(0, Batch::new(&[0], &[n as i32]), x, x).unwrap();
        left -= n;
    }
}

/// Appends `n` tokens of `x`.
pub fn append(cache: &mut Cache, n: usize, x: &[f32]) {
    let x = RowsIn::packed(x);
    cache.append(0, Batch::new(&[0], &[n as i32]), x, x).unwrap();
}

/// Attends with the queries of the last `n` tokens.
pub fn attend(cache: &mut Cache, n: usize, q: &[f32], out: &mut [f32]) {
    let tensors = AttendTensors { q: RowsIn::packed(q), out: RowsOut::packed(out), lse: None };
    cache.attend(0, Batch::new(&[0], &[n as i32]), tensors).unwrap();
}
