//! Loading a sequence. Nothing in a snapshot is believed before it is checked.

use super::counters::SavedCounters;
use super::format::{HostTag, Section, Sections, Tag, read_header};
use super::rows::{self, SavedTokens};
use super::settings;
use crate::backend::SlotRun;
use crate::cache::state::Cache;
use crate::config::Which;
use crate::error::{Result, bail};
use crate::ring::Seq;

/// A snapshot whose checksums are right, and whose sections are those that this version needs.
struct Snapshot<'a> {
    tag: HostTag,
    settings: &'a [u8],
    counters: &'a [u8],
    /// Sections of K and V.
    n_rows: usize,
    sections: Sections<'a>,
}

/// A tag as hexadecimal digits.
struct Hex<'a>(&'a HostTag);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<'a> Snapshot<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self> {
        let header = read_header(bytes)?;
        let sections = Sections::new(bytes, &header);
        let (mut settings, mut counters, mut n_rows) = (None, None, 0);
        let mut all = sections.clone();
        while let Some(section) = all.next()? {
            section.check()?;
            let Section { tag, content, .. } = section;
            match tag {
                // What follows is understood by what comes before it.
                Tag::SETTINGS if settings.is_none() => settings = Some(content),
                Tag::COUNTERS if settings.is_some() && counters.is_none() => counters = Some(content),
                Tag::ROWS if counters.is_some() => n_rows += 1,
                Tag::SETTINGS | Tag::COUNTERS | Tag::ROWS => {
                    bail!(InvalidSnapshot, "a section {tag} of the snapshot is in the wrong place, or there twice")
                }
                _ if section.mandatory => {
                    bail!(InvalidSnapshot, "the snapshot has a section {tag} that this library does not know")
                }
                _ => {}
            }
        }
        let (Some(settings), Some(counters)) = (settings, counters) else {
            bail!(InvalidSnapshot, "the snapshot has no settings (CONF) or no counters (SEQN)");
        };
        Ok(Self { tag: header.tag, settings, counters, n_rows, sections })
    }

    /// The content of each layer's rows, in order.
    fn rows(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut sections = self.sections.clone();
        std::iter::from_fn(move || {
            // The sections have been walked before: none is in error.
            while let Ok(Some(section)) = sections.next() {
                if section.tag == Tag::ROWS {
                    return Some(section.content);
                }
            }
            None
        })
    }
}

impl Cache {
    /// Replaces what a sequence holds by a snapshot. No query of a token before the load can be asked for after it. A
    /// CUDA cache waits for its stream.
    ///
    /// # Errors
    /// `InvalidSnapshot` for a snapshot that is damaged, of another version, or of a cache whose settings or whose host
    /// tag differ: the text says which. `OutOfRange` if the sequence does not exist; `InvalidArgument` while the stream
    /// is being captured.
    pub fn load_sequence(&mut self, seq_id: i32, tag: &HostTag, snapshot: &[u8]) -> Result<()> {
        // SAFETY: the copies are waited for below.
        let outcome = unsafe { self.begin_load(seq_id, tag, snapshot) };
        // A refused load has put nothing into the stream, which may be being captured; one that failed part way has made
        // the cache unusable.
        if let Some(device) = self.device().filter(|_| outcome.is_ok() || self.failed.is_some()) {
            let waited = device.wait(self.stream);
            return self.note_device_loss(outcome.and(waited));
        }
        outcome
    }

