//! The settings that a snapshot and the cache that loads it must agree in.

use super::format::{Reader, Writer};
use crate::config::{Layer, Layers, PositionMode, Shape};
use crate::error::{Result, bail};

/// Bytes of the settings that concern all layers.
const SHAPE_BYTES: usize = 32;
/// Bytes of a layer's settings without its arrays.
const LAYER_BYTES: usize = 48;

/// The numbers that concern all layers, with their names.
fn shape_numbers(shape: &Shape, n_layers: usize) -> [(&'static str, u32); 7] {
    // The limits of `config` keep all of them below 2^32.
    [
        ("n_layers", n_layers as u32),
        ("n_q_heads", shape.n_q_heads as u32),
        ("n_kv_heads", shape.n_kv_heads as u32),
        ("head_dim", shape.head_dim as u32),
        ("head_dim_v", shape.head_dim_v as u32),
        ("the storage type of K", shape.k_type as u32),
        ("the storage type of V", shape.v_type as u32),
    ]
}

/// The numbers of a layer, with their names. Those that its position mode does not use are 0.
fn layer_numbers(layer: &Layer) -> [(&'static str, u32); 7] {
    let rotates = !layer.frequencies.is_empty();
    [
        ("n_sink", layer.ring.n_sink as u32),
        ("window", layer.ring.window as u32),
        ("position_mode", layer.position_mode as u32),
        ("rope_style", if rotates { layer.rope_style as u32 } else { 0 }),
        ("the number of RoPE frequencies", layer.frequencies.len() as u32),
        ("n_alibi_slopes", layer.alibi_slopes.len() as u32),
        ("n_sink_logits", layer.sink_logits.len() as u32),
    ]
}

fn layer_factors(layer: &Layer) -> [(&'static str, f32); 3] {
    let rotates = matches!(layer.position_mode, PositionMode::Rope | PositionMode::RopeApplied);
    [
        ("rope_mscale", if rotates { layer.mscale } else { 1.0 }),
        ("scale", layer.scale),
        // Not -0.
        ("softcap", if layer.softcap == 0.0 { 0.0 } else { layer.softcap }),
    ]
}

fn layer_bytes(layer: &Layer) -> u64 {
    let floats = layer.alibi_slopes.len() + layer.sink_logits.len();
    (LAYER_BYTES + 8 * layer.frequencies.len() + (4 * floats).next_multiple_of(8)) as u64
}

/// Bytes of the settings of a cache.
pub fn bytes(layers: &Layers) -> u64 {
    // At most 2^16 layers of 2^20 bytes.
    SHAPE_BYTES as u64 + layers.distinct().iter().map(layer_bytes).sum::<u64>()
}

pub fn write(shape: &Shape, layers: &Layers, out: &mut [u8]) {
    let mut to = Writer::new(out);
    shape_numbers(shape, layers.len()).iter().for_each(|&(_, x)| to.u32(x));
    to.u32(layers.distinct().len() as u32);
    for layer in layers.distinct() {
        layer_numbers(layer).iter().for_each(|&(_, x)| to.u32(x));
        to.u32(0);
        layer_factors(layer).iter().for_each(|&(_, x)| to.f32(x));
        to.u32(0);
        layer.frequencies.fixed().iter().for_each(|&x| to.u64(x));
        let floats = [&layer.alibi_slopes, &layer.sink_logits];
        floats.iter().for_each(|floats| floats.iter().for_each(|&x| to.f32(x)));
        if (layer.alibi_slopes.len() + layer.sink_logits.len()) % 2 == 1 {
            to.u32(0);
        }
    }
}

/// Compares the settings of two caches.
///
/// # Errors
/// `InvalidArgument` with a text that names what differs.
pub fn check_equal(there: (&Shape, &Layers), here: (&Shape, &Layers)) -> Result<()> {
    let numbers = |(shape, layers): (&Shape, &Layers)| shape_numbers(shape, layers.len());
    for ((name, there), (_, here)) in numbers(there).into_iter().zip(numbers(here)) {
        if there != here {
            bail!(InvalidArgument, "{name} is {there} in the source's cache and {here} in this one");
        }
    }
    for i in 0..there.1.distinct().len().max(here.1.distinct().len()) {
        let (there, here) = (&there.1[i], &here.1[i]);
        for ((name, there), (_, here)) in layer_numbers(there).into_iter().zip(layer_numbers(here)) {
            if there != here {
                bail!(InvalidArgument, "layer {i}: {name} is {there} in the source's cache and {here} in this one");
            }
        }
        for ((name, there), (_, here)) in layer_factors(there).into_iter().zip(layer_factors(here)) {
            if there != here {
                bail!(InvalidArgument, "layer {i}: {name} is {there:e} in the source's cache and {here:e} in this one");
            }
        }
        let mut frequencies = there.frequencies.fixed().iter().zip(here.frequencies.fixed());
        let differs = if !frequencies.all(|(&a, &b)| within_four_ulp(a, b)) {
            "RoPE frequencies"
        } else if there.alibi_slopes != here.alibi_slopes {
            "alibi_slopes"
        } else if there.sink_logits != here.sink_logits {
            "sink_logits"
        } else {
            continue;
        };
        bail!(InvalidArgument, "layer {i}: {differs} are others in the source's cache than in this one");
    }
    Ok(())
}

/// Compares the settings of a snapshot with those of the cache that loads it.
///
/// # Errors
/// `InvalidSnapshot` with a text that names what differs.
pub fn check(shape: &Shape, layers: &Layers, content: &[u8]) -> Result<()> {
    let mut from = Reader::new(content);
    for (name, here) in shape_numbers(shape, layers.len()) {
        let there = from.u32()?;
        if there != here {
            bail!(InvalidSnapshot, "{name} is {there} in the snapshot and {here} in this cache");
        }
    }
    let (n, n_layers) = (from.u32()? as usize, layers.len());
    if n != 1 && n != n_layers {
        bail!(InvalidSnapshot, "the snapshot has settings of {n} layers: 1 or {n_layers} are needed");
    }
    let first = from.clone();
    for i in 0..n.max(layers.distinct().len()) {
        // One setting of the snapshot holds for all layers.
        if n == 1 {
            from = first.clone();
        }
        check_layer(i, &layers[i], &mut from)?;
    }
    from.end("settings")
}

fn check_layer(index: usize, layer: &Layer, from: &mut Reader<'_>) -> Result<()> {
    for (name, here) in layer_numbers(layer) {
        let there = from.u32()?;
        if there != here {
            bail!(InvalidSnapshot, "layer {index}: {name} is {there} in the snapshot and {here} in this cache");
        }
    }
    zero(index, from)?;
    for (name, here) in layer_factors(layer) {
        same(index, name, from.f32()?, here)?;
    }
    zero(index, from)?;
    for (i, &here) in layer.frequencies.fixed().iter().enumerate() {
        let there = from.u64()?;
        if !within_four_ulp(here, there) {
            let turns = |x: u64| x as f64 / 18_446_744_073_709_551_616.0;
            bail!(
                InvalidSnapshot,
                "layer {index}: RoPE frequency {i} is {:e} turns in the snapshot and {:e} in this cache",
                turns(there),
                turns(here)
            );
        }
    }
    for (name, values) in [("alibi_slopes", &layer.alibi_slopes), ("sink_logits", &layer.sink_logits)] {
        for &here in values {
            same(index, name, from.f32()?, here)?;
        }
    }
    if (layer.alibi_slopes.len() + layer.sink_logits.len()) % 2 == 1 {
        zero(index, from)?;
    }
    Ok(())
}

fn same(layer: usize, name: &str, there: f32, here: f32) -> Result<()> {
    if there == here {
        return Ok(());
    }
    bail!(InvalidSnapshot, "layer {layer}: {name} has {there:e} in the snapshot and {here:e} in this cache")
}

/// A word that is reserved.
fn zero(layer: usize, from: &mut Reader<'_>) -> Result<()> {
    match from.u32()? {
        0 => Ok(()),
        x => bail!(InvalidSnapshot, "layer {layer}: a reserved word of the snapshot's settings is {x}: it must be 0"),
    }
}

/// Whether two frequencies, in units of 2^-64 turn, differ by four units in the last place of an f64 at most: `powf`
/// differs that much between platforms.
fn within_four_ulp(a: u64, b: u64) -> bool {
    // One ulp of x is 2^(floor(log2 x) - 52); what is below 2^50 has no bits left for four.
    let four_ulp = 1 << ((a | 1 << 50).ilog2() - 50);
    a.abs_diff(b) <= four_ulp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_may_differ_by_four_ulp() {
        let fixed = |x: f64| (x * 18_446_744_073_709_551_616.0).round() as u64;
        for turns in [0.159_154_943_f64, 0.5, 1e-4, 3.3e-6] {
            let moved = |n: i64| fixed(f64::from_bits(turns.to_bits().checked_add_signed(n).unwrap()));
            for n in -4..=4 {
                assert!(within_four_ulp(fixed(turns), moved(n)), "{turns} {n}");
            }
            // A unit of 2^-64 turn is more than an ulp of the smallest.
            let far = if turns < 1e-5 { 1_000 } else { 9 };
            assert!(
                !within_four_ulp(fixed(turns), moved(far)) && !within_four_ulp(fixed(turns), moved(-far)),
                "{turns}"
            );
        }
        assert!(within_four_ulp(0, 1) && !within_four_ulp(0, 2));
    }
}
