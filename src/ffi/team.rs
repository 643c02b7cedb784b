//! The state of a thread team's step (`skc_step_part`).

use super::args::skc_step_args;
use crate::cache::PlannedCall;
use crate::config::MAX_THREADS;
use crate::error::{Error, Result, bail};

/// The step that a thread team is doing, if any.
#[derive(Default)]
pub struct Team {
    pub step: Option<TeamStep>,
}

/// A step that its first member has planned and its last member will commit.
pub struct TeamStep {
    /// The first member's arguments: those of all members must be equal.
    pub args: skc_step_args,
    pub call: PlannedCall,
    /// Number of members.
    pub nth: u32,
    /// One bit per member: whether it has come.
    arrived: [u64; (MAX_THREADS / 64) as usize],
    pub n_arrived: u32,
    pub n_finished: u32,
    /// Set when a member has failed.
    pub failure: Option<Error>,
}

// SAFETY: the pointers in `args` are only compared, not dereferenced; the tensors' addresses in `call` may be used by
// any thread (see `Strided`).
unsafe impl Send for Team {}

impl TeamStep {
    /// A step to which no member has come yet.
    pub fn new(args: skc_step_args, call: PlannedCall, nth: u32) -> Self {
        Self { args, call, nth, arrived: Default::default(), n_arrived: 0, n_finished: 0, failure: None }
    }

    /// Notes that member `ith` has come; rejects one that has come before.
    pub fn arrive(&mut self, ith: u32) -> Result<()> {
        let bit = 1_u64 << (ith % 64);
        match self.arrived.get_mut((ith / 64) as usize) {
            Some(word) if *word & bit == 0 => *word |= bit,
            _ => bail!(InvalidArgument, "ith is {ith}: that member has already come in this step"),
        }
        self.n_arrived += 1;
        Ok(())
    }
}
