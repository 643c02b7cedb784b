//! A step by a thread team of the host, without a barrier between append and attend.
//!
//! The first member to arrive checks the arguments and opens the step; the last to finish commits it. Each member
//! computes KV heads of its own.

use super::args::{read_step, skc_step_args};
use super::boundary::{boundary, catch_panic};
use super::c_struct::read_struct;
use super::constants::skc_status;
use super::gate::Handle;
use super::registry::{skc_cache, with_handle};
use super::team::TeamStep;
use crate::cache::PlannedCall;
use crate::error::{Result, bail};

/// skc_step by a thread team of the host: `nth` threads (at most n_threads) call it with the same arguments, each with
/// its own `ith` below `nth`. The work is divided by KV heads. For CPU caches only.
///
/// The call never blocks on other members. Output and cache state are valid after all `nth` calls have returned: the
/// host needs a barrier between them and the next call on the cache.
///
/// A member that is rejected leaves the step open for the others. skc_abort_step ends a step whose other members never
/// come; a member that comes after that begins a new step.
///
/// Returns: SKC_STATUS_OK, the common statuses, and
/// - SKC_STATUS_BUSY: also when the team's step has other arguments.
/// - SKC_STATUS_INVALID_ARGUMENT: also for a CUDA cache; `nth` is not that of the step, 0, or above n_threads; `ith` is
///   not below `nth`, or has come already.
/// - SKC_STATUS_OUT_OF_RANGE: the layer or a sequence does not exist; positions beyond 2^64 - 1.
/// - SKC_STATUS_LAYERS_OUT_OF_STEP: with SKC_IN_STEP alone.
/// - SKC_STATUS_TOKENS_GONE: an aborted step has overwritten tokens of a sequence's window: reset it.
///
/// If a member's call fails with SKC_STATUS_INTERNAL, the last member's call returns it too.
///
/// Lifetime: args until the call returns; its arrays and tensors until all members' calls have returned.
///
/// Threads: `nth` threads at the same time, each once per step. Other calls on the cache return SKC_STATUS_BUSY
/// meanwhile.
///
/// # Safety
/// `args` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_step_part(
    cache: *mut skc_cache,
    args: *const skc_step_args,
    ith: u32,
    nth: u32,
) -> skc_status {
    boundary(|| {
        // SAFETY: NULL or a struct of struct_size bytes.
        let args = unsafe { read_struct(args) }?;
        with_handle(cache, |handle| {
            // SAFETY: arrays and tensors are as the header demands.
            let call = unsafe { join(handle, args, ith, nth) }?;
            // SAFETY: this member has joined and not left.
            let outcome = catch_panic(|| unsafe { handle.cache_shared() }.run_part(call, ith, nth));
            leave(handle, outcome)
        })
    })
}

/// Joins the step, or opens one.
///
/// # Safety
/// As for [`plan`].
unsafe fn join(handle: &Handle, args: skc_step_args, ith: u32, nth: u32) -> Result<PlannedCall> {
    let mut team = handle.team();
    if team.step.is_none() {
        handle.begin_team()?;
        // SAFETY: the gate was opened for the team just now, the lock is held, and no member has joined yet.
        match catch_panic(|| unsafe { plan(handle, args, ith, nth) }) {
            Ok(step) => team.step = Some(step),
            Err(error) => {
                handle.end_team();
                return Err(error);
            }
        }
    }
    let Some(step) = &mut team.step else {
        bail!(Internal, "the team's step is missing after it was opened");
    };
    if step.args != args {
        bail!(Busy, "a step of skc_step_part with other arguments is unfinished on this cache");
    }
    if step.nth != nth || ith >= nth {
        bail!(InvalidArgument, "ith is {ith} of nth {nth}: a step of {} members is under way", step.nth);
    }
    step.arrive(ith)?;
    Ok(step.call)
}

