//! The stream: a text as tokens.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// The token that starts every sequence, `<s>`.
pub const START: u32 = 1;
/// The token of byte 0. Byte b is token b + 3.
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

    /// `tokens` bytes of a file, after the first `skip`. Without `tokens`: `default` bytes, or all if there are fewer.
    /// The rest of the file is not read.
    ///
    /// # Errors
    /// A file that cannot be read, or has no bytes or fewer than `tokens` after the skipped ones.
    pub fn open(path: &Path, skip: u64, tokens: Option<u64>, default: u64) -> Result<Self> {
        let shown = path.display();
        let mut file = File::open(path).with_context(|| format!("cannot open text '{shown}'"))?;
        let mut bytes = Vec::new();
        // Skipped bytes are read: the file may be a pipe.
        let skipped = std::io::copy(&mut file.by_ref().take(skip), &mut std::io::sink());
        let n = skipped.and_then(|_| file.take(tokens.unwrap_or(default)).read_to_end(&mut bytes));
        let n = n.with_context(|| format!("cannot read text '{shown}'"))?;
        let after = if skip > 0 { format!(" after its first {skip} bytes") } else { String::new() };
        ensure!(n > 0, "text '{shown}' is empty{after}");
        if let Some(tokens) = tokens
            && (n as u64) < tokens
        {
            bail!("--tokens {tokens}: text '{shown}' has only {n}{after}");
        }
        Ok(Self::new(bytes))
    }

    /// The number of tokens. Each predicts a byte.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether the text is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The token at a position. The one at [`Self::len`] is what the last token predicts.
    #[must_use]
    pub fn token(&self, position: u64) -> u32 {
        match position.checked_sub(1) {
            None => START,
            Some(byte) => u32::from(self.bytes[byte as usize]) + BYTE_OFFSET,
        }
    }

    /// Replaces `tokens` by the tokens at `positions`.
    pub fn fill(&self, positions: Range<u64>, tokens: &mut Vec<u32>) {
        tokens.clear();
        tokens.extend(positions.map(|p| self.token(p)));
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
}
