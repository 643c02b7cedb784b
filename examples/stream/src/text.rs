//! The stream: a text as tokens, and which of them are scored.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// The token that starts every sequence, `<s>`.
pub const START: u32 = 1;
/// Tokens before those of bytes: byte b is token b + 3.
pub const BYTE_OFFSET: u32 = 3;

/// `<s>` and the bytes of a text. The token at position p predicts byte p.
#[derive(Debug)]
pub struct Stream {
    bytes: Vec<u8>,
}

impl Stream {
    /// A stream over `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The first `tokens` bytes of a file, or without a number the first `default`, fewer if it has fewer. Reads no more
    /// than that.
    ///
    /// # Errors
    /// A file that cannot be read, is empty, or has fewer bytes than asked for.
    pub fn open(path: &Path, tokens: Option<u64>, default: u64) -> Result<Self> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("cannot open text '{shown}'"))?;
        let mut bytes = Vec::new();
        let n = file.take(tokens.unwrap_or(default)).read_to_end(&mut bytes);
        let n = n.with_context(|| format!("cannot read text '{shown}'"))?;
        ensure!(n > 0, "text '{shown}' is empty");
        if let Some(tokens) = tokens
            && (n as u64) < tokens
        {
            bail!("--tokens {tokens}: text '{shown}' has only {n}");
        }
        Ok(Self::new(bytes))
    }

    /// Tokens, each of which predicts a byte.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The token at a position; position [`Self::len`] is what the last token predicts.
    #[must_use]
    pub fn token(&self, position: u64) -> u32 {
        match position.checked_sub(1) {
            None => START,
            Some(byte) => u32::from(self.bytes[byte as usize]) + BYTE_OFFSET,
        }
    }

    /// Puts the tokens at `positions` into `tokens`.
    pub fn fill(&self, positions: Range<u64>, tokens: &mut Vec<u32>) {
        tokens.clear();
        tokens.extend(positions.map(|p| self.token(p)));
    }
}

/// Positions whose prediction is scored: every `stride`-th from `start` and before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scored {
    /// First one.
    pub start: u64,
    /// Distance between two.
    pub stride: u64,
    /// Behind the last one.
    pub end: u64,
}

impl Scored {
    /// The first scored position at or behind `position`.
    fn at_or_behind(self, position: u64) -> u64 {
        self.start + position.saturating_sub(self.start).div_ceil(self.stride) * self.stride
    }

    /// Those in `range`, ascending.
    pub fn within(self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let end = range.end.min(self.end);
        (self.at_or_behind(range.start)..end.max(self.start)).step_by(self.stride as usize).filter(move |&p| p < end)
    }

    /// All of them, ascending.
    pub fn positions(self) -> impl Iterator<Item = u64> {
        self.within(0..self.end)
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u64 {
        self.end.saturating_sub(self.start).div_ceil(self.stride)
    }

    /// The same positions, but only those before `end`.
    #[must_use]
    pub fn before(self, end: u64) -> Self {
        Self { end: self.end.min(end), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_start_and_bytes() {
        let stream = Stream::new(b"ab".to_vec());
        let mut tokens = Vec::new();
        stream.fill(0..3, &mut tokens);
        assert_eq!(tokens, [START, 100, 101]);
        assert_eq!(stream.len(), 2);
    }

    #[test]
    fn chunks_divide_the_scored_positions() {
        for (start, stride, end) in [(0, 1, 10), (3, 4, 50), (7, 40, 47), (7, 40, 48), (9, 5, 9), (20, 3, 10)] {
            let scored = Scored { start, stride, end };
            let all: Vec<_> = (0..end).filter(|p| *p >= start && (p - start) % stride == 0).collect();
            assert_eq!(scored.positions().collect::<Vec<_>>(), all);
            assert_eq!(scored.count(), all.len() as u64);
            for chunk in 1..=end {
                let cut: Vec<_> =
                    (0..end).step_by(chunk as usize).flat_map(|from| scored.within(from..from + chunk)).collect();
                assert_eq!(cut, all);
            }
        }
    }
}