/// Checks the arguments and plans the step.
///
/// # Safety
/// The gate must be open for the team, the caller must hold the lock of `team`, and no member may have joined. Arrays
/// and tensors must be as the header demands.
unsafe fn plan(handle: &Handle, args: skc_step_args, ith: u32, nth: u32) -> Result<TeamStep> {
    // SAFETY: gate, lock and members are as `cache_exclusive` demands.
    let cache = unsafe { handle.cache_exclusive() };
    // SAFETY: the header demands a live stream of the cache's context.
    unsafe { cache.set_stream(args.stream) }?;
    if cache.is_on_device() {
        bail!(InvalidArgument, "skc_step_part: a thread team cannot run a step of a CUDA cache; call skc_step");
    }
    if nth == 0 || nth > cache.max_parts() || ith >= nth {
        bail!(
            InvalidArgument,
            "ith is {ith} of nth {nth}: nth from 1 to n_threads ({}) and ith below it are allowed",
            cache.max_parts()
        );
    }
    // SAFETY: arrays and tensors are as the header demands.
    let (batch, tensors) = unsafe { read_step(&args) }?;
    let call = cache.plan_step(args.layer, batch, tensors)?;
    // From here on members may overwrite slots, even if not all of them come.
    cache.mark_overwritten(call);
    Ok(TeamStep::new(args, call, nth))
}

/// Notes that a member has finished. The last one commits the step.
fn leave(handle: &Handle, outcome: Result<()>) -> Result<()> {
    let mut team = handle.team();
    let Some(step) = &mut team.step else {
        bail!(Internal, "the team's step is missing before all members have left");
    };
    step.n_finished += 1;
    if let Err(error) = &outcome {
        step.failure = Some(error.clone());
    }
    if step.n_finished < step.nth {
        return outcome;
    }
    // SAFETY: a step is open, so the gate is the team's; the lock is held, and all members have finished.
    let cache = unsafe { handle.cache_exclusive() };
    if let Some(step) = team.step.take() {
        match step.failure {
            Some(error) => {
                cache.poison();
                handle.end_team();
                return Err(error);
            }
            None => cache.commit(step.call),
        }
    }
    handle.end_team();
    outcome
}

#[cfg(all(test, not(sinkcache_loom)))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]
mod tests {
    use super::super::gate::Exclusive;
    use super::super::log::Log;
    use super::*;
    use crate::cache::Cache;
    use crate::config::CacheConfig;
    use crate::error::{Error, Status};

    /// The others finish, and the cache can only be destroyed: whether the step ends with its last member, or by an
    /// abort because one never comes.
    #[test]
    fn a_member_that_fails_fails_the_step() {
        let config = CacheConfig { n_q_heads: 2, n_kv_heads: 2, head_dim: 8, n_threads: 3, ..CacheConfig::default() };
        let (seq, n_tokens, x, mut out) = (0, 1, [0.5_f32; 16], [0.0_f32; 16]);
        let row = x.as_ptr().cast();
        // SAFETY: all fields are integers and pointers, for which zero is valid.
        let zero: skc_step_args = unsafe { std::mem::zeroed() };
        let (seq_ids, n_tokens) = (&raw const seq, &raw const n_tokens);
        let out = out.as_mut_ptr().cast();
        let args = skc_step_args { n_entries: 1, seq_ids, n_tokens, q: row, k: row, v: row, out, ..zero };
        for aborted in [false, true] {
            let handle = Handle::new(Cache::new(&config).unwrap(), Log { call: None, user: std::ptr::null_mut() });
            for ith in 0..if aborted { 2 } else { 3 } {
                // SAFETY: the arrays and rows are as the header demands.
                unsafe { join(&handle, args, ith, 3) }.unwrap();
            }
            let failed = leave(&handle, Err(Error::new(Status::Internal, "seven")));
            assert_eq!(failed.unwrap_err().message(), "seven");
            leave(&handle, Ok(())).unwrap();
            let mut cache = if aborted {
                Exclusive::enter_and_end_step(&handle, |_| Ok(())).unwrap()
            } else {
                assert_eq!(leave(&handle, Ok(())).unwrap_err().message(), "seven");
                Exclusive::enter(&handle).unwrap()
            };
            assert_eq!(cache.cache().reset(&[0], None).unwrap_err().status(), Status::Internal);
        }
    }
}
