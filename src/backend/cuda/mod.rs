//! The CUDA backend: K, V and counters in an NVIDIA GPU's memory, and kernels in the host's stream.

mod create;
mod device_layout;
mod device_memory;
mod driver;
mod error_record;
mod heuristics;
mod jit;
mod launch_config;
mod modules;
mod params;
mod state;
mod submit;

#[cfg(fuzzing)]
pub use self::jit::kernel_file;
pub(crate) use self::state::Cuda;

use self::device_layout::RowAddresses;
use self::driver::{RelaxedCapture, RowPiece};
use self::heuristics::CallSize;
use self::params::{SkcLayer, SkcStore};
use super::{Device, DeviceCall, DeviceError, DevicePlace, Edit, KernelChoice, SlotRun, Stream, TokenCall};
use crate::config::Which;
use crate::error::{Result, bail};
use crate::ranges::EditedRange;
use crate::ring::Seq;

/// Whether a CUDA cache can be created now: there is a driver, a device, and a compiler or kernels built in for the
/// device.
pub(crate) fn available() -> bool {
    let devices = driver::device_count();
    let built_in = || (0..devices).filter_map(driver::arch_of).any(jit::embedded::has_common_kernels);
    devices > 0 && (jit::nvrtc::nvrtc().is_ok() || built_in())
}

impl Cuda {
    /// The address of the first of `n` ranges of a sequence in a layer.
    fn ranges_of(&self, layer: usize, seq: usize, n: usize) -> Result<u64> {
        let SkcLayer { ranges, max_segments, .. } = self.settings[layer];
        if n as u64 > max_segments || seq >= self.n_seqs as usize {
            bail!(Internal, "{n} of {max_segments} ranges of sequence {seq}");
        }
        Ok(ranges + seq as u64 * max_segments * size_of::<EditedRange>() as u64)
    }

    /// Where a run of slots lies, and the store that it belongs to.
    fn rows(&self, run: &SlotRun<'_>) -> Result<(&SkcStore, RowAddresses)> {
        let SlotRun { shape, layer, settings, seq, which, head, slot, n } = *run;
        let slots = settings.ring.slots();
        if slot + n > slots || seq >= self.n_seqs as usize || head >= shape.n_kv_heads {
            bail!(Internal, "slots {slot} + {n} of {slots} in head {head} of sequence {seq}");
        }
        let store = match which {
            Which::K => &self.settings[layer].k,
            Which::V => &self.settings[layer].v,
        };
        Ok((store, store.row_at((seq * shape.n_kv_heads + head) as u64, slot)))
    }
}

/// Codes and scales of a run's rows, which lie apart on the device and in turn on the host; each with its offset in a
/// row on the host.
fn pieces(store: &SkcStore, at: RowAddresses, row_bytes: usize) -> impl Iterator<Item = (RowPiece, usize)> {
    let codes = store.row_codes as usize;
    // Without the padding.
    let scales = row_bytes - codes;
    let piece = |address, pitch: u32, width| RowPiece { address, pitch: pitch as usize, width, host_pitch: row_bytes };
    [(piece(at.codes, store.row_codes, codes), 0), (piece(at.scales, store.row_scales, scales), codes)]
        .into_iter()
        .filter(|(piece, _)| piece.width > 0)
}

impl Device for Cuda {
    fn run(&self, job: &DeviceCall<'_>) -> Result<()> {
        submit::run(self, &self.context.enter()?, job)
    }

    fn edit(&self, edit: &Edit<'_>) -> Result<()> {
        submit::edit(self, &self.context.enter()?, edit)
    }

    fn choice(&self, layer: usize, call: TokenCall, n_entries: u32, n_tokens: u32) -> Result<KernelChoice> {
        let heuristics = self.heuristics(layer);
        let launches_of = |n_tokens: u32| heuristics.launches(call, CallSize { n_entries, n_tokens, aligned: true });
        // A call of several chunks launches for each of them. All but the last are full.
        let max_chunk = self.shape.max_chunk as u32;
        let rest = n_tokens % max_chunk;
        let first = launches_of(n_tokens.min(max_chunk));
        let mut launches = u64::from(n_tokens / max_chunk) * first.len() as u64;
        if rest > 0 {
            launches += launches_of(rest).len() as u64;
        }
        let Some(&choice) = first.last() else { bail!(Internal, "a call without launches") };
        let kernel = self.kernel(layer, choice.kernel)?;
        Ok(KernelChoice {
            kernel: kernel.name,
            launches,
            grid: choice.size.grid,
            threads: kernel.threads,
            shared_bytes: choice.size.shared_bytes,
            n_splits: choice.n_splits,
        })
    }

