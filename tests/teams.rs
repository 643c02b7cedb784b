//! Thread teams some of whose members never come, through the C ABI.

use std::ptr;

use sinkcache::ffi::{self, skc_cache, skc_cache_config, skc_layer_config, skc_step_args};

const N: usize = 16;

fn create() -> *mut skc_cache {
    let layer = skc_layer_config { n_sink: 1, window: 4, ..Default::default() };
    let config = skc_cache_config {
        n_q_heads: 2,
        n_kv_heads: 2,
        head_dim: 8,
        kv_dtype: ffi::SKC_DTYPE_F32,
        max_chunk: N as u32,
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
