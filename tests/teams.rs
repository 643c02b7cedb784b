//! Thread teams some of whose members never come, through the C ABI.

use std::ptr;

use sinkcache::ffi::{self, skc_cache, skc_cache_config, skc_layer_config, skc_step_args};

const N: usize = 16;

fn create() -> *mut skc_cache {
    create_with(skc_layer_config { n_sink: 1, window: 4, ..Default::default() }, N as u32)
}

fn create_with(layer: skc_layer_config, max_chunk: u32) -> *mut skc_cache {
    let config = skc_cache_config {
        n_q_heads: 2,
        n_kv_heads: 2,
        head_dim: 8,
        kv_dtype: ffi::SKC_DTYPE_F32,
        max_chunk,
        max_rewind: 0,
        n_threads: 2,
        n_layer_configs: 1,
        layers: &raw const layer,
        ..Default::default()
    };
    let mut cache = ptr::null_mut();
    // SAFETY: the configuration is valid, the handle writable.
    assert_eq!(unsafe { ffi::skc_create_cache(&raw const config, &raw mut cache) }, 0);
    cache
}

/// A step of `N` tokens of one sequence.
fn args(x: &[f32], out: &mut [f32]) -> skc_step_args {
    static SEQ: i32 = 0;
    static TOKENS: i32 = N as i32;
    // SAFETY: all fields are integers and pointers, for which zero is valid.
    let mut a: skc_step_args = unsafe { std::mem::zeroed() };
    a.struct_size = size_of::<skc_step_args>() as u32;
    a.n_entries = 1;
    (a.seq_ids, a.n_tokens) = (&raw const SEQ, &raw const TOKENS);
    (a.q, a.k, a.v) = (x.as_ptr().cast(), x.as_ptr().cast(), x.as_ptr().cast());
    a.out = out.as_mut_ptr().cast();
    a
}

fn attend(cache: *mut skc_cache, x: &[f32], out: &mut [f32]) -> i32 {
    let s = args(x, out);
    // SAFETY: all fields are integers and pointers, for which zero is valid.
    let mut a: ffi::skc_attend_args = unsafe { std::mem::zeroed() };
    a.struct_size = size_of::<ffi::skc_attend_args>() as u32;
    (a.n_entries, a.seq_ids, a.n_tokens, a.q, a.out) = (1, s.seq_ids, s.n_tokens, s.q, s.out);
    // SAFETY: arguments are as the header demands.
    unsafe { ffi::skc_attend(cache, &raw const a) }
}

/// After an aborted team step, queries of the append before it are rejected: their keys may have been overwritten.
#[test]
fn an_aborted_team_step_ends_the_append_before_it() {
    let cache = create();
    let (x, wild) = (vec![0.5_f32; N * 16], vec![1e6_f32; N * 16]);
    let mut out = vec![0.0_f32; N * 16];
    // SAFETY: arguments are as the header demands.
    unsafe {
        for _ in 0..2 {
            assert_eq!(ffi::skc_step(cache, &args(&x, &mut out)), 0);
        }
        assert_eq!(attend(cache, &x, &mut out), 0);
        assert_eq!(ffi::skc_step_part(cache, &args(&wild, &mut out), 0, 2), 0);
        assert_eq!(attend(cache, &x, &mut out), ffi::SKC_STATUS_BUSY);
        let mut abort: ffi::skc_abort_step_args = std::mem::zeroed();
        abort.struct_size = size_of::<ffi::skc_abort_step_args>() as u32;
        assert_eq!(ffi::skc_abort_step(cache, &raw const abort), 0);
        out.fill(7.0);
        assert_eq!(attend(cache, &x, &mut out), ffi::SKC_STATUS_OUT_OF_RANGE);
        assert!(out.iter().all(|&x| x == 7.0));
        // The stream continues as if the step had never been begun.
        assert_eq!(ffi::skc_step(cache, &args(&x, &mut out)), 0);
        assert!(out.iter().all(|&x| (x - 0.5).abs() < 1e-6));
    }
    assert_eq!(ffi::skc_destroy_cache(cache), 0);
}

/// A cache can be destroyed while a team is incomplete, when no member is inside.
#[test]
fn destroy_does_not_wait_for_members_that_never_come() {
    let cache = create();
    let (x, mut out) = (vec![0.5_f32; N * 16], vec![0.0_f32; N * 16]);
    // SAFETY: arguments are as the header demands.
    assert_eq!(unsafe { ffi::skc_step_part(cache, &args(&x, &mut out), 1, 2) }, 0);
    assert_eq!(ffi::skc_destroy_cache(cache), 0);
    assert_eq!(ffi::skc_destroy_cache(cache), ffi::SKC_STATUS_INVALID_HANDLE);
}