    fn capturing(&self, stream: Stream) -> Result<bool> {
        self.context.enter()?.capturing(stream)
    }

    fn read_back(&self, stream: Stream, seq: usize, states: &mut [Seq]) -> Result<u64> {
        let current = self.context.enter()?;
        if current.capturing(stream)? {
            bail!(InvalidArgument, "the stream is being captured: its work cannot be waited for");
        }
        for (state, layer) in states.iter_mut().zip(&self.settings) {
            let at = layer.seqs + (seq * size_of::<Seq>()) as u64;
            current.read(stream, at, std::slice::from_mut(state))?;
        }
        let mut start = [0_u64];
        current.read(stream, self.aux_base()? + self.aux.starts + 8 * seq as u64, &mut start)?;
        Ok(start[0])
    }

    fn read_ranges(&self, stream: Stream, layer: usize, seq: usize, out: &mut [EditedRange]) -> Result<()> {
        self.context.enter()?.read(stream, self.ranges_of(layer, seq, out.len())?, out)
    }

    fn read_rows(&self, stream: Stream, run: &SlotRun<'_>, out: &mut [u8]) -> Result<()> {
        let current = self.context.enter()?;
        let (store, at) = self.rows(run)?;
        for (piece, offset) in pieces(store, at, run.row_bytes()) {
            current.read_rows_later(stream, piece, &mut out[offset..])?;
        }
        Ok(())
    }

    fn write_rows(&self, stream: Stream, run: &SlotRun<'_>, rows: &[u8]) -> Result<()> {
        let current = self.context.enter()?;
        let (store, at) = self.rows(run)?;
        for (piece, offset) in pieces(store, at, run.row_bytes()) {
            current.write_rows(stream, piece, &rows[offset..])?;
        }
        Ok(())
    }

    fn copy_rows(&self, stream: Stream, to: &SlotRun<'_>, other: &dyn Device, from: &SlotRun<'_>) -> Result<bool> {
        let (here, there) = (self.place_of(to)?, other.place_of(from)?);
        if here.context != there.context {
            return Ok(false);
        }
        let store = self.rows(to)?.0;
        let current = self.context.enter()?;
        current.copy(stream, here.codes, there.codes, to.n as usize * store.row_codes as usize)?;
        if store.row_scales > 0 {
            current.copy(stream, here.scales, there.scales, to.n as usize * store.row_scales as usize)?;
        }
        Ok(true)
    }

    fn place_of(&self, run: &SlotRun<'_>) -> Result<DevicePlace> {
        let RowAddresses { codes, scales } = self.rows(run)?.1;
        Ok(DevicePlace { context: self.context.number(), codes, scales })
    }

    fn write_counters(
        &self,
        stream: Stream,
        seq: usize,
        states: &mut dyn Iterator<Item = (Seq, &[EditedRange])>,
        start: u64,
    ) -> Result<()> {
        let current = self.context.enter()?;
        for (index, ((state, ranges), layer)) in states.zip(&self.settings).enumerate() {
            current.write(stream, layer.seqs + (seq * size_of::<Seq>()) as u64, &[state])?;
            if !ranges.is_empty() {
                current.write(stream, self.ranges_of(index, seq, ranges.len())?, ranges)?;
            }
        }
        current.write(stream, self.aux_base()? + self.aux.starts + 8 * seq as u64, &[start])
    }

    fn wait(&self, stream: Stream) -> Result<()> {
        self.context.enter()?.wait(stream)
    }

    fn take_error(&self) -> Option<DeviceError> {
        let page = self.resources.errors.as_ref()?.host();
        // SAFETY: the memory is mapped as long as `self` lives. The device writes it with system scope, all but
        // `n_taken`, and a cache has one caller at a time.
        unsafe { error_record::take(page) }
    }

    fn finish(&self) -> Result<()> {
        let current = self.context.enter()?;
        let _relaxed = RelaxedCapture::new()?;
        current.wait_all()
    }
}
