//! K, V and counters in an NVIDIA GPU's memory, and kernels in the host's stream.

mod create;
mod device_layout;
mod device_memory;
mod driver;
mod heuristics;
mod jit;
mod launch_config;
mod modules;
mod params;
mod state;
mod submit;

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

pub(crate) use self::state::Cuda;

use self::driver::Relaxed;
use super::{Device, DeviceError, DeviceJob, Edit, KernelChoice, Stream, TokenCall};
use crate::error::{Result, bail};
use crate::ring::Seq;

/// Whether a CUDA cache can be made now: a driver, a device, and a compiler or kernels that are built in for it.
pub(crate) fn available() -> bool {
    let devices = driver::device_count();
    devices > 0 && (jit::nvrtc::nvrtc().is_ok() || (0..devices).filter_map(driver::arch_of).any(jit::embedded::serves))
}

impl Device for Cuda {
    fn run(&self, job: &DeviceJob<'_>) -> Result<()> {
        submit::run(self, &self.context.enter()?, job)
    }

    fn edit(&self, edit: &Edit<'_>) -> Result<()> {
        submit::edit(self, &self.context.enter()?, edit)
    }

    fn choice(&self, layer: usize, call: TokenCall, n_entries: u32, n_tokens: u32) -> Result<KernelChoice> {
        let chooser = self.chooser(layer);
        // A call of many chunks is as many times the launches of one, and those of the rest.
        let chunk = self.shape.max_chunk as u32;
        let (first, rest) = (n_tokens.min(chunk), n_tokens % chunk);
        let of = |n: u32| chooser.launches(call, n_entries, n, true);
        let launches =
            u64::from(n_tokens / chunk) * of(first).len() as u64 + if rest > 0 { of(rest).len() as u64 } else { 0 };
        let Some(&choice) = of(first).last() else { bail!(Internal, "a call without launches") };
        let kernel = self.kernel(layer, choice.which)?;
        Ok(KernelChoice {
            kernel: kernel.name.to_owned(),
            launches,
            grid: choice.size.grid,
            threads: kernel.threads,
            shared_bytes: choice.size.shared,
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
        current.read(stream, self.base()? + self.rest.starts + 8 * seq as u64, &mut start)?;
        Ok(start[0])
    }

    fn take_error(&self) -> Option<DeviceError> {
        let at = self.parts.error.as_ref()?.host();
        // SAFETY: mapped memory, alive as long as `self`; the device writes these two words atomically.
        let (status, count) =
            unsafe { (AtomicI32::from_ptr(&raw mut (*at).status), AtomicU32::from_ptr(&raw mut (*at).count)) };
        if status.load(Ordering::Acquire) == 0 {
            return None;
        }
        // SAFETY: complete, since the status is written last; nobody writes it again before `count` is 0.
        let record = unsafe { at.read_volatile() };
        status.store(0, Ordering::Relaxed);
        Some(DeviceError {
            count: count.swap(0, Ordering::AcqRel),
            status: record.status,
            call: record.call,
            layer: record.layer,
            entry: record.entry,
            seq_id: record.seq,
            value: record.value,
        })
    }

    fn finish(&self) -> Result<()> {
        let current = self.context.enter()?;
        let _relaxed = Relaxed::new()?;
        current.wait_all()
    }
}
