//! Any configuration: it is refused with a text, or a cache of the size that was told takes a token.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sinkcache::ffi::*;
use sinkcache_fuzz::{Bytes, succeeded, zeroed};

/// Caches beyond this are not created.
const MOST_BYTES: u64 = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let b = &mut Bytes::new(bytes);
    let dims = &[8, 16, 64, 80, 128, 24, 512, 520, 7];
    // SAFETY: NULL pointers and zeros.
    let mut config: skc_cache_config = unsafe { zeroed() };
    // SAFETY: a struct of this size.
    assert!(succeeded(unsafe { skc_cache_config_init(&raw mut config, size_of::<skc_cache_config>() as u32) }));
    let mut numbers: Vec<Vec<f32>> = vec![];
    let layers: Vec<skc_layer_config> = (0..b.choose(&[1, 1, 2, 3]))
        .map(|_| {
            // SAFETY: as above.
            let mut layer: skc_layer_config = unsafe { zeroed() };
            // SAFETY: as above.
            assert!(succeeded(unsafe { skc_layer_config_init(&raw mut layer, size_of::<skc_layer_config>() as u32) }));
            layer.n_sink = b.u32(&[0, 1, 4, 17]);
            layer.window = b.u32(&[1, 2, 15, 16, 60, 250]);
            layer.position_mode = b.u32(&[0, 1, 2, 3]);
            layer.rope_style = b.u32(&[0, 1, 2]);
            layer.rope_dim = b.u32(&[0, 0, 8, 16, 32]);
            layer.rope_base = b.real(&[0.0, 10_000.0, 5e5]);
            layer.rope_scale = b.real(&[0.0, 1.0, 0.25]);
            layer.rope_mscale = b.real(&[0.0, 1.0, 1.2]);
            layer.scale = b.real(&[0.0, 0.125]);
            layer.softcap = b.real(&[0.0, 30.0]);
            layer.max_pinned = b.u32(&[0, 0, 3, 40]);
            layer.max_segments = b.u32(&[0, 0, 3, 40]);
            for (n, values) in [
                (&mut layer.n_inv_freq, &mut layer.inv_freq),
                (&mut layer.n_alibi_slopes, &mut layer.alibi_slopes),
                (&mut layer.n_sink_logits, &mut layer.sink_logits),
            ] {
                if b.byte() < 200 {
                    continue;
                }
                let array: Vec<f32> = (0..b.choose(&[1, 2, 4, 8])).map(|_| b.real(&[0.5, 1.0]) as f32).collect();
                (*n, *values) = (array.len() as u32, array.as_ptr());
                numbers.push(array);
            }
            layer
        })
        .collect();
    config.n_layers = b.u32(&[1, 2, 3, layers.len() as i64]);
    config.n_seqs = b.u32(&[1, 2, 5]);
    config.n_q_heads = b.u32(&[1, 2, 4, 6]);
    config.n_kv_heads = b.u32(&[1, 2, 3]);
    config.head_dim = b.u32(dims);
    config.head_dim_v = b.u32(&[0, 0, 8, 16, 24, 64]);
    config.in_dtype = b.u32(&[1, 1, 2, 3, 4]);
    config.out_dtype = b.u32(&[0, 1, 2, 3, 5]);
    config.kv_dtype = b.u32(&[1, 2, 3, 4, 5]);
    config.k_dtype = b.u32(&[0, 0, 1, 2, 3, 4, 5]);
    config.v_dtype = b.u32(&[0, 0, 1, 2, 3, 4, 5]);
    config.max_chunk = b.u32(&[1, 2, 8, 40]);
    config.max_rewind = b.u32(&[0, 4, 50]);
    config.n_threads = b.u32(&[1, 1, 2]);
    config.flags = b.u32(&[0, 0, 0, 1]);
    config.reserved = b.u32(&[0]);
    config.n_layer_configs = if b.byte() < 230 { layers.len() as u32 } else { 0 };
    config.layers = if config.n_layer_configs > 0 { layers.as_ptr() } else { std::ptr::null() };
    config.layer_stride = b.choose(&[0, size_of::<skc_layer_config>() as u64]);

    let (mut host, mut device) = (u64::MAX, u64::MAX);
    // SAFETY: the configuration and its arrays live.
    let told = unsafe { skc_cache_bytes(&raw const config, &raw mut host, &raw mut device) };
    if succeeded(told) {
        assert!(device == 0, "a CPU cache of {device} bytes on a device");
        if host > MOST_BYTES || config.n_threads > 4 {
            return;
        }
    } else {
        assert!((host, device) == (u64::MAX, u64::MAX), "written by a call that failed");
    }
    let mut cache = std::ptr::null_mut();
    // SAFETY: as above.
    let made = unsafe { skc_create_cache(&raw const config, &raw mut cache) };
    assert!(made == told, "skc_cache_bytes says {told}, skc_create_cache {made}");
    if !succeeded(made) {
        assert!(cache.is_null(), "a handle of a call that failed");
        return;
    }
    let (heads, kv_heads) = (config.n_q_heads as usize, config.n_kv_heads as usize);
    let dim = config.head_dim as usize;
    let dim_v = if config.head_dim_v == 0 { dim } else { config.head_dim_v as usize };
    // Rows of the widest type; bytes of 0x38 are moderate numbers of every type.
    let (q, k, v) =
        (vec![0x38_u8; heads * dim * 4], vec![0x38_u8; kv_heads * dim * 4], vec![0x38_u8; kv_heads * dim_v * 4]);
    let mut out = vec![0_u8; heads * dim_v * 4];
    for layer in 0..config.n_layers.min(3) {
        let (seq, n) = (config.n_seqs as i32 - 1, 1);
        // SAFETY: NULL pointers and zeros.
        let mut step: skc_step_args = unsafe { zeroed() };
        step.struct_size = size_of::<skc_step_args>() as u32;
        (step.layer, step.n_entries, step.seq_ids, step.n_tokens) = (layer, 1, &raw const seq, &raw const n);
        (step.q, step.k, step.v) = (q.as_ptr().cast(), k.as_ptr().cast(), v.as_ptr().cast());
        step.out = out.as_mut_ptr().cast();
        // SAFETY: a live cache, arrays of one row.
        assert!(succeeded(unsafe { skc_step(cache, &raw const step) }), "a step was refused");
    }
    assert!(succeeded(skc_destroy_cache(cache)));
});
