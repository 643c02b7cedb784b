//! Which turns of queries have their angles in scratch.

/// Turns whose angles a worker keeps.
pub(super) const TURNS: usize = 64;

/// Which turns of queries have their angles in scratch. They are those of all heads of a layer, and each head needs the
/// same ones in the same order.
#[derive(Clone, Debug)]
pub(super) struct TurnCache {
    positions: [u64; TURNS],
    /// Places that are filled in.
    n: usize,
    /// The place of the last turn.
    last: usize,
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
        Self { positions: [0; TURNS], n: 0, last: TURNS - 1 }
    }

    /// The place of the angles of a turn by so many positions; from now on they are there. Where all places are taken,
    /// the one behind the last makes room.
    pub fn place(&mut self, positions: u64) -> TurnPlace {
        let next = (self.last + 1) % TURNS;
        let known = &self.positions[..self.n];
        let found = if known.get(next) == Some(&positions) {
            Some(next)
        } else {
            known.iter().position(|&known| known == positions)
        };
        let index = found.unwrap_or(if self.n < TURNS { self.n } else { next });
        self.positions[index] = positions;
        self.n = self.n.max(index + 1);
        self.last = index;
        TurnPlace { index, is_new: found.is_none() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_turns_as_there_are_places_are_computed_once() {
        let mut cache = TurnCache::new();
        let turns = |head: u64| (0..TURNS as u64).map(move |i| (head, i.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let mut places = [usize::MAX; TURNS];
        for (head, positions) in (0..3).flat_map(turns) {
            let place = cache.place(positions);
            assert_eq!(place.is_new, head == 0, "head {head}, {positions} positions");
            let i = turns(0).position(|turn| turn.1 == positions).unwrap();
            assert!(place.is_new || places[i] == place.index, "head {head}, {positions} positions");
            places[i] = place.index;
        }
    }

    #[test]
    fn a_turn_replaces_an_older_one() {
        let mut cache = TurnCache::new();
        // A stream in which each turn comes back after three others, and more turns than places.
        let mut places = std::collections::HashMap::new();
        for positions in (0..1000_u64).map(|i| i / 4 + i % 4) {
            let place = cache.place(positions);
            if place.is_new {
                places.retain(|_, index| *index != place.index);
                assert!(places.insert(positions, place.index).is_none(), "{positions} was there");
            }
            assert_eq!(places.get(&positions), Some(&place.index), "{positions}");
        }
        assert!(places.len() == TURNS, "{} places", places.len());
    }
}
