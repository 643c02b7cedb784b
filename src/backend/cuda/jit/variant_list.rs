//! Which variants are compiled ahead of time: `SINKCACHE_CUBIN_ARCHS` and `SINKCACHE_CUBIN_SHAPES`, read by the build
//! script.

use super::program::{DIMS, FEATURES, MAX_GROUP, SHAPES_VARIABLE, TYPES, Variant};

/// Lists architectures: compute capabilities times ten.
pub const ARCHS_VARIABLE: &str = "SINKCACHE_CUBIN_ARCHS";

/// A100; RTX 30; RTX 40 and L4; H100; B200; RTX 50.
pub const DEFAULT_ARCHS: &str = "80,86,89,90,100,120";
/// Head dim x query heads per KV head, in both 16-bit types: 64x4 Llama 3.2 1B; 64x8 gpt-oss, TinyLlama; 96x1 Phi-3
/// mini; 128x1 Llama 2 7B and 13B; 128x2 Qwen 3 0.6B and 1.7B, Gemma 3 27B; 128x3 Llama 3.2 3B, Phi-4 mini; 128x4 Llama
/// 3 8B, Mistral 7B, Mixtral, Qwen 3 8B, Phi-4; 128x5 Qwen 2.5 and 3 14B; 128x7 Qwen 2.5 7B; 128x8 Llama 3 70B, Qwen
/// 2.5 72B, Qwen 3 32B; 256x2 Gemma 3 4B and 12B. Tensor parallelism by KV heads leaves both numbers as they are.
pub const DEFAULT_SHAPES: &str = "64x4,64x8,96x1,128x1,128x2,128x3,128x4,128x5,128x7,128x8,256x2";

/// Architectures of a list; empty = the default.
pub fn archs(list: &str) -> Result<Vec<u32>, String> {
    let mut archs = Vec::new();
    for item in items(list, DEFAULT_ARCHS) {
        let digits = item.bytes().all(|b| b.is_ascii_digit()) && matches!(item.len(), 2 | 3);
        let Some(arch) = item.parse().ok().filter(|_| digits) else {
            return Err(format!(
                "{ARCHS_VARIABLE} has {item:?}: compute capabilities times ten are allowed, between commas, such \
                 as {DEFAULT_ARCHS}"
            ));
        };
        add(&mut archs, arch);
    }
    Ok(archs)
}

/// Shapes of a list; empty = the default. A shape without a type stands for both 16-bit types.
pub fn shapes(list: &str) -> Result<Vec<Variant>, String> {
    let mut shapes = Vec::new();
    for item in items(list, DEFAULT_SHAPES) {
        for variant in shape(item).map_err(|why| format!("{SHAPES_VARIABLE} has {item:?}: {why}"))? {
            add(&mut shapes, variant);
        }
    }
    Ok(shapes)
}

/// `DIMxGROUP[:TYPE][+TRANSFORM]...`
fn shape(item: &str) -> Result<Vec<Variant>, String> {
    let (head, names) = item.split_once('+').map_or((item, None), |(head, rest)| (head, Some(rest)));
    let (size, dtype) = head.split_once(':').map_or((head, None), |(size, dtype)| (size, Some(dtype)));
    let Some((dim, group)) = size.split_once('x') else {
        return Err("DIMxGROUP[:TYPE][+TRANSFORM] is allowed, such as 128x4:bf16+softcap".to_owned());
    };
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| !text.starts_with('+'));
    let Some(dim) = number(dim).filter(|dim| DIMS.contains(dim)) else {
        return Err(format!("the head dim is {dim:?}: {DIMS:?} are allowed; others have no fast kernels"));
    };
    let Some(group) = number(group).filter(|group| (1..=MAX_GROUP).contains(group)) else {
        return Err(format!(
            "the query heads per KV head are {group:?}: 1 to {MAX_GROUP} are allowed; others have no fast kernels"
        ));
    };
    let types = match dtype {
        None => TYPES[..2].iter().map(|t| t.1).collect(),
        Some(name) => vec![named(name, "type", &TYPES)?],
    };
    let mut features = 0;
    for name in names.into_iter().flat_map(|t| t.split('+')) {
        features |= named(name, "feature", &FEATURES)?;
    }
    Ok(types.into_iter().map(|dtype| Variant { dim, group, dtype, features }).collect())
}

