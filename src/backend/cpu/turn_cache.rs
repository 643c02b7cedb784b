//! Which turns of queries have their angles in scratch.

/// Turns whose angles a worker keeps.
pub(super) const TURNS: usize = 64;

/// Which turns of queries have their angles in scratch. They are those of all heads of a layer.
#[derive(Clone, Debug)]
pub(super) struct TurnCache {
    positions: [u64; TURNS],
    /// A bit for each that is filled in.
    valid: u64,
}

/// Where the angles of a turn are.
#[derive(Clone, Copy, Debug)]
pub(super) struct TurnPlace {
    pub index: usize,
    /// Whether they must be computed.
    pub is_new: bool,
}

impl TurnCache {
    pub fn new() -> Self {
        Self { positions: [0; TURNS], valid: 0 }
    }

    /// The place of the angles of a turn by so many positions; from now on they are there.
    pub fn place(&mut self, positions: u64) -> TurnPlace {
        // Fibonacci hashing: turns are often multiples of one another.
        let index = (positions.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as usize;
        let is_new = self.valid >> index & 1 == 0 || self.positions[index] != positions;
        self.positions[index] = positions;
        self.valid |= 1 << index;
        TurnPlace { index, is_new }
    }
}
