//! Moves of stored rows within a sequence: what pins and evicted ranges do to slots. Rows are moved as they are stored;
//! nothing is rotated or rounded anew.

use super::kv_layout::physical;
use super::kv_rows::HeadRows;
use super::kv_store::KvStore;
use crate::backend::RowMove;
use crate::config::Which;
use crate::ring::Ring;

/// Bytes of rows that are moved at a time by way of the stack. A row is at most 2 KiB.
const STACK_BYTES: usize = 8192;

/// A move within one head, in physical slots.
#[derive(Clone, Copy, Debug)]
struct HeadMove {
    from: usize,
    to: usize,
    n: usize,
}

impl KvStore {
    /// Moves the rows of `rows.n` slots of every head. The slots may overlap.
    pub fn move_rows(&self, layer: usize, ring: &Ring, seq: usize, rows: RowMove) {
        let [from, to] = [rows.from, rows.to].map(|slot| physical(ring, slot).0 as usize);
        let part = HeadMove { from, to, n: rows.n as usize };
        if from == to {
            return;
        }
        for which in [Which::K, Which::V] {
            for head in 0..self.n_kv_heads() {
                let rows = self.head_rows(layer, seq, which, head, from.max(to) + part.n);
                move_by_rows(&rows, part);
            }
        }
    }
}

/// Moves rows of any type, some at a time.
fn move_by_rows(rows: &HeadRows, HeadMove { from, to, n }: HeadMove) {
    let mut buffer = [0; STACK_BYTES];
    let most = STACK_BYTES / rows.row_bytes;
    for done in (0..n).step_by(most) {
        let n_now = most.min(n - done);
        // Upwards the last rows go first: what they overwrite has been moved.
        let at = if from < to { n - done - n_now } else { done }; // mutant: rows_moved_oldest_first
        let buffer = &mut buffer[..n_now * rows.row_bytes];
        rows.read(from + at, buffer);
        rows.write(to + at, buffer);
    }
}
