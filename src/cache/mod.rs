//! The cache: sequences x layers over one backend. The only place where a call becomes work.

mod compute;
mod counters;
mod device;
mod edit;
mod info;
mod plan;
mod state;

pub use self::info::SeqInfo;
pub(crate) use self::plan::Work;
pub use self::state::Cache;
