//! A step done by a host's own thread team, without a barrier between append and attend.
//!
//! The first member to arrive checks the arguments and lets the team in, the last to finish makes the tokens count. In
//! between every member works on heads of its own.

use super::args::{read_step, skc_step_args};
use super::boundary::{boundary, catch_panic};
use super::c_struct::read_struct;
use super::constants::skc_status;
use super::gate::Handle;
use super::registry::{skc_cache, with_handle};
use super::team::TeamStep;
use crate::cache::PlannedCall;
use crate::error::{Result, bail};

/// skc_step from inside a host's own thread team: `nth` threads call it with the same arguments and each with its own
/// `ith` below `nth`, at most n_threads. The work is divided among them by KV heads; nobody waits for anybody. Results
/// count when all have returned: put the team's own barrier between one step and the next call on this cache.
///
/// A member that is refused leaves the step open for the others; skc_abort_step ends one whose members never come. A
/// member that comes after all begins a new step.
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
        // SAFETY: the caller's contract.
        let args = unsafe { read_struct(args) }?;
        with_handle(cache, |handle| {
            // SAFETY: the caller's contract.
            let call = unsafe { enter(handle, args, ith, nth) }?;
            // SAFETY: this member has entered, and no member changes the cache before all have left.
            let outcome = catch_panic(|| unsafe { handle.cache_shared() }?.run_part(call, ith, nth));
            leave(handle, outcome)
        })
    })
}

/// Joins the step, or opens it.
unsafe fn enter(handle: &Handle, args: skc_step_args, ith: u32, nth: u32) -> Result<PlannedCall> {
    let mut team = handle.team.lock();
    if team.step.is_none() {
        handle.begin_team()?;
        // SAFETY: the gate was just opened for a team, the lock is held, and no member is in yet.
        match catch_panic(|| unsafe { plan(handle, args, ith, nth) }) {
            Ok(step) => team.step = Some(step),
            Err(error) => {
                handle.end_team();
                return Err(error);
            }
        }
    }
    let Some(step) = &mut team.step else {
        bail!(Internal, "a step was opened and is not there");
    };
    if step.args != args {
        bail!(Busy, "a thread team is inside skc_step_part on this cache with other arguments");
    }
    if step.nth != nth || ith >= nth {
        bail!(InvalidArgument, "ith is {ith} of nth {nth}: a step of {} members is under way", step.nth);
    }
    step.arrive(ith)?;
    Ok(step.call)
}

unsafe fn plan(handle: &Handle, args: skc_step_args, ith: u32, nth: u32) -> Result<TeamStep> {
    // SAFETY: the caller's contract.
    let cache = unsafe { handle.cache_exclusive() }?;
    // SAFETY: the caller's contract.
    unsafe { cache.set_stream(args.stream) }?;
    if cache.is_on_device() {
        bail!(InvalidArgument, "skc_step_part: a thread team cannot do the work of a CUDA cache; call skc_step");
    }
    if nth == 0 || nth > cache.max_parts() || ith >= nth {
        bail!(
            InvalidArgument,
            "ith is {ith} of nth {nth}: nth from 1 to n_threads ({}) and ith below it",
            cache.max_parts()
        );
    }
    // SAFETY: the caller's contract.
    let (batch, tensors) = unsafe { read_step(&args) }?;
    let call = cache.plan_step(args.layer, batch, tensors)?;
    // From here on slots may be overwritten, whether the others come or not.
    cache.mark_overwritten(call);
    Ok(TeamStep::new(args, call, nth))
}

/// Notes that a member has finished; the last one commits.
fn leave(handle: &Handle, outcome: Result<()>) -> Result<()> {
    let mut team = handle.team.lock();
    let Some(step) = &mut team.step else {
        bail!(Internal, "the step ended before its members");
    };
    step.n_finished += 1;
    if let Err(error) = &outcome {
        step.failure = Some(error.clone());
    }
    if step.n_finished < step.nth {
        return outcome;
    }
    // SAFETY: all members have finished, the lock is held, and the gate is still the team's.
    let cache = unsafe { handle.cache_exclusive() };
    if let (Some(step), Ok(cache)) = (team.step.take(), cache) {
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