fn named(name: &str, what: &str, of: &[(&str, u32)]) -> Result<u32, String> {
    let found = of.iter().find(|t| t.0 == name);
    let names = || of.iter().map(|t| t.0).collect::<Vec<_>>().join(" or ");
    found.map(|t| t.1).ok_or_else(|| format!("the {what} is {name:?}: {} is allowed", names()))
}

fn items<'a>(list: &'a str, default: &'a str) -> impl Iterator<Item = &'a str> {
    let list = if list.trim().is_empty() { default } else { list };
    list.split(',').map(str::trim)
}

/// Adds an item unless the list has it already.
fn add<T: PartialEq>(to: &mut Vec<T>, item: T) {
    if !to.contains(&item) {
        to.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(list: &str) -> String {
        shapes(list).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(archs("").unwrap(), [80, 86, 89, 90, 100, 120]);
        assert_eq!(archs(" 90, 80,90 ").unwrap(), [90, 80]);
        assert_eq!(text("128x4"), "128x4:f16 128x4:bf16");
        assert_eq!(text("128x4:bf16, 64x1:f16,128x4"), "128x4:bf16 64x1:f16 128x4:f16");
        assert_eq!(text("128x8:q8/q4,64x2:q4+softcap,64x2:q8"), "128x8:q8/q4 64x2:q4+softcap 64x2:q8");
        assert_eq!(text("256x8:f16+softcap,80x2:bf16+alibi+softcap"), "256x8:f16+softcap 80x2:bf16+softcap+alibi");
        assert_eq!(shapes("64x2+alibi").unwrap()[1], Variant { dim: 64, group: 2, dtype: 3, features: 2 });
    }

    /// A message that names a variant names it as the variable takes it.
    #[test]
    fn every_variant_is_read_as_it_is_written() {
        for dim in DIMS {
            for group in 1..=MAX_GROUP {
                for (_, dtype) in TYPES {
                    for features in 0..8 {
                        let variant = Variant { dim, group, dtype, features };
                        assert_eq!(shapes(&variant.to_string()), Ok(vec![variant]));
                    }
                }
            }
        }
    }

    #[test]
    fn the_default_is_eleven_shapes_in_two_types() {
        assert_eq!(shapes("").unwrap().len(), 22);
        assert_eq!(shapes(" "), shapes(DEFAULT_SHAPES));
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_allowed() {
        for bad in ["9x", "sm_90", "90a", "9", "1000", "+90", "-9", "80,,90", "80;90", ","] {
            let text = archs(bad).unwrap_err();
            let item = bad.split(',').find(|i| !matches!(*i, "80" | "90")).unwrap();
            assert!(
                text.contains(&format!("SINKCACHE_CUBIN_ARCHS has {item:?}: ")) && text.contains("80,86"),
                "{text}"
            );
        }
        for (bad, why) in [
            ("128", "DIMxGROUP"),
            ("128x4;64x8", "the query heads per KV head are \"4;64x8\": 1 to 8"),
            ("72x4:f16", "the head dim is \"72\": [64, 80, 96, 128, 256] are allowed"),
            ("+64x4", "DIMxGROUP"),
            ("64x+4", "the query heads per KV head are \"\": 1 to 8"),
            ("128x0", "the query heads per KV head are \"0\": 1 to 8"),
            ("128x16:bf16", "the query heads per KV head are \"16\": 1 to 8"),
            ("128x99999999999", "1 to 8"),
            ("128x4:f32", "the type is \"f32\": f16 or bf16 or q8 or q8/q4 or q4 is allowed"),
            ("128x4:", "the type is \"\": f16 or bf16 or q8"),
            ("128x4:q4/q8", "the type is \"q4/q8\": f16 or"),
            ("128x4+mask", "the feature is \"mask\": softcap or alibi or segments"),
            ("128x4:f16+", "the feature is \"\": softcap or alibi or segments"),
            ("64x8,", "DIMxGROUP"),
        ] {
            let text = shapes(bad).unwrap_err();
            assert!(text.starts_with("SINKCACHE_CUBIN_SHAPES has \"") && text.contains(why), "{bad}: {text}");
        }
    }
}
