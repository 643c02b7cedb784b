//! The shared vectors: `tests/vectors/*.safetensors`, and those with pins and evicted ranges in `segments/`.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use sinkcache::{LayerConfig, PositionMode, RopeStyle};

use super::oracle::{OracleConfig, RangeEdit};

/// One case: settings, events, and what goes in and comes out.
#[derive(Debug)]
pub struct Vector {
    pub name: String,
    pub cfg: OracleConfig,
    pub events: Vec<Event>,
    pub tensors: HashMap<String, Vec<f32>>,
}

/// What happens to the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Chunk(usize),
    Edit(Edit),
    /// An edit that must be an error, and change nothing.
    Reject(Edit),
}

/// An edit of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    Evict(usize),
    Rewind(usize),
    Reset,
    /// Of the tokens from the first number on, counted from the last reset.
    Range(RangeEdit, u64, usize),
}

/// All cases, by name.
pub fn all() -> Vec<Vector> {
    // Cargo runs tests in the package; elsewhere they are run from its root.
    let in_dir = |dir| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<_> = ["tests/vectors", "tests/vectors/segments"].into_iter().flat_map(in_dir).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    paths.iter().map(|p| load(p)).collect()
}

fn load(path: &Path) -> Vector {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = metadata.metadata().clone().unwrap();
    let tensors: HashMap<_, _> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, t)| {
            let values = t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            (name, values)
        })
        .collect();
    let config: Value = serde_json::from_str(&metadata["config"]).unwrap();
    let events: Value = serde_json::from_str(&metadata["events"]).unwrap();
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    Vector {
        name,
        cfg: config_of(&config, &tensors),
        events: events.as_array().unwrap().iter().map(event).collect(),
        tensors,
    }
}

fn config_of(c: &Value, tensors: &HashMap<String, Vec<f32>>) -> OracleConfig {
    let int = |key: &str| c[key].as_u64().map(|v| u32::try_from(v).unwrap());
    let float = |key: &str| c[key].as_f64();
    let array = |key: &str| tensors.get(key).cloned().unwrap_or_default();
    let alibi = array("alibi");
    let (position_mode, rope_style) = match c["rope"].as_str().unwrap() {
        "neox" => (PositionMode::Rope, RopeStyle::Neox),
        "interleaved" => (PositionMode::Rope, RopeStyle::Interleaved),
        "none" if alibi.is_empty() => (PositionMode::None, RopeStyle::Neox),
        "none" => (PositionMode::Alibi, RopeStyle::Neox),
        other => panic!("rope {other}"),
    };
    let head_dim = int("head_dim").unwrap();
    OracleConfig {
        n_q_heads: int("n_q_heads").unwrap() as usize,
        n_kv_heads: int("n_kv_heads").unwrap() as usize,
        head_dim: head_dim as usize,
        head_dim_v: int("head_dim_v").unwrap_or(head_dim) as usize,
        max_rewind: int("max_rewind").unwrap() as usize,
        max_pinned: int("max_pinned").unwrap_or(0) as usize,
        max_segments: int("max_segments").unwrap_or(0) as usize,
        layer: LayerConfig {
            n_sink: int("n_sink").unwrap(),
            window: int("window").unwrap(),
            position_mode,
            rope_style,
            rope_dim: int("rope_dim").unwrap_or(0),
            rope_base: float("rope_base").unwrap(),
            rope_scale: float("rope_scale").unwrap(),
            rope_mscale: float("rope_mscale").unwrap(),
            inv_freq: array("inv_freq"),
            alibi_slopes: alibi,
            scale: float("scale").unwrap_or(0.0),
            softcap: float("softcap").unwrap(),
            sink_logits: array("sink_logits"),
        },
    }
}

fn event(e: &Value) -> Event {
    match e[0].as_str().unwrap() {
        "chunk" => Event::Chunk(number(&e[1])),
        "refuse" => Event::Reject(edit(&e[1])),
        _ => Event::Edit(edit(e)),
    }
}

fn edit(e: &Value) -> Edit {
    let range = |edit| Edit::Range(edit, e[1].as_u64().unwrap(), number(&e[2]));
    match e[0].as_str().unwrap() {
        "evict" => Edit::Evict(number(&e[1])),
        "rewind" => Edit::Rewind(number(&e[1])),
        "reset" => Edit::Reset,
        "pin" => range(RangeEdit::Pin),
        "evict_range" => range(RangeEdit::Evict),
        other => panic!("event {other}"),
    }
}

fn number(v: &Value) -> usize {
    usize::try_from(v.as_u64().unwrap()).unwrap()
}
