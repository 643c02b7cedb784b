//! Snapshots: a sequence's whole state as bytes, which any cache of the same model can load. `docs/snapshot.md`
//! describes the format.

mod copy;
mod counters;
mod edits;
mod format;
mod load;
mod rows;
mod save;
mod settings;

pub use self::format::HostTag;
pub(crate) use self::format::VERSION;
