//! placeholder until the tiles are written
pub(crate) fn available() -> bool {
    false
}
