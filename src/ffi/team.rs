//! The state of a thread team's step.

use super::args::skc_step_args;
use crate::cache::PlannedCall;
use crate::config::MAX_THREADS;
use crate::error::{Error, Result, bail};

/// The step a team is doing, if any.
#[derive(Default)]
pub struct Team {
    pub step: Option<TeamStep>,
}

pub struct TeamStep {
    pub args: skc_step_args,
    pub call: PlannedCall,
    pub nth: u32,
    /// Bit per member that has come.
    arrived: [u64; (MAX_THREADS / 64) as usize],
    pub n_arrived: u32,
    pub n_finished: u32,
    pub failure: Option<Error>,
}

// SAFETY: the arguments' pointers are compared, never followed.
unsafe impl Send for Team {}

impl TeamStep {
    /// A step that no member has come to yet.
    pub fn new(args: skc_step_args, call: PlannedCall, nth: u32) -> Self {
        Self { args, call, nth, arrived: Default::default(), n_arrived: 0, n_finished: 0, failure: None }
    }

    /// Notes that member `ith` has come; refuses one that has come before.
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
