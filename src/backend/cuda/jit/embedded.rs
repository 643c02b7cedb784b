//! Kernels that were compiled when the library was (feature `cubins`): they need no compiler at run time.

use super::nvrtc::Source;
use super::program::{COMMON, arch_name, options, recipe, text_hash};

/// A cubin and what it was made from.
#[derive(Clone, Copy, Debug)]
struct Cubin<'a> {
    /// Compute capability times ten.
    arch: u32,
    /// As [`recipe`] has it.
    recipe: &'a str,
    /// Hash of the program's texts.
    source: u128,
    code: &'a [u8],
}

// Written by the build script: `TABLE`, and the cubins.
#[cfg(feature = "cubins")]
include!(concat!(env!("OUT_DIR"), "/cubins.rs"));
#[cfg(not(feature = "cubins"))]
static TABLE: &[Cubin<'_>] = &[];

/// The cubin of a program for exactly this architecture.
pub fn exact(source: Source, arch: u32, macros: &[(&str, u32)]) -> Option<&'static [u8]> {
    find(TABLE, source, arch, macros)
}

/// The cubin of a program for the nearest other architecture whose code runs on this one.
pub fn compatible(source: Source, arch: u32, macros: &[(&str, u32)]) -> Option<&'static [u8]> {
    near(TABLE, arch).into_iter().find_map(|built| find(TABLE, source, built, macros))
}

/// Whether a cache on a device of this architecture can do without a compiler.
pub fn serves(arch: u32) -> bool {
    exact(COMMON, arch, &[]).or_else(|| compatible(COMMON, arch, &[])).is_some()
}

/// For a message: which architectures a program is built in for, with these macros. Empty where for none.
pub fn what_there_is(source: Source, macros: &[(&str, u32)]) -> String {
    let made = |c: &&Cubin<'_>| c.recipe == recipe(source, &options(c.arch, macros));
    let archs: Vec<_> = TABLE.iter().filter(made).map(|c| arch_name(c.arch)).collect();
    if archs.is_empty() {
        return String::new();
    }
    format!("; {} is built in for {} only", source.name, archs.join(", "))
}

fn find<'a>(table: &[Cubin<'a>], source: Source, arch: u32, macros: &[(&str, u32)]) -> Option<&'a [u8]> {
    if !table.iter().any(|c| c.arch == arch) {
        return None;
    }
    let (recipe, text) = (recipe(source, &options(arch, macros)), text_hash(source));
    table.iter().find(|c| c.arch == arch && c.recipe == recipe && c.source == text).map(|c| c.code)
}

/// Architectures of a table whose code runs on a device of another, nearest first.
fn near(table: &[Cubin<'_>], device: u32) -> Vec<u32> {
    let mut archs: Vec<_> = table.iter().map(|c| c.arch).filter(|&built| runs(built, device)).collect();
    archs.sort_unstable_by(|a, b| b.cmp(a));
    archs.dedup();
    archs
}

/// Whether code for one architecture runs on another: the same major version, and no lower minor one (CUDA Programming
/// Guide, "Binary Compatibility"). Code for 9.0 is for 9.0 alone here; Jetsons and their kin (8.7, 10.1) run nothing but
/// their own.
fn runs(built: u32, device: u32) -> bool {
    const ALONE: [u32; 3] = [87, 90, 101];
    built / 10 == device / 10 && built < device && !ALONE.contains(&built) && !ALONE.contains(&device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::jit::program::FAST;

    /// Recipes and codes of a table of one program; each cubin's code is its architecture.
    fn made(archs: &[u32]) -> Vec<(u32, String, [u8; 1])> {
        archs.iter().map(|&arch| (arch, recipe(FAST, &options(arch, &[("SKC_DIM", 64)])), [arch as u8])).collect()
    }

    fn table(made: &[(u32, String, [u8; 1])]) -> Vec<Cubin<'_>> {
        let source = text_hash(FAST);
        made.iter().map(|(arch, recipe, code)| Cubin { arch: *arch, recipe, source, code }).collect()
    }

    #[test]
    fn a_cubin_is_found_by_all_it_was_made_from() {
        let made = made(&[80, 90]);
        let mut table = table(&made);
        let dim = |dim| [("SKC_DIM", dim)];
        assert_eq!(find(&table, FAST, 80, &dim(64)), Some([80].as_slice()));
        assert_eq!(find(&table, FAST, 90, &dim(64)), Some([90].as_slice()));
        assert_eq!(find(&table, FAST, 86, &dim(64)), None);
        assert_eq!(find(&table, FAST, 80, &dim(128)), None);
        assert_eq!(find(&table, FAST, 80, &[]), None);
        assert_eq!(find(&table, COMMON, 80, &dim(64)), None);
        table[0].source ^= 1;
        assert_eq!(find(&table, FAST, 80, &dim(64)), None, "made from other sources");
    }

    #[test]
    fn the_nearest_that_runs() {
        let made = made(&[80, 86, 90, 100, 120]);
        let table = table(&made);
        for (device, want) in [
            (80, &[][..]),
            (86, &[80]),
            (87, &[]),
            (89, &[86, 80]),
            (90, &[]),
            (100, &[]),
            (101, &[]),
            (103, &[100]),
            (110, &[]),
            (121, &[120]),
            (75, &[]),
            (70, &[]),
        ] {
            assert_eq!(near(&table, device), want, "{device}");
        }
    }

    /// With the feature, what the build script wrote is for these sources; without, there is nothing.
    #[test]
    fn the_table_is_of_these_sources() {
        let archs: Vec<_> = TABLE.iter().map(|c| c.arch).collect();
        assert_eq!(archs.is_empty(), !cfg!(feature = "cubins"));
        for arch in archs {
            let code = exact(COMMON, arch, &[]).unwrap();
            assert!(serves(arch) && code.starts_with(b"\x7fELF"), "{arch}");
            assert!(what_there_is(COMMON, &[]).contains(&arch_name(arch)));
        }
        for cubin in TABLE {
            assert_eq!(cubin.source, text_hash(if cubin.recipe.starts_with("fast.cu") { FAST } else { COMMON }));
            assert_eq!(cubin.code.as_ptr().addr() % 128, 0, "{}", cubin.recipe);
        }
        assert!(!serves(70));
        assert_eq!(what_there_is(FAST, &[]), "");
    }
}
