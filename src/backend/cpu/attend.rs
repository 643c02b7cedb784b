//! Attend: one online softmax over sinks and window, queries in tiles, keys in blocks of physical slots.

use std::ops::Range;

use super::element::{Stored, save, view};
use super::rope::rotate;
use super::scratch::{BLOCK, Scratch, tile};
use super::store::Rows;
use crate::backend::{AttendRows, Job};
use crate::batch::Entry;
use crate::config::{Layer, PositionMode};
use crate::ring::Ring;

/// Computes queries `tokens` of an entry for the query heads of KV heads `heads`.
pub(super) fn attend<T: Stored>(
    job: &Job<'_>,
    io: &AttendRows,
    rows: &Rows<'_, T>,
    entry: &Entry,
    tokens: Range<u64>,
    heads: Range<usize>,
    scratch: &mut Scratch<'_>,
) {
    let ring = &job.layer.ring;
    let tile = tile(job.shape) as u64;
    let mut at = tokens.start;
    while at < tokens.end {
        let tokens = at..tokens.end.min(at + tile);
        at = tokens.end;
        let queries = Queries { entry, tokens, ring };
        fill_angles(job.layer, &queries, scratch);
        let (first, last) = (queries.index(0), queries.index(queries.len() - 1));
        for head in heads.clone() {
            load_queries(job, io, &queries, head, scratch);
            let mut pass = |part: Part, keys: Range<u64>| {
                for run in ring.runs(keys.start, keys.end) {
                    for block in (0..run.n).step_by(BLOCK) {
                        let n = (run.n - block).min(BLOCK as u64);
                        // SAFETY: an append of these slots by this head's part is over, and no other part writes them.
                        let (k, v) = unsafe { rows.read(head, run.slot + block, n) };
                        let keys = run.first + block..run.first + block + n;
                        let k = T::widen(k, scratch.k);
                        let v = T::widen(v, scratch.v);
                        let q = match part {
                            Part::Sinks => &*scratch.q_sink,
                            Part::Window => &*scratch.q,
                        };
                        let state = State {
                            scores: scratch.scores,
                            max: scratch.max,
                            sum: scratch.sum,
                            acc: scratch.acc,
                            part: scratch.part,
                        };
                        block_pass(job, &queries, part, head, &keys, (q, k, v), state);
                    }
                }
            };
            pass(Part::Sinks, 0..ring.n_sink.min(last + 1));
            pass(Part::Window, ring.window_start(first + 1, entry.floor)..last + 1);
            store_results(job, io, &queries, head, scratch);
        }
    }
}

/// A tile of queries of one entry.
struct Queries<'a> {
    entry: &'a Entry,
    tokens: Range<u64>,
    ring: &'a Ring,
}

impl Queries<'_> {
    fn len(&self) -> usize {
        (self.tokens.end - self.tokens.start) as usize
    }

    /// Index in its sequence of query `i` of the tile.
    fn index(&self, i: usize) -> u64 {
        self.entry.first + self.tokens.start + i as u64
    }

    /// Row in the caller's tensors of query `i`.
    fn row(&self, i: usize) -> u64 {
        self.entry.row + self.tokens.start + i as u64
    }

    /// E(p + 1) of query `i`.
    fn evicted(&self, i: usize) -> u64 {
        self.ring.evicted(self.index(i) + 1, self.entry.floor)
    }

    /// Which keys of a part query `i` may see.
    fn visible(&self, part: Part, i: usize) -> Range<u64> {
        let end = self.index(i) + 1;
        match part {
            Part::Sinks => 0..end.min(self.ring.n_sink),
            Part::Window => self.ring.n_sink + self.evicted(i)..end,
        }
    }

    /// The query's position on the axis on which a part's key index is its distance: p for the window, p - E for sinks.
    fn position(&self, part: Part, i: usize) -> u64 {
        match part {
            Part::Sinks => self.index(i) - self.evicted(i),
            Part::Window => self.index(i),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Sinks,
    Window,
}

/// Angles of each query, for the window and for the sinks.
fn fill_angles(layer: &Layer, queries: &Queries<'_>, scratch: &mut Scratch<'_>) {
    let half = layer.frequencies.len();
    if half == 0 {
        return;
    }
    for i in 0..queries.len() {
        let at = i * half..(i + 1) * half;
        let (cos, sin) = (&mut scratch.cos[at.clone()], &mut scratch.sin[at.clone()]);
        let (cos_sink, sin_sink) = (&mut scratch.cos_sink[at.clone()], &mut scratch.sin_sink[at]);
        let evicted = queries.evicted(i);
        let position = queries.entry.start.wrapping_add(queries.index(i));
        if layer.position_mode == PositionMode::Rope {
            layer.frequencies.fill(position, layer.mscale, cos, sin);
            layer.frequencies.fill(position.wrapping_sub(evicted), layer.mscale, cos_sink, sin_sink);
        } else {
            // The host has rotated and scaled: turn back by E, purely.
            layer.frequencies.fill(0_u64.wrapping_sub(evicted), 1.0, cos_sink, sin_sink);
        }
    }
}

/// Reads and rotates the tile's queries of one KV head's group, and empties their softmax.
fn load_queries(job: &Job<'_>, io: &AttendRows, queries: &Queries<'_>, kv_head: usize, scratch: &mut Scratch<'_>) {
    let (layer, shape) = (job.layer, job.shape);
    let (dim, half) = (shape.head_dim, layer.frequencies.len());
    for i in 0..queries.len() {
        let trig = i * half..(i + 1) * half;
        for g in 0..shape.group {
            let (r, head) = (i * shape.group + g, kv_head * shape.group + g);
            // SAFETY: the caller's rows, resolved for this batch and these dims.
            let x = unsafe { view(shape.in_dtype, io.q.at(queries.row(i), head), dim, scratch.k) };
            let q = &mut scratch.q[r * dim..(r + 1) * dim];
            let q_sink = &mut scratch.q_sink[r * dim..(r + 1) * dim];
            let (cos, sin) = (&scratch.cos_sink[trig.clone()], &scratch.sin_sink[trig.clone()]);
            rotate(layer.rope_style, cos, sin, x, q_sink);
            if layer.position_mode == PositionMode::Rope {
                rotate(layer.rope_style, &scratch.cos[trig.clone()], &scratch.sin[trig.clone()], x, q);
            } else {
                q.copy_from_slice(x);
            }
            // A learned sink is a key with this score and a value of zero.
            (scratch.max[r], scratch.sum[r]) = match layer.sink_logits.get(head) {
                Some(&logit) => (logit, 1.0),
                None => (f32::NEG_INFINITY, 0.0),
            };
        }
    }
    scratch.acc[..queries.len() * shape.group * shape.head_dim_v].fill(0.0);
}

/// The online softmax of a tile.
struct State<'a> {
    scores: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    acc: &'a mut [f32],
    part: &'a mut [f32],
}

