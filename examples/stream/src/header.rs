//! Checks the header of a GGUF file before candle reads it: candle divides by the alignment that the file names, takes
//! the last of two equal names, and multiplies dimensions without a check.

use std::collections::HashSet;
use std::io::{BufRead, Seek};

use anyhow::{Context, Result, bail, ensure};

/// Little-endian "GGUF".
const MAGIC: u32 = 0x4655_4747;
/// The least bytes of a key with its value: length, type, value.
const LEAST_KEY: u64 = 8 + 4 + 1;
/// The least bytes of a tensor: length of its name, number of dimensions, type, offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;
const MAX_DIMS: u32 = 4;
/// Names of keys and tensors are far shorter; only values may be long.
const MAX_NAME: u64 = 1 << 16;
const ALIGNMENT: &[u8] = b"general.alignment";

const TYPE_U32: u32 = 4;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// Reads the header of `file_bytes` bytes from its beginning to its end. Afterwards the reader stands behind it.
///
/// # Errors
/// A header that is cut short, or names something twice, or holds a number that is not allowed.
pub fn check<R: BufRead + Seek>(reader: &mut R, file_bytes: u64) -> Result<()> {
    let mut header = Header { reader, left: file_bytes };
    let magic = header.u32()?;
    ensure!(magic == MAGIC, "its first bytes are '{}' instead of 'GGUF'", shown(&magic.to_le_bytes()));
    let version = header.u32()?;
    ensure!((2..=3).contains(&version), "its version is {version}: 2 or 3 is allowed");
    let tensors = header.count("tensors", LEAST_TENSOR)?;
    let keys = header.count("keys", LEAST_KEY)?;
    let mut names = HashSet::new();
    for _ in 0..keys {
        let key = header.name("key")?;
        header.value(&key).with_context(|| format!("key '{}'", shown(&key)))?;
        ensure!(names.insert(key.clone()), "key '{}' stands twice", shown(&key));
    }
    names.clear();
    for _ in 0..tensors {
        let name = header.name("tensor")?;
        header.tensor().with_context(|| format!("tensor '{}'", shown(&name)))?;
        ensure!(names.insert(name.clone()), "tensor '{}' stands twice", shown(&name));
    }
    Ok(())
}

struct Header<'a, R> {
    reader: &'a mut R,
    /// Bytes from here to the end of the file.
    left: u64,
}

impl<R: BufRead + Seek> Header<'_, R> {
    fn take(&mut self, bytes: u64) -> Result<()> {
        ensure!(bytes <= self.left, "is cut short: {bytes} bytes are missing beyond its end");
        self.left -= bytes;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.take(bytes)?;
        Ok(self.reader.seek_relative(i64::try_from(bytes)?)?)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A number of things of at least `least` bytes.
    fn count(&mut self, what: &str, least: u64) -> Result<u64> {
        let n = self.u64()?;
        let most = self.left / least;
        ensure!(n <= most, "has {n} {what}: the {} bytes that follow have room for at most {most}", self.left);
        Ok(n)
    }

    fn name(&mut self, what: &str) -> Result<Vec<u8>> {
        let n = self.u64()?;
        ensure!((1..=MAX_NAME).contains(&n), "the name of a {what} has {n} bytes: 1 to 2^16 is allowed");
        self.take(n)?;
        let mut bytes = vec![0; n as usize];
        self.reader.read_exact(&mut bytes)?;
        // Candle drops zeros at the end: two names may differ in them alone.
        bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
        Ok(bytes)
    }

    fn value(&mut self, key: &[u8]) -> Result<()> {
        let kind = self.u32()?;
        if key == ALIGNMENT {
            ensure!(kind == TYPE_U32, "is of type {kind}: {TYPE_U32} (u32) is allowed");
            let alignment = self.u32()?;
            ensure!(alignment.is_power_of_two(), "is {alignment}: a power of two is allowed");
            return Ok(());
        }
        if kind == TYPE_ARRAY {
            let kind = self.u32()?;
            let n = self.u64()?;
            return self.values(kind, n);
        }
        self.values(kind, 1)
    }

    /// `n` values of one type.
    fn values(&mut self, kind: u32, n: u64) -> Result<()> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            TYPE_U32 | 5 | 6 => 4,
            10..=12 => 8,
            TYPE_STRING => {
                let most = self.left / 8;
                ensure!(n <= most, "has {n} texts: the file has room for at most {most}");
                for _ in 0..n {
                    let bytes = self.u64()?;
                    self.skip(bytes)?;
                }
                return Ok(());
            }
            TYPE_ARRAY => bail!("is an array of arrays, which is not supported"),
            _ => bail!("is of type {kind}: 0 to 12 is allowed"),
        };
        let Some(bytes) = n.checked_mul(size) else { bail!("has {n} values, more than the file has bytes") };
        self.skip(bytes)
    }

    fn tensor(&mut self) -> Result<()> {
        let dims = self.u32()?;
        ensure!(dims <= MAX_DIMS, "has {dims} dimensions: at most {MAX_DIMS} are allowed");
        let mut elements = 1_u64;
        for _ in 0..dims {
            let dim = self.u64()?;
            elements = match elements.checked_mul(dim) {
                Some(product) if (1..=i64::MAX as u64).contains(&product) => product,
                _ => bail!("has a dimension of {dim}: 1 or more, and 2^63 - 1 elements at most, are allowed"),
            };
        }
        // Its type and its offset: candle knows the types, and the caller checks where tensors end.
        self.skip(4 + 8)
    }
}

