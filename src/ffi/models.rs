//! Models of handles, slots, gates and teams: loom runs calls of the C ABI in every order of threads.

use super::*;
use crate::sync::{explore, spawn};

const VALUE: f32 = 0.5;
const DIM: usize = 8;

/// A cache that loom's threads share.
#[derive(Clone, Copy)]
struct Handle(*mut skc_cache);
// SAFETY: a number, which any thread may use.
unsafe impl Send for Handle {}

unsafe extern "C" fn no_threads(_: *mut std::ffi::c_void, _: u32, _: skc_task_fn, _: *mut std::ffi::c_void) {}

macro_rules! args {
    ($type:ty { $($field:ident: $value:expr),* $(,)? }) => {{
        // SAFETY: all fields are integers and pointers, for which zero is valid.
        let mut args: $type = unsafe { std::mem::zeroed() };
        args.struct_size = size_of::<$type>() as u32;
        $(args.$field = $value;)*
        args
    }};
}

impl Handle {
    /// A cache with threads of the host's: it has none of its own.
    fn create() -> Self {
        let layer = skc_layer_config { n_sink: 1, window: 2, ..Default::default() };
        let config = skc_cache_config {
            n_q_heads: 2,
            n_kv_heads: 2,
            head_dim: DIM as u32,
            kv_dtype: SKC_DTYPE_F32,
            max_chunk: 1,
            n_threads: 2,
            parallel_for: Some(no_threads),
            n_layer_configs: 1,
            layers: &raw const layer,
            ..Default::default()
        };
        let mut cache = std::ptr::null_mut();
        // SAFETY: the configuration is valid, the handle writable.
        assert_eq!(unsafe { skc_create_cache(&raw const config, &raw mut cache) }, SKC_STATUS_OK);
        Self(cache)
    }

    fn destroy(self) -> skc_status {
        skc_destroy_cache(self.0)
    }

    /// The status of a question for the length, and the length.
    fn length(self) -> (skc_status, u64) {
        let mut info = args!(skc_sequence_info {});
        // SAFETY: any handle; a struct of this size.
        let status = unsafe { skc_seq_info(self.0, 0, 0, &raw mut info) };
        (status, info.length_max)
    }

    fn abort(self) -> skc_status {
        let args = args!(skc_abort_step_args {});
        // SAFETY: any handle.
        unsafe { skc_abort_step(self.0, &raw const args) }
    }

    fn step(self) -> skc_status {
        let step = Step::new();
        // SAFETY: any handle; tensors of a token.
        unsafe { skc_step(self.0, &raw const step.args) }
    }

    fn step_part(self, step: &Step, ith: u32) -> skc_status {
        // SAFETY: any handle; tensors of a token, which outlive the model's threads.
        unsafe { skc_step_part(self.0, &raw const step.args, ith, 2) }
    }
}

/// A step of one token, in memory that is never freed.
#[derive(Clone, Copy)]
struct Step {
    args: skc_step_args,
    out: *mut [f32; 2 * DIM],
}
// SAFETY: inputs are not written, and each member of a team writes its own head of `out`.
unsafe impl Send for Step {}

impl Step {
    fn new() -> Self {
        static INPUT: [f32; 2 * DIM] = [VALUE; 2 * DIM];
        let input = INPUT.as_ptr().cast();
        let out: *mut [f32; 2 * DIM] = Box::leak(Box::new([f32::NAN; 2 * DIM]));
        let args = args!(skc_step_args {
            n_entries: 1,
            seq_ids: &0,
            n_tokens: &1,
            q: input,
            k: input,
            v: input,
            out: out.cast()
        });
        Self { args, out }
    }

    fn is_done(&self) -> bool {
        // SAFETY: the model's threads have ended.
        unsafe { &*self.out }.iter().all(|x| (x - VALUE).abs() < 1e-6)
    }
}

#[test]
fn a_cache_is_destroyed_before_or_after_a_call_but_not_during_it() {
    explore(|| {
        let cache = Handle::create();
        let user = spawn(move || cache.length());
        let destroyed = cache.destroy();
        let used = user.join().unwrap();
        assert!([(SKC_STATUS_OK, 0), (SKC_STATUS_BUSY, 0), (SKC_STATUS_INVALID_HANDLE, 0)].contains(&used));
        if destroyed != SKC_STATUS_OK {
            assert_eq!((destroyed, used.0), (SKC_STATUS_BUSY, SKC_STATUS_OK));
            assert_eq!(cache.destroy(), SKC_STATUS_OK);
        }
        assert_eq!(cache.length().0, SKC_STATUS_INVALID_HANDLE);
    });
}

