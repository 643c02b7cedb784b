//! The cache: all sequences and layers of one model, on one backend. Every call is planned (checked), run, and
//! committed here; backends only execute it.

mod compute;
mod counters;
mod device;
mod edit;
mod edit_ranges;
mod info;
mod layer_parts;
mod plan;
mod snapshot;
mod state;

pub use self::info::SeqInfo;
pub(crate) use self::plan::PlannedCall;
pub use self::snapshot::HostTag;
pub(crate) use self::snapshot::VERSION as SNAPSHOT_VERSION;
pub use self::state::Cache;