/// Bytes of a file for a message: what is no printable ASCII is escaped, and the text is cut at 100 bytes.
fn shown(bytes: &[u8]) -> String {
    let first = &bytes[..bytes.len().min(100)];
    let dots = if first.len() < bytes.len() { "..." } else { "" };
    format!("{}{dots}", first.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(name)[..], &kind.to_le_bytes(), value].concat()
    }

    fn array(name: &str, kind: u32, n: u64) -> Vec<u8> {
        key(name, TYPE_ARRAY, &[&kind.to_le_bytes()[..], &n.to_le_bytes()].concat())
    }

    fn tensor(name: &str, dims: &[u64]) -> Vec<u8> {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        [&text(name)[..], &(dims.len() as u32).to_le_bytes(), &dims_bytes, &[0; 12]].concat()
    }

    fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
        let counts = [(tensors.len() as u64).to_le_bytes(), (keys.len() as u64).to_le_bytes()].concat();
        [b"GGUF\x03\0\0\0", &counts[..], &keys.concat(), &tensors.concat()].concat()
    }

    fn checked(bytes: &[u8]) -> Result<()> {
        check(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    fn rejected(bytes: &[u8], part: &str) {
        let error = format!("{:#}", checked(bytes).unwrap_err());
        assert!(error.contains(part), "{error:?} should contain {part:?}");
    }

    #[test]
    fn a_header_of_every_type_is_accepted_and_no_prefix_of_it() {
        let keys = [
            key("general.alignment", TYPE_U32, &64_u32.to_le_bytes()),
            key("text", TYPE_STRING, &text("abc")),
            key("byte", 0, &[1]),
            key("short", 3, &[1, 2]),
            key("double", 12, &[0; 8]),
            [array("texts", TYPE_STRING, 2), text("a"), text("")].concat(),
            [array("numbers", 5, 3), vec![0; 12]].concat(),
        ];
        let whole = file(&keys, &[tensor("a", &[2, 3]), tensor("b", &[])]);
        checked(&whole).unwrap();
        for n in 0..whole.len() {
            assert!(checked(&whole[..n]).is_err(), "{n} of {} bytes", whole.len());
        }
    }

    #[test]
    fn alignments_other_than_powers_of_two_are_rejected() {
        for alignment in [0_u32, 3, 33, u32::MAX] {
            let keys = [key("general.alignment", TYPE_U32, &alignment.to_le_bytes())];
            rejected(&file(&keys, &[]), &format!("key 'general.alignment': is {alignment}: a power of two"));
        }
        rejected(&file(&[key("general.alignment", 10, &[0; 8])], &[]), "is of type 10");
        // Candle takes this key for the same one.
        rejected(&file(&[key("general.alignment\0", TYPE_U32, &[0; 4])], &[]), "is 0: a power of two");
    }

    #[test]
    fn names_that_stand_twice_are_rejected() {
        let twice = [key("a", 0, &[1]), key("a\0", 0, &[1])];
        rejected(&file(&twice, &[]), "key 'a' stands twice");
        rejected(&file(&[], &[tensor("w", &[2]), tensor("w", &[2])]), "tensor 'w' stands twice");
    }

    #[test]
    fn counts_beyond_the_file_are_rejected_before_anything_is_allocated() {
        let sound = file(&[key("a", 0, &[1])], &[tensor("w", &[2])]);
        let with = |at: usize, value: u64| [&sound[..at], &value.to_le_bytes(), &sound[at + 8..]].concat();
        for n in [1 << 20, 1 << 40, 1 << 63, u64::MAX] {
            rejected(&with(8, n), "tensors: the");
            rejected(&with(16, n), "keys: the");
            rejected(&with(24, n), "the name of a key has");
            rejected(&file(&[array("texts", TYPE_STRING, n)], &[]), "texts: the file has room");
            let numbers = file(&[array("numbers", 12, n)], &[]);
            assert!(checked(&numbers).is_err());
        }
        rejected(&file(&[key("", 0, &[1])], &[]), "has 0 bytes");
    }

    #[test]
    fn types_and_dimensions_that_do_not_exist_are_rejected() {
        rejected(&file(&[key("a", 13, &[0; 8])], &[]), "is of type 13");
        rejected(&file(&[array("a", TYPE_ARRAY, 0)], &[]), "array of arrays");
        rejected(&file(&[], &[tensor("w", &[1; 5])]), "5 dimensions");
        for dims in [&[0, 4][..], &[1 << 63], &[1 << 32, 1 << 32], &[u64::MAX, u64::MAX]] {
            rejected(&file(&[], &[tensor("w", dims)]), "tensor 'w': has a dimension of");
        }
        rejected(b"GGUF\x04\0\0\0", "version is 4");
        rejected(b"GGML\x03\0\0\0", "'GGML' instead of 'GGUF'");
        rejected(b"\xff\n\x1b[", "'\\xff\\n\\x1b['");
    }
}