#[test]
fn of_two_that_destroy_a_cache_one_succeeds() {
    explore(|| {
        let cache = Handle::create();
        let other = spawn(move || cache.destroy());
        let mut both = [cache.destroy(), other.join().unwrap()];
        both.sort_unstable();
        if both[1] != SKC_STATUS_OK {
            // Each has met the other.
            assert_eq!(both, [SKC_STATUS_BUSY; 2]);
            assert_eq!(cache.destroy(), SKC_STATUS_OK);
        }
        assert!(both[0] == SKC_STATUS_BUSY || both[0] == SKC_STATUS_INVALID_HANDLE);
    });
}

/// Slots come from a stack without a lock.
#[test]
fn caches_that_are_created_at_the_same_time_have_slots_of_their_own() {
    explore(|| {
        let first = Handle::create();
        assert_eq!(first.destroy(), SKC_STATUS_OK);
        let recreate = || {
            let old = Handle::create();
            assert_eq!(old.destroy(), SKC_STATUS_OK);
            (old, Handle::create())
        };
        let other = spawn(recreate);
        let both = [recreate(), other.join().unwrap()];
        assert_ne!(both[0].1.0, both[1].1.0);
        for (old, new) in both {
            assert_eq!(old.length().0, SKC_STATUS_INVALID_HANDLE);
            assert_eq!(new.destroy(), SKC_STATUS_OK);
        }
        assert_eq!(first.length().0, SKC_STATUS_INVALID_HANDLE);
    });
}

#[test]
fn two_calls_follow_each_other_or_one_finds_the_cache_busy() {
    explore(|| {
        let cache = Handle::create();
        let other = spawn(move || cache.step());
        let both = [cache.step(), other.join().unwrap()];
        let succeeded = both.iter().filter(|&&status| status == SKC_STATUS_OK).count() as u64;
        assert!(succeeded > 0 && both.iter().all(|&s| s == SKC_STATUS_OK || s == SKC_STATUS_BUSY));
        assert_eq!(cache.length(), (SKC_STATUS_OK, succeeded));
        assert_eq!(cache.destroy(), SKC_STATUS_OK);
    });
}

#[test]
fn a_step_of_a_team_is_seen_whole_or_not_at_all() {
    explore(|| {
        let (cache, step) = (Handle::create(), Step::new());
        let members = [0, 1].map(|ith| spawn(move || cache.step_part(&{ step }, ith)));
        let seen = cache.length();
        assert!([(SKC_STATUS_OK, 0), (SKC_STATUS_OK, 1), (SKC_STATUS_BUSY, 0)].contains(&seen), "{seen:?}");
        let joined = members.map(|member| member.join().unwrap());
        if joined != [SKC_STATUS_OK; 2] {
            // The question was under way when a member came.
            assert!(joined.iter().all(|&status| status == SKC_STATUS_OK || status == SKC_STATUS_BUSY), "{joined:?}");
            assert_eq!(seen, (SKC_STATUS_OK, 0));
            assert_eq!(cache.abort(), SKC_STATUS_OK);
            assert_eq!(cache.length(), (SKC_STATUS_OK, 0));
            assert_eq!(cache.destroy(), SKC_STATUS_OK);
            return;
        }
        assert!(step.is_done());
        assert_eq!(cache.length(), (SKC_STATUS_OK, 1));
        assert_eq!(cache.destroy(), SKC_STATUS_OK);
    });
}

#[test]
fn a_step_that_is_aborted_while_a_member_comes_leaves_the_cache_as_it_was() {
    explore(|| {
        let (cache, step) = (Handle::create(), Step::new());
        let member = spawn(move || cache.step_part(&{ step }, 0));
        let aborted = cache.abort();
        let joined = member.join().unwrap();
        assert!(aborted == SKC_STATUS_OK || aborted == SKC_STATUS_BUSY);
        assert!(joined == SKC_STATUS_OK || (joined, aborted) == (SKC_STATUS_BUSY, SKC_STATUS_OK));
        assert_eq!(cache.abort(), SKC_STATUS_OK);
        assert_eq!(cache.length(), (SKC_STATUS_OK, 0));
        assert_eq!(cache.step(), SKC_STATUS_OK);
        assert_eq!(cache.length(), (SKC_STATUS_OK, 1));
        assert_eq!(cache.destroy(), SKC_STATUS_OK);
    });
}
