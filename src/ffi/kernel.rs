//! Which kernel runs for which call: for tests, and for whoever wonders.

use std::ffi::c_char;

use super::boundary::boundary;
use super::c_struct::c_struct;
use super::constants::{SKC_CALL_APPEND, SKC_CALL_ATTEND, SKC_CALL_STEP, skc_status};
use super::info::fill;
use super::registry::{skc_cache, with_cache};
use crate::backend::TokenCall;
use crate::error::{Result, bail};

/// A kernel and how it is launched, filled by skc_kernel_choice. Set struct_size and zero the rest before the call. On the
/// CPU there is a name only. Of a step longer than max_chunk all but n_launches is of its first chunk.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_kernel_info {
    /// sizeof(skc_kernel_info).
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// Name of the kernel; of a call that takes several, that of its attention. "skc_step_decode" is append and attention
    /// in one launch. Ends with 0.
    pub kernel: [c_char; 40],
    /// Launches that the call takes. Those that write a batch of more than 64 entries in host memory to the device are not
    /// counted.
    pub n_launches: u64,
    /// Blocks in x: one for each entry.
    pub grid_x: u32,
    /// Blocks in y.
    pub grid_y: u32,
    /// Blocks in z.
    pub grid_z: u32,
    /// Threads of a block.
    pub block_threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks that share the keys of one KV head of one sequence.
    pub n_splits: u32,
}
c_struct!(skc_kernel_info);

/// Which kernel a call runs in a layer, if the rows of its tensors begin at multiples of 16 bytes: `call` is
/// SKC_CALL_APPEND, SKC_CALL_ATTEND or SKC_CALL_STEP, on up to `n_tokens` tokens of each of `n_entries` sequences. The
/// choice follows from these numbers, the cache's settings and the device alone, never from what sequences hold.
///
/// # Safety
/// `info` must be NULL or as the header describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_kernel_choice(
    cache: *mut skc_cache,
    layer: u32,
    call: u32,
    n_entries: u32,
    n_tokens: u32,
    info: *mut skc_kernel_info,
) -> skc_status {
    boundary(|| {
        let call = call_of(call)?;
        let choice = with_cache(cache, |cache| cache.kernel_choice(layer, call, n_entries, n_tokens))?;
        let mut kernel = [0; 40];
        // The last byte stays 0.
        for (to, from) in kernel.iter_mut().take(39).zip(choice.kernel.bytes()) {
            *to = from as c_char;
        }
        let [grid_x, grid_y, grid_z] = choice.grid;
        let value = |old: skc_kernel_info| skc_kernel_info {
            kernel,
            n_launches: choice.launches,
            grid_x,
            grid_y,
            grid_z,
            block_threads: choice.threads,
            shared_bytes: choice.shared_bytes,
            n_splits: choice.n_splits,
            ..old
        };
        // SAFETY: the caller's contract.
        unsafe { fill(info, value) }
    })
}

fn call_of(call: u32) -> Result<TokenCall> {
    Ok(match call {
        SKC_CALL_APPEND => TokenCall::Append,
        SKC_CALL_ATTEND => TokenCall::Attend,
        SKC_CALL_STEP => TokenCall::Step,
        _ => bail!(InvalidArgument, "call is {call}: SKC_CALL_APPEND, SKC_CALL_ATTEND or SKC_CALL_STEP is needed"),
    })
}
