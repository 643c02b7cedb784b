//! Texts of errors and log lines. A text of ordinary length needs no allocation, so that a call can be rejected when
//! memory has run out.

use std::ffi::CStr;
use std::fmt::{self, Write};

/// Bytes of a text that is held without an allocation, its final NUL included. The texts of rejected calls fit.
const SHORT: usize = 240;

/// A text, and a NUL behind it for C. NULs inside are replaced.
pub struct Text(Held);

#[expect(clippy::large_enum_variant, reason = "short texts are held inside, on purpose")]
enum Held {
    Short {
        bytes: [u8; SHORT],
        len: u8,
    },
    /// Ends with a NUL.
    Long(String),
}

impl Text {
    /// Formats a text. One that does not fit is allocated, or cut if that fails.
    #[cold]
    pub fn new(args: fmt::Arguments<'_>) -> Self {
        let mut text = Self(Held::Short { bytes: [0; SHORT], len: 0 });
        // An error of a `Display` implementation only leaves the rest of the text out.
        let _ = text.write_fmt(args);
        text
    }

    pub fn as_str(&self) -> &str {
        match &self.0 {
            // `push` adds whole characters only.
            Held::Short { bytes, len } => {
                bytes.get(..usize::from(*len)).map_or("", |b| str::from_utf8(b).unwrap_or(""))
            }
            Held::Long(text) => text.strip_suffix('\0').unwrap_or(text),
        }
    }

    #[allow(dead_code, reason = "the build script includes this file and has no use for it")]
    pub fn as_c_str(&self) -> &CStr {
        let bytes = match &self.0 {
            Held::Short { bytes, .. } => bytes.as_slice(),
            Held::Long(text) => text.as_bytes(),
        };
        CStr::from_bytes_until_nul(bytes).unwrap_or_default()
    }

    /// Adds a character; `Err` when there is no room for it.
    fn push(&mut self, c: char) -> fmt::Result {
        let mut utf8 = [0; 4];
        let c = c.encode_utf8(&mut utf8);
        if let Held::Short { bytes, len } = &mut self.0 {
            let end = usize::from(*len) + c.len();
            if end < SHORT {
                bytes[usize::from(*len)..end].copy_from_slice(c.as_bytes());
                *len = end as u8;
                return Ok(());
            }
            let mut long = String::new();
            long.try_reserve(2 * SHORT).map_err(|_| fmt::Error)?;
            long.push_str(self.as_str());
            long.push('\0');
            self.0 = Held::Long(long);
        }
        if let Held::Long(text) = &mut self.0 {
            text.try_reserve(c.len()).map_err(|_| fmt::Error)?;
            text.pop();
            text.push_str(c);
            text.push('\0');
        }
        Ok(())
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        s.chars().try_for_each(|c| self.push(if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }))
    }
}

impl Clone for Text {
    fn clone(&self) -> Self {
        Self::new(format_args!("{}", self.as_str()))
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text {}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_every_length_are_kept() {
        for n in [0, 1, SHORT - 3, SHORT - 2, SHORT - 1, SHORT, SHORT + 1, 10 * SHORT] {
            for letter in ["a", "é", "€", "𝄞"] {
                let text = Text::new(format_args!("{}!", letter.repeat(n)));
                assert_eq!(text.as_str(), letter.repeat(n) + "!");
                assert_eq!(text.as_c_str().to_str().unwrap(), text.as_str());
                assert_eq!(text.clone(), text);
                assert_eq!(matches!(text.0, Held::Short { .. }), text.as_str().len() < SHORT);
            }
        }
    }

    #[test]
    fn a_nul_does_not_end_a_text() {
        let text = Text::new(format_args!("a\0b"));
        assert_eq!(text.as_c_str().to_str().unwrap(), "a\u{fffd}b");
    }
}
