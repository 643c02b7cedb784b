//! A share of many like tests, where the machine is slow: under QEMU, sanitizers, the CUDA stand-in.

use std::fmt;

/// Of so many tests one is to run: `SKC_SHARE`, 1 unless it is set.
pub fn share() -> u64 {
    let share = std::env::var("SKC_SHARE").ok().map_or(1, |n| n.parse().expect("SKC_SHARE is a number"));
    assert!(share > 0, "SKC_SHARE is 0");
    share
}

/// Takes one test of so many, in the mean. The same ones in every run.
#[derive(Debug)]
pub struct Share {
    one_of: u64,
    seen: u64,
    taken: u64,
}

impl Share {
    /// Of [`share`] tests one is taken: a share of their groups, and a share in each group, so that what the tests of
    /// a group have in common is not computed for one of them alone.
    pub fn of_groups_and_tests() -> [Self; 2] {
        let groups = u64::isqrt(share());
        [groups, share() / groups].map(|one_of| Self { one_of, seen: 0, taken: 0 })
    }

    /// Whether the next test is of the share.
    pub fn take(&mut self) -> bool {
        // The high bits of a product with the golden ratio: a fixed distance would hit the same instruction set each
        // time.
        let drawn = self.seen.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        self.seen += 1;
        let taken = drawn.is_multiple_of(self.one_of);
        self.taken += u64::from(taken);
        taken
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.taken, self.seen)
    }
}
