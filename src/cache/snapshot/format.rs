//! The frame of a snapshot: a header, and sections with tags, lengths and checksums. Numbers are little-endian.

use twox_hash::XxHash3_64;

use crate::error::{Error, Result, Status, bail};

#[cfg(target_endian = "big")]
compile_error!("snapshots are written from memory as it is: a little-endian processor is needed");

/// A tag of the host that is kept in a snapshot and compared at a load, such as a hash of the model and the shard.
pub type HostTag = [u8; 32];

/// The version that is written, and the latest that can be read.
pub const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"SKC-SEQ\n";
/// What the header's checksum covers: all before it.
const HEADER_HASHED: usize = HEADER_BYTES - 8;
const SECTION_HEAD: usize = 16;
const CHECKSUM: usize = 8;
/// Of a section: a reader that does not know the tag must refuse the snapshot.
const MANDATORY: u32 = 1;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub [u8; 4]);

impl Tag {
    /// What the loading cache must agree with.
    pub const SETTINGS: Self = Self(*b"CONF");
    /// Lengths and positions.
    pub const COUNTERS: Self = Self(*b"SEQN");
    /// Pinned and evicted ranges, if there are any.
    pub const EDITS: Self = Self(*b"EDIT");
    /// K and V of one layer.
    pub const ROWS: Self = Self(*b"ROWS");
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Bytes of a section with so many bytes of content, if they fit 64 bits.
pub fn section_bytes(content: u64) -> Option<u64> {
    content.checked_next_multiple_of(8)?.checked_add((SECTION_HEAD + CHECKSUM) as u64)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    XxHash3_64::oneshot(bytes).to_le_bytes()
}

/// Writes the header of a snapshot of `n_bytes` bytes.
pub fn write_header(out: &mut [u8], n_sections: u32, n_bytes: u64, tag: &HostTag) {
    let (front, sum) = out[..HEADER_BYTES].split_at_mut(HEADER_HASHED);
    let mut to = Writer::new(front);
    to.bytes(&MAGIC);
    to.u32(VERSION);
    to.u32(n_sections);
    to.u64(n_bytes);
    to.bytes(tag);
    sum.copy_from_slice(&checksum(front));
}

/// Writes a section that fills `out`, with content of `n` bytes that `fill` writes.
pub fn write_section(out: &mut [u8], tag: Tag, n: usize, fill: impl FnOnce(&mut [u8])) {
    let (body, sum) = out.split_at_mut(out.len() - CHECKSUM);
    let mut to = Writer::new(body);
    to.bytes(&tag.0);
    to.u32(MANDATORY);
    to.u64(n as u64);
    let (content, padding) = body[SECTION_HEAD..].split_at_mut(n);
    fill(content);
    padding.fill(0);
    sum.copy_from_slice(&checksum(body));
}

/// An error of the status that all snapshots get that cannot be loaded.
pub fn invalid(text: impl std::fmt::Display) -> Error {
    Error::new(Status::InvalidSnapshot, text)
}

/// A checked header.
#[derive(Debug)]
pub struct Header {
    pub n_sections: u32,
    pub tag: HostTag,
}

/// Reads the header of a snapshot, and checks that it is one of this version and as long as it says.
pub fn read_header(bytes: &[u8]) -> Result<Header> {
    let n = bytes.len();
    let Some((header, _)) = bytes.split_at_checked(HEADER_BYTES) else {
        bail!(InvalidSnapshot, "n_bytes is {n}: a snapshot has at least {HEADER_BYTES} bytes");
    };
    let mut from = Reader::new(header);
    if from.bytes()? != MAGIC {
        bail!(InvalidSnapshot, "the first 8 bytes are \"{}\": this is no snapshot", header[..8].escape_ascii());
    }
    let (version, n_sections, n_bytes, tag) = (from.u32()?, from.u32()?, from.u64()?, from.bytes()?);
    if version != VERSION {
        bail!(InvalidSnapshot, "the snapshot is of version {version}: this library reads version {VERSION}");
    }
    if n_bytes != n as u64 {
        bail!(InvalidSnapshot, "n_bytes is {n}: the snapshot has {n_bytes} bytes by its header");
    }
    if checksum(&header[..HEADER_HASHED]) != from.bytes()? {
        bail!(InvalidSnapshot, "the checksum of the snapshot's header is wrong: it is damaged");
    }
    Ok(Header { n_sections, tag })
}

/// A section, as long as its head says; its checksum may be wrong.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    pub tag: Tag,
    pub mandatory: bool,
    pub content: &'a [u8],
    /// Everything before the checksum.
    body: &'a [u8],
    sum: &'a [u8],
    /// Its place among the sections.
    index: u32,
}

