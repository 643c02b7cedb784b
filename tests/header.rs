//! `include/sinkcache.h` is what cbindgen makes of `src/ffi`, and every constant in it is reachable by a call.

use std::ffi::CString;
use std::path::Path;

/// The files of the ABI, in the order of the header.
const SOURCES: [&str; 10] =
    ["constants", "config", "registry", "lifecycle", "args", "compute", "step_part", "edit", "info", "device"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generate() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let sources = SOURCES.iter().chain(&["boundary"]);
    let builder = sources.fold(cbindgen::Builder::new().with_config(config), |b, name| {
        b.with_src(root().join(format!("src/ffi/{name}.rs")))
    });
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    // "# Safety" sections are for Rust callers; in C the contract is the header's own text.
    let header = String::from_utf8(header).unwrap();
    let mut kept: Vec<&str> = Vec::new();
    let mut skipping = false;
    for line in header.lines() {
        match line.trim() {
            "* # Safety" => {
                skipping = true;
                kept.pop();
            }
            "*/" => skipping = false,
            _ => {}
        }
        if !skipping {
            kept.push(line);
        }
    }
    kept.join("\n") + "\n"
}

/// Run with `SKC_WRITE_HEADER=1` (`make header`) to bring the file up to date.
#[test]
fn header_is_current() {
    let path = root().join("include/sinkcache.h");
    let header = generate();
    if std::env::var_os("SKC_WRITE_HEADER").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == header,
        "include/sinkcache.h is stale: run `make header`"
    );
}

#[test]
fn every_constant_is_reachable_by_a_call() {
    let header = generate();
    let mut seen = 0;
    for line in header.lines() {
        let mut words = line.split_whitespace();
        let (Some("#define"), Some(name), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
        let Ok(expected) = value.parse::<i64>() else { continue };
        let mut found = i64::MIN;
        let c_name = CString::new(name).unwrap();
        // SAFETY: a C string and a writable number.
        let status = unsafe { sinkcache::ffi::skc_constant(c_name.as_ptr(), &mut found) };
        assert_eq!((status, found), (0, expected), "{name}");
        seen += 1;
    }
    assert!(seen >= 30, "only {seen} constants found in the header");
}

#[test]
fn the_header_names_every_exported_function() {
    let header = generate();
    for name in SOURCES.iter().chain(&["boundary"]) {
        let source = std::fs::read_to_string(root().join(format!("src/ffi/{name}.rs"))).unwrap();
        for line in source.lines().filter(|l| l.contains("extern \"C\" fn skc_")) {
            let name = line.split("fn ").nth(1).unwrap().split('(').next().unwrap();
            assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
        }
    }
}
