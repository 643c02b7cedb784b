//! Kernels that were compiled when the library was built (feature `cubins`). They need no compiler at run time.

use super::nvrtc::Source;
use super::program::{COMMON, arch_name, options, recipe, text_hash};

/// A cubin and what it was made from.
#[derive(Clone, Copy, Debug)]
struct Cubin<'a> {
    /// Compute capability times ten.
    arch: u32,
    /// The result of [`recipe`].
    recipe: &'a str,
    /// The result of [`text_hash`].
    source: u128,
    code: &'a [u8],
}

// The build script writes the cubins and `TABLE`.
#[cfg(feature = "cubins")]
include!(concat!(env!("OUT_DIR"), "/cubins.rs"));
#[cfg(not(feature = "cubins"))]
static TABLE: &[Cubin<'_>] = &[];

/// The cubin of a program for exactly this architecture.
pub fn exact(source: Source, arch: u32, macros: &[(&str, u32)]) -> Option<&'static [u8]> {
    find(TABLE, source, arch, macros)
}

/// The cubin of a program for another architecture whose code runs on this one; of several, the nearest.
pub fn compatible(source: Source, arch: u32, macros: &[(&str, u32)]) -> Option<&'static [u8]> {
    compatible_archs(TABLE, arch).into_iter().find_map(|built| find(TABLE, source, built, macros))
}

/// Whether a cache on a device of this architecture needs no compiler: the kernels for every shape are built in.
pub fn has_common_kernels(arch: u32) -> bool {
    exact(COMMON, arch, &[]).or_else(|| compatible(COMMON, arch, &[])).is_some()
}

/// For a message: the architectures that a program is built in for, with these macros. Empty if there are none.
pub fn archs_text(source: Source, macros: &[(&str, u32)]) -> String {
    let matches = |c: &&Cubin<'_>| c.recipe == recipe(source, &options(c.arch, macros));
    let archs: Vec<_> = TABLE.iter().filter(matches).map(|c| arch_name(c.arch)).collect();
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

/// Architectures of a table, but for the device's own, whose code runs on the device; nearest first.
fn compatible_archs(table: &[Cubin<'_>], device: u32) -> Vec<u32> {
    let mut archs: Vec<_> = table.iter().map(|c| c.arch).filter(|&built| runs_on(built, device)).collect();
    archs.sort_unstable_by(|a, b| b.cmp(a));
    archs.dedup();
    archs
}

/// Whether code for one architecture runs on a later one: the major versions are the same (CUDA Programming Guide,
/// "Binary Compatibility"). Exceptions: our code for 9.0 is for sm_90a, which runs on 9.0 only; Jetsons and similar
/// devices (8.7, 10.1) neither run other code nor share theirs.
fn runs_on(built: u32, device: u32) -> bool {
    const ISOLATED: [u32; 3] = [87, 90, 101];
    built / 10 == device / 10 && built < device && !ISOLATED.contains(&built) && !ISOLATED.contains(&device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::jit::program::FAST;

    /// What the cubins of a table borrow.
    struct Owned {
        arch: u32,
        recipe: String,
        code: [u8; 1],
    }

    /// One program for several architectures. Each cubin's code is its architecture.
    fn owned(archs: &[u32]) -> Vec<Owned> {
        let recipe = |arch| recipe(FAST, &options(arch, &[("SKC_DIM", 64)]));
        archs.iter().map(|&arch| Owned { arch, recipe: recipe(arch), code: [arch as u8] }).collect()
    }

    fn table(owned: &[Owned]) -> Vec<Cubin<'_>> {
        let source = text_hash(FAST);
        owned.iter().map(|o| Cubin { arch: o.arch, recipe: &o.recipe, source, code: &o.code }).collect()
    }

    #[test]
    fn a_cubin_is_found_by_all_it_was_made_from() {
        let owned = owned(&[80, 90]);
        let mut table = table(&owned);
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
    fn compatible_architectures_are_listed_nearest_first() {
        let owned = owned(&[80, 86, 90, 100, 120]);
        let table = table(&owned);
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
            assert_eq!(compatible_archs(&table, device), want, "{device}");
        }
    }

    /// With the feature, what the build script wrote is for these sources; without, there is nothing.
    #[test]
    fn the_table_is_of_these_sources() {
        let archs: Vec<_> = TABLE.iter().map(|c| c.arch).collect();
        assert_eq!(archs.is_empty(), !cfg!(feature = "cubins"));
        for arch in archs {
            let code = exact(COMMON, arch, &[]).unwrap();
            assert!(has_common_kernels(arch) && code.starts_with(b"\x7fELF"), "{arch}");
            assert!(archs_text(COMMON, &[]).contains(&arch_name(arch)));
        }
        for cubin in TABLE {
            assert_eq!(cubin.source, text_hash(if cubin.recipe.starts_with("fast.cu") { FAST } else { COMMON }));
            assert_eq!(cubin.code.as_ptr().addr() % 128, 0, "{}", cubin.recipe);
        }
        assert!(!has_common_kernels(70));
        assert_eq!(archs_text(FAST, &[]), "");
    }
}