    /// As [`Cache::load_sequence`], but a CUDA cache does not wait for its stream.
    ///
    /// # Safety
    /// For a CUDA cache the snapshot must stay as it is until the stream's work has finished, if it is in pinned
    /// memory.
    pub(crate) unsafe fn begin_load(&mut self, seq_id: i32, tag: &HostTag, snapshot: &[u8]) -> Result<()> {
        self.check_usable()?;
        let seq = self.check_seq_id(seq_id)?;
        self.check_not_capturing()?;
        let (shape, n_layers) = (self.shape, self.layers.len());
        let snapshot = self.check_snapshot(tag, snapshot)?;
        let saved = SavedCounters::new(snapshot.counters, n_layers)?;
        for (layer, content) in snapshot.rows().enumerate() {
            let tokens = SavedTokens::new(&self.layers[layer].ring, &saved.layer(layer, &self.layers[layer].ring)?);
            let n = content.len();
            if tokens.content_bytes(&shape) != Some(n as u64) {
                bail!(InvalidSnapshot, "layer {layer}: {n} bytes are not the K and V of {} tokens", tokens.n());
            }
            if content[..rows::HEAD_BYTES] != (layer as u64).to_le_bytes() {
                bail!(InvalidSnapshot, "the K and V of layer {layer} are not in their place");
            }
        }
        let outcome = self.load_layers(seq, &saved, &snapshot);
        if let Err(error) = outcome {
            // What the sequence now holds is unknown.
            self.poison();
            return self.note_device_loss(Err(error));
        }
        Ok(())
    }

    fn check_snapshot<'a>(&self, tag: &HostTag, bytes: &'a [u8]) -> Result<Snapshot<'a>> {
        let snapshot = Snapshot::open(bytes)?;
        if snapshot.tag != *tag {
            bail!(InvalidSnapshot, "host_tag is {}: the snapshot has {}", Hex(tag), Hex(&snapshot.tag));
        }
        settings::check(&self.shape, &self.layers, snapshot.settings)?;
        let (n, n_layers) = (snapshot.n_rows, self.layers.len());
        if n != n_layers {
            bail!(InvalidSnapshot, "the snapshot has K and V of {n} layers: {n_layers} are needed");
        }
        Ok(snapshot)
    }

    /// Writes the rows of checked layers, then the counters.
    fn load_layers(&mut self, seq: usize, saved: &SavedCounters<'_>, snapshot: &Snapshot<'_>) -> Result<()> {
        for (layer, content) in snapshot.rows().enumerate() {
            let counters = saved.layer(layer, &self.layers[layer].ring)?;
            let restored = self.layers[layer].ring.restored(&counters);
            self.load_rows(layer, seq, &counters, restored.loaded_from, &content[rows::HEAD_BYTES..])?;
        }
        self.counters.starts[seq] = saved.start;
        for layer in 0..self.layers.len() {
            let ring = &self.layers[layer].ring;
            *self.counters.seq_mut(layer, seq) = ring.restored(&saved.layer(layer, ring)?);
            self.counters.refresh(layer, seq);
        }
        self.send_counters(seq)
    }

    /// Writes the sinks and the window tokens from `from` on.
    fn load_rows(&self, layer: usize, seq: usize, saved: &Seq, from: u64, mut rest: &[u8]) -> Result<()> {
        let (settings, shape) = (&self.layers[layer], &self.shape);
        let tokens = SavedTokens::new(&settings.ring, saved);
        for which in [Which::K, Which::V] {
            let row = shape.row_bytes(which);
            let (rows, after) = rest.split_at(tokens.n() as usize * row * shape.n_kv_heads);
            for head in 0..shape.n_kv_heads {
                for run in tokens.runs(&settings.ring, from) {
                    let rows = &rows[tokens.range(&run, head, row)];
                    let run = SlotRun { shape, layer, settings, seq, which, head, slot: run.slot, n: run.n };
                    self.write_run(&run, rows)?;
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// Puts a write of the host's counters of a sequence into the stream of a CUDA cache.
    pub(in crate::cache) fn send_counters(&self, seq: usize) -> Result<()> {
        let Some(device) = self.device() else { return Ok(()) };
        let states = self.counters.layers(seq).map(|(_, state)| *state);
        device.write_counters(self.stream, seq, &mut { states }, self.counters.starts[seq])
    }
}
