//! Working memory of the kernels: one part per thread, had at create.

use crate::config::Shape;
use crate::memory::{ALIGN, Buffer, Memory};
use crate::status::Result;

/// Keys per block of the online softmax.
pub(super) const BLOCK: usize = 64;

/// Query tokens computed together over one pass of the keys.
pub(super) fn tile(shape: &Shape) -> usize {
    (64 / shape.group).clamp(1, 16)
}

/// Working memory of one part.
#[derive(Debug)]
pub(super) struct Scratch<'a> {
    /// `[tile][rope_dim / 2]` cosines and sines for window and sink queries; row 0 serves append.
    pub cos: &'a mut [f32],
    pub sin: &'a mut [f32],
    pub cos_sink: &'a mut [f32],
    pub sin_sink: &'a mut [f32],
    /// `[tile][group][head_dim]` queries for the window and for the sinks; row 0 serves append.
    pub q: &'a mut [f32],
    pub q_sink: &'a mut [f32],
    /// `[tile][group][head_dim_v]` weighted sums.
    pub acc: &'a mut [f32],
    /// `[head_dim_v]` weighted sum of one block.
    pub part: &'a mut [f32],
    /// `[tile][group]` running maximum and denominator.
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[BLOCK]` scores, then weights.
    pub scores: &'a mut [f32],
    /// `[BLOCK][head_dim]`, `[BLOCK][head_dim_v]` keys and values as f32.
    pub k: &'a mut [f32],
    pub v: &'a mut [f32],
}

/// Sizes in elements of the fields of [`Scratch`], in order.
fn sizes(shape: &Shape) -> [usize; 13] {
    let tile = tile(shape);
    let (trig, rows) = (tile * shape.head_dim / 2, tile * shape.group);
    let (q, acc) = (rows * shape.head_dim, rows * shape.head_dim_v);
    [
        trig,
        trig,
        trig,
        trig,
        q,
        q,
        acc,
        shape.head_dim_v,
        rows,
        rows,
        BLOCK,
        BLOCK * shape.head_dim,
        BLOCK * shape.head_dim_v,
    ]
    .map(|n| n.next_multiple_of(ALIGN / size_of::<f32>()))
}

/// The parts of all threads.
#[derive(Debug)]
pub(super) struct ScratchPool {
    buffer: Buffer,
    n: u32,
}

impl ScratchPool {
    /// Bytes for `n` parts. At most 65,536 heads, 512 dims and 1,024 threads: far from overflow.
    pub fn bytes(shape: &Shape, n: u32) -> usize {
        sizes(shape).iter().sum::<usize>() * size_of::<f32>() * n as usize
    }

    pub fn new(shape: &Shape, n: u32, memory: Memory) -> Result<Self> {
        let bytes = Self::bytes(shape, n);
        let buffer = Buffer::new(memory, bytes, "scratch")?;
        // SAFETY: the buffer is that long, and nobody else has it yet. Callers' memory may hold anything.
        unsafe { std::ptr::write_bytes(buffer.as_ptr(), 0, bytes) };
        Ok(Self { buffer, n })
    }

    /// Part `ith`.
    ///
    /// # Safety
    /// Nobody else may hold the same part.
    pub unsafe fn part(&self, shape: &Shape, ith: u32) -> Scratch<'_> {
        assert!(ith < self.n, "part {ith} of {}", self.n);
        let sizes = sizes(shape);
        let mut at = self.buffer.as_ptr().cast::<f32>().wrapping_add(sizes.iter().sum::<usize>() * ith as usize);
        let [cos, sin, cos_sink, sin_sink, q, q_sink, acc, part, max, sum, scores, k, v] = sizes.map(|n| {
            let field = at;
            at = at.wrapping_add(n);
            // SAFETY: within the buffer by its size, initialised, disjoint, and the caller's alone.
            unsafe { std::slice::from_raw_parts_mut(field, n) }
        });
        Scratch { cos, sin, cos_sink, sin_sink, q, q_sink, acc, part, max, sum, scores, k, v }
    }
}
