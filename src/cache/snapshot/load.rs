//! Loading a sequence. Nothing in a snapshot is believed before it is checked.

use std::ops::Range;

use super::counters::SavedCounters;
use super::format::{HostTag, Section, Sections, Tag, read_header};
use super::rows::{self, SavedTokens};
use super::settings;
use crate::backend::SlotRun;
use crate::cache::state::Cache;
use crate::config::Which;
use crate::error::{Result, bail};
use crate::ring::{Ring, Seq};

/// A snapshot whose sections are those that this version needs. The checksums of K and V may be wrong.
struct Snapshot<'a> {
    tag: HostTag,
    settings: &'a [u8],
    counters: &'a [u8],
    edits: Option<&'a [u8]>,
    /// Sections of K and V.
    n_rows: usize,
    sections: Sections<'a>,
}

/// Checks that a layer has room for the pinned tokens and the ranges of a saved sequence.
pub(super) fn check_room(layer: usize, ring: &Ring, saved: &Seq) -> Result<()> {
    let (pinned, segments) = (saved.n_pinned, saved.n_ranges);
    if u64::from(pinned) > ring.max_pinned {
        bail!(NoRoom, "layer {layer}: {pinned} tokens are pinned, max_pinned is {}", ring.max_pinned);
    }
    if u64::from(segments) > ring.max_segments {
        bail!(
            NoRoom,
            "layer {layer}: pinned runs and evicted ranges are {segments}, max_segments is {}",
            ring.max_segments
        );
    }
    Ok(())
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
        let (mut settings, mut counters, mut edits, mut n_rows) = (None, None, None, 0);
        let mut all = sections.clone();
        while let Some(section) = all.next()? {
            let Section { tag, content, .. } = section;
            // Those of K and V, which are long, are compared later.
            if tag != Tag::ROWS {
                section.check()?;
            }
            match tag {
                // What follows is understood by what comes before it.
                Tag::SETTINGS if settings.is_none() => settings = Some(content),
                Tag::COUNTERS if settings.is_some() && counters.is_none() => counters = Some(content),
                Tag::EDITS if counters.is_some() && edits.is_none() && n_rows == 0 => edits = Some(content),
                Tag::ROWS if counters.is_some() => n_rows += 1,
                Tag::SETTINGS | Tag::COUNTERS | Tag::EDITS | Tag::ROWS => {
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
        Ok(Self { tag: header.tag, settings, counters, edits, n_rows, sections })
    }

    /// The sections of each layer's rows, in order.
    fn rows(&self) -> impl Iterator<Item = Section<'a>> + use<'a> {
        let mut sections = self.sections.clone();
        std::iter::from_fn(move || {
            // The sections have been walked before: none is in error.
            while let Ok(Some(section)) = sections.next() {
                if section.tag == Tag::ROWS {
                    return Some(section);
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
        // A refused load has put nothing into the stream, which may be being captured; one that failed part way has
        // made the cache unusable.
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
        let n_bytes = snapshot.len();
        let snapshot = self.check_snapshot(tag, snapshot)?;
        let saved = SavedCounters::new(snapshot.counters, snapshot.edits, n_layers)?;
        for (layer, Section { content, .. }) in snapshot.rows().enumerate() {
            let ring = &self.layers[layer].ring;
            let seq = saved.layer(layer, ring)?;
            check_room(layer, ring, &seq)?;
            let tokens = SavedTokens::new(ring, &seq);
            let n = content.len();
            if tokens.content_bytes(&shape) != Some(n as u64) {
                bail!(InvalidSnapshot, "layer {layer}: {n} bytes are not the K and V of {} tokens", tokens.n());
            }
            if content[..rows::HEAD_BYTES] != (layer as u64).to_le_bytes() {
                bail!(InvalidSnapshot, "the K and V of layer {layer} are not in their place");
            }
        }
        let of_layers = |range: &Range<usize>| snapshot.rows().skip(range.start).take(range.len());
        let checked = self.for_layers(n_bytes, &|range| of_layers(&range).try_for_each(|section| section.check()));
        self.note_panic(checked)?;
        let outcome = self
            .for_layers(n_bytes, &|range| {
                let mut layers = range.clone().zip(of_layers(&range));
                layers.try_for_each(|(layer, section)| self.load_rows(layer, seq, &saved, section.content))
            })
            .and_then(|()| self.load_counters(seq, &saved));
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

    /// Sets the counters to those of a checked snapshot.
    fn load_counters(&mut self, seq: usize, saved: &SavedCounters<'_>) -> Result<()> {
        self.counters.starts[seq] = saved.start;
        for layer in 0..self.layers.len() {
            let ring = &self.layers[layer].ring;
            let restored = ring.restored(&saved.layer(layer, ring)?);
            self.counters.replace(layer, seq, &restored, saved.ranges(layer));
            self.counters.refresh(layer, seq);
        }
        self.counters.refresh_ranges(seq);
        self.send_counters(seq)
    }

    /// Writes the rows of a layer's section: the sinks, and of the window what the ring may show.
    fn load_rows(&self, layer: usize, seq: usize, saved: &SavedCounters<'_>, content: &[u8]) -> Result<()> {
        let (settings, shape) = (&self.layers[layer], &self.shape);
        let saved = saved.layer(layer, &settings.ring)?;
        let (tokens, from) = (SavedTokens::new(&settings.ring, &saved), settings.ring.restored(&saved).loaded_from);
        let mut rest = &content[rows::HEAD_BYTES..];
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
        let states = self.counters.layers(seq).map(|(layer, state)| (*state, self.counters.ranges(layer, seq)));
        device.write_counters(self.stream, seq, &mut { states }, self.counters.starts[seq])
    }
}