impl Section<'_> {
    /// Compares the checksum, and checks that the padding is zero.
    pub fn check(&self) -> Result<()> {
        if checksum(self.body) != self.sum {
            bail!(InvalidSnapshot, "the checksum of section {} ({}) is wrong: it is damaged", self.index, self.tag);
        }
        if self.body[SECTION_HEAD + self.content.len()..].iter().any(|&b| b != 0) {
            bail!(InvalidSnapshot, "section {} ({}) has padding that is not zero", self.index, self.tag);
        }
        Ok(())
    }
}

/// The sections of a snapshot whose header is checked, one after the other.
#[derive(Clone, Debug)]
pub struct Sections<'a> {
    rest: &'a [u8],
    index: u32,
    n: u32,
}

impl<'a> Sections<'a> {
    pub fn new(bytes: &'a [u8], header: &Header) -> Self {
        Self { rest: bytes.get(HEADER_BYTES..).unwrap_or_default(), index: 0, n: header.n_sections }
    }

    /// The next section, or `None` after the last.
    pub fn next(&mut self) -> Result<Option<Section<'a>>> {
        let (index, left) = (self.index, self.rest.len());
        if index == self.n {
            if left > 0 {
                bail!(InvalidSnapshot, "{left} bytes follow the last of {index} sections");
            }
            return Ok(None);
        }
        let mut from = Reader::new(self.rest);
        let short = |_| invalid(format_args!("section {index} of {} begins {left} bytes before the end", self.n));
        let (tag, flags) = (Tag(from.bytes().map_err(short)?), from.u32().map_err(short)?);
        let n = from.u64().map_err(short)?;
        if flags & !MANDATORY != 0 {
            bail!(InvalidSnapshot, "section {index} ({tag}) has flags {flags:#x}: {MANDATORY} or 0 is allowed");
        }
        let whole = section_bytes(n).and_then(|whole| usize::try_from(whole).ok());
        let Some((section, rest)) = whole.and_then(|whole| self.rest.split_at_checked(whole)) else {
            bail!(InvalidSnapshot, "section {index} ({tag}) of {n} bytes ends beyond the snapshot: {left} are left");
        };
        let (body, sum) = section.split_at(section.len() - CHECKSUM);
        let content = &body[SECTION_HEAD..][..n as usize];
        (self.rest, self.index) = (rest, index + 1);
        Ok(Some(Section { tag, mandatory: flags == MANDATORY, content, body, sum, index }))
    }
}

/// Writes numbers one after the other.
#[derive(Debug)]
pub struct Writer<'a> {
    rest: &'a mut [u8],
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut [u8]) -> Self {
        Self { rest: out }
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        let (front, rest) = std::mem::take(&mut self.rest).split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        self.rest = rest;
    }

    pub fn u32(&mut self, x: u32) {
        self.bytes(&x.to_le_bytes());
    }

    pub fn u64(&mut self, x: u64) {
        self.bytes(&x.to_le_bytes());
    }

    pub fn f32(&mut self, x: f32) {
        self.bytes(&x.to_le_bytes());
    }
}

/// Reads numbers one after the other.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((front, rest)) = self.rest.split_first_chunk::<N>() else {
            bail!(
                InvalidSnapshot,
                "a section of the snapshot is too short: it ends {} bytes early",
                N - self.rest.len()
            );
        };
        self.rest = rest;
        Ok(*front)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    pub fn f32(&mut self) -> Result<f32> {
        self.bytes().map(f32::from_le_bytes)
    }

    /// Fails unless everything has been read.
    pub fn end(&self, what: &str) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            n => bail!(InvalidSnapshot, "{n} bytes follow the {what} of the snapshot"),
        }
    }
}