/// Adds one block of keys to the softmax of every query of the tile that sees some of them.
fn block_pass(
    job: &Job<'_>,
    queries: &Queries<'_>,
    part: Part,
    kv_head: usize,
    keys: &Range<u64>,
    (q, k, v): (&[f32], &[f32], &[f32]),
    state: State<'_>,
) {
    let (layer, shape) = (job.layer, job.shape);
    let (dim, dim_v) = (shape.head_dim, shape.head_dim_v);
    for i in 0..queries.len() {
        let visible = queries.visible(part, i);
        let (from, to) = (visible.start.max(keys.start), visible.end.min(keys.end));
        if from >= to {
            continue;
        }
        let cols = (from - keys.start) as usize..(to - keys.start) as usize;
        let distance = queries.position(part, i) - from;
        for g in 0..shape.group {
            let r = i * shape.group + g;
            let q = &q[r * dim..(r + 1) * dim];
            let scores = &mut state.scores[..cols.len()];
            for (s, k) in scores.iter_mut().zip(k[cols.start * dim..].chunks_exact(dim)) {
                *s = dot(q, k) * layer.scale;
            }
            if layer.softcap > 0.0 {
                scores.iter_mut().for_each(|s| *s = layer.softcap * (*s / layer.softcap).tanh());
            }
            if let Some(&slope) = layer.alibi_slopes.get(kv_head * shape.group + g) {
                for (j, s) in scores.iter_mut().enumerate() {
                    *s -= slope * (distance - j as u64) as f32;
                }
            }
            let max = scores.iter().fold(state.max[r], |m, &s| m.max(s));
            // Nothing but weights of zero so far, and no maximum to subtract. A NaN among them must show.
            if max == f32::NEG_INFINITY && scores.iter().all(|&s| s == f32::NEG_INFINITY) {
                continue;
            }
            let keep = (state.max[r] - max).exp();
            // A block is summed by itself: rounding then grows with the number of blocks, not of keys.
            let part = &mut state.part[..dim_v];
            part.fill(0.0);
            let mut sum = 0.0;
            for (s, v) in scores.iter().zip(v[cols.start * dim_v..].chunks_exact(dim_v)) {
                let weight = (s - max).exp();
                sum += weight;
                part.iter_mut().zip(v).for_each(|(p, v)| *p += weight * v);
            }
            let acc = &mut state.acc[r * dim_v..(r + 1) * dim_v];
            acc.iter_mut().zip(&*part).for_each(|(a, p)| *a = *a * keep + p);
            state.max[r] = max;
            state.sum[r] = state.sum[r] * keep + sum;
        }
    }
}

/// Divides by the denominators and writes the tile's rows.
fn store_results(job: &Job<'_>, io: &AttendRows, queries: &Queries<'_>, kv_head: usize, scratch: &mut Scratch<'_>) {
    let shape = job.shape;
    let dim_v = shape.head_dim_v;
    for i in 0..queries.len() {
        for g in 0..shape.group {
            let (r, head) = (i * shape.group + g, kv_head * shape.group + g);
            let acc = &mut scratch.acc[r * dim_v..(r + 1) * dim_v];
            let scale = scratch.sum[r].recip();
            acc.iter_mut().for_each(|a| *a *= scale);
            // SAFETY: the caller's rows, resolved for this batch; this part alone has this head, and heads do not overlap.
            unsafe {
                save(shape.out_dtype, acc, io.out.at(queries.row(i), head));
                if let Some(lse) = io.lse {
                    let value = f64::from(scratch.max[r]) + f64::from(scratch.sum[r]).ln();
                    lse.at(queries.row(i), head).cast::<f32>().write(value as f32);
                }
            }
        }
    }
}

/// Dot product in eight lanes; `dim` is a multiple of 8.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}