/// A Rust host may call while its own panic unwinds: the cache must stay usable.
#[test]
fn a_call_during_a_panic_leaves_the_cache_sound() {
    struct Calls(*mut skc_cache);
    impl Drop for Calls {
        fn drop(&mut self) {
            // SAFETY: arguments are as the header demands.
            unsafe {
                let mut info: ffi::skc_sequence_info = std::mem::zeroed();
                info.struct_size = size_of::<ffi::skc_sequence_info>() as u32;
                assert_eq!(ffi::skc_seq_info(self.0, 0, 0, &raw mut info), 0);
            }
        }
    }
    let cache = create();
    let outcome = std::panic::catch_unwind(|| {
        let _calls = Calls(cache);
        panic!("the host's own");
    });
    assert!(outcome.is_err());
    let (x, mut out) = (vec![0.5_f32; N * 16], vec![0.0_f32; N * 16]);
    // SAFETY: arguments are as the header demands.
    assert_eq!(unsafe { ffi::skc_step(cache, &args(&x, &mut out)) }, 0);
    assert_eq!(ffi::skc_destroy_cache(cache), 0);
}

/// Tokens that an aborted team step has overwritten are not held: no edit moves, or pins, what lies in their slots.
#[test]
fn no_edit_brings_back_what_an_aborted_team_step_has_overwritten() {
    let layer = skc_layer_config { n_sink: 1, window: 24, max_pinned: 4, max_segments: 4, ..Default::default() };
    let cache = create_with(layer, 8);
    let (x, wild) = (vec![0.5_f32; N * 16], vec![f32::NAN; N * 16]);
    let mut out = vec![0.0_f32; N * 16];
    let (seq, n) = (0_i32, 20_i32);
    // SAFETY: arguments are as the header demands.
    unsafe {
        for _ in 0..2 {
            assert_eq!(ffi::skc_step(cache, &args(&x, &mut out)), 0);
        }
        // 32 ring slots: 16 tokens more overwrite the oldest 8 of the window.
        assert_eq!(ffi::skc_step_part(cache, &args(&wild, &mut out), 0, 2), 0);
        let mut abort: ffi::skc_abort_step_args = std::mem::zeroed();
        abort.struct_size = size_of::<ffi::skc_abort_step_args>() as u32;
        assert_eq!(ffi::skc_abort_step(cache, &raw const abort), ffi::SKC_STATUS_TOKENS_GONE);
        assert_eq!(ffi::skc_step(cache, &args(&x, &mut out)), ffi::SKC_STATUS_TOKENS_GONE);
        let range = |first: &u64, n: &i32| {
            let mut a: ffi::skc_pin_args = std::mem::zeroed();
            a.struct_size = size_of::<ffi::skc_pin_args>() as u32;
            (a.n_entries, a.seq_ids, a.first, a.n_tokens) = (1, &raw const seq, first, n);
            a
        };
        assert_eq!(ffi::skc_pin(cache, &range(&9, &1)), ffi::SKC_STATUS_TOKENS_GONE);
        let mut drop: ffi::skc_evict_range_args = std::mem::zeroed();
        drop.struct_size = size_of::<ffi::skc_evict_range_args>() as u32;
        (drop.n_entries, drop.seq_ids, drop.first, drop.n_tokens) = (1, &raw const seq, &12, &raw const n);
        assert_eq!(ffi::skc_evict_range(cache, &raw const drop), ffi::SKC_STATUS_TOKENS_GONE);
        // The oldest tokens may go.
        let (mut evict, oldest): (ffi::skc_evict_args, i32) = (std::mem::zeroed(), 8);
        evict.struct_size = size_of::<ffi::skc_evict_args>() as u32;
        (evict.n_entries, evict.seq_ids, evict.n_tokens) = (1, &raw const seq, &raw const oldest);
        assert_eq!(ffi::skc_evict(cache, &raw const evict), 0);
        assert_eq!(ffi::skc_pin(cache, &range(&17, &1)), 0);
        assert_eq!(ffi::skc_step(cache, &args(&x, &mut out)), 0);
        assert!(out.iter().all(|&x| (x - 0.5).abs() < 1e-6));
    }
    assert_eq!(ffi::skc_destroy_cache(cache), 0);
}
