//! `include/sinkcache.h` is what this program generates from `src/ffi`. Every constant in it can be looked up by a
//! call, and every item says what a caller needs to know.

use std::ffi::CString;
use std::fmt::Write as _;
use std::path::Path;

use sinkcache::ffi::{CONSTANT_GROUPS, Constant};

/// The files of the ABI, in the order of the header.
const SOURCES: [&str; 12] = [
    "constants",
    "config",
    "registry",
    "lifecycle",
    "args",
    "compute",
    "step_part",
    "edit",
    "info",
    "device",
    "snapshot",
    "boundary",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Types and functions by cbindgen, constants from the tables in `constants.rs`.
fn generate() -> String {
    let mut config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    config.after_includes = config.after_includes.map(|text| text.replace("@CONSTANTS@", &constants()));
    let builder = SOURCES.iter().fold(cbindgen::Builder::new().with_config(config), |b, name| {
        b.with_src(root().join(format!("src/ffi/{name}.rs")))
    });
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    let header = String::from_utf8(header).unwrap();
    let begin = "extern \"C\" {\n#endif // __cplusplus\n";
    let header = header.replace(begin, &format!("{begin}\n/* ---- Functions ---- */\n"));
    short_declarations(&short_comments(&without_safety_sections(&header)))
}

/// The constants as `#define`s, in groups.
fn constants() -> String {
    let mut text = String::new();
    for group in CONSTANT_GROUPS {
        write!(text, "\n/* ---- {} ---- */\n", group.heading).unwrap();
        for c in group.constants {
            text.push_str("\n/**\n");
            for line in c.text.lines() {
                writeln!(text, " *{line}").unwrap();
            }
            writeln!(text, " */\n#define {} {}", c.name.to_str().unwrap(), literal(c)).unwrap();
        }
    }
    text
}

fn literal(c: &Constant) -> String {
    match c.value {
        n if n == i64::from(u32::MAX) => "UINT32_MAX".to_owned(),
        n if n < 0 => format!("({n})"),
        n => n.to_string(),
    }
}

/// Removes "# Safety" sections: they are for Rust callers, and in C the contract is the rest of the comment.
fn without_safety_sections(header: &str) -> String {
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

/// Writes comments of one line in one line.
fn short_comments(header: &str) -> String {
    let lines: Vec<&str> = header.lines().collect();
    let mut text = String::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        if line.trim() == "/**" && lines.get(at + 2).is_some_and(|end| end.trim() == "*/") {
            let inner = lines[at + 1].trim().trim_start_matches('*').trim();
            let short = format!("{} {inner} */", line.trim_end());
            if short.len() <= 120 {
                text.push_str(&short);
                text.push('\n');
                at += 3;
                continue;
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
        at += 1;
    }
    text
}

/// Writes a function in one line, or if that is too long its parameters in the next, or in a line each.
fn short_declarations(header: &str) -> String {
    let mut text = String::new();
    let mut declaration: Option<String> = None;
    for line in header.lines() {
        if line == "SKC_API" || line.starts_with("SKC_API ") {
            declaration = Some(String::new());
        }
        let Some(all) = declaration.as_mut() else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        all.push_str(if all.is_empty() || all.ends_with('(') { "" } else { " " });
        all.push_str(line.trim());
        if line.ends_with(';') {
            let long = |text: &str| text.lines().any(|line| line.len() > 120);
            let mut whole = all.clone();
            if long(&whole) {
                whole = whole.replacen('(', "(\n    ", 1);
            }
            if long(&whole) {
                whole = whole.replace(", ", ",\n    ");
            }
            text.push_str(&whole);
            text.push('\n');
            declaration = None;
        }
    }
    text
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
    let mut found = 0;
    for line in header.lines() {
        let mut words = line.split_whitespace();
        let (Some("#define"), Some(name), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
        let value = value.trim_start_matches('(').trim_end_matches(')').replace("UINT32_MAX", "4294967295");
        let Ok(expected) = value.parse::<i64>() else { continue };
        let mut got = i64::MIN;
        let c_name = CString::new(name).unwrap();
        // SAFETY: a C string and a writable number.
        let status = unsafe { sinkcache::ffi::skc_constant(c_name.as_ptr(), &mut got) };
        assert_eq!((status, got), (0, expected), "{name}");
        found += 1;
    }
    assert_eq!(found, CONSTANT_GROUPS.iter().map(|group| group.constants.len()).sum::<usize>());
    assert!(found >= 45, "only {found} constants found in the header");
}

#[test]
fn the_header_names_every_exported_function() {
    let header = generate();
    for name in SOURCES {
        let source = std::fs::read_to_string(root().join(format!("src/ffi/{name}.rs"))).unwrap();
        for line in source.lines().filter(|l| l.contains("extern \"C\" fn skc_")) {
            let name = line.split("fn ").nth(1).unwrap().split('(').next().unwrap();
            assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
        }
    }
}

/// An item of the header: its comment, and its first line.
#[derive(Debug)]
struct Item {
    comment: String,
    line: String,
}

/// Functions, types, fields and macros, each with the comment before it.
fn items(header: &str) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    let mut comment: Option<String> = None;
    let (mut in_comment, mut in_struct) = (false, false);
    for line in header.lines() {
        let text = line.trim();
        if let Some(begin) = text.strip_prefix("/**") {
            in_comment = !text.ends_with("*/");
            comment = Some(begin.trim_end_matches("*/").trim().to_owned());
            continue;
        }
        if in_comment {
            in_comment = text != "*/";
            if let Some(comment) = comment.as_mut().filter(|_| in_comment) {
                comment.push('\n');
                comment.push_str(text.trim_start_matches('*').trim());
            }
            continue;
        }
        // `#define NAME`: a name may be defined in several ways, of which the first has the comment.
        let name = text.split_whitespace().nth(1).unwrap_or_default();
        let define =
            text.starts_with("#define SKC_") && !items.iter().any(|i| i.line.contains(&format!("#define {name} ")));
        let field = in_struct && text.ends_with(';') && !text.starts_with('}');
        if define || field || text.starts_with("SKC_API ") || text.starts_with("typedef ") {
            items.push(Item { comment: comment.take().unwrap_or_default(), line: text.to_owned() });
        }
        in_struct = (in_struct || text.starts_with("typedef struct") && text.ends_with('{')) && !text.starts_with('}');
    }
    items
}

/// What is missing in a comment.
fn problem(item: &Item) -> Option<String> {
    let missing = |parts: &[&str]| {
        let lines: Vec<&str> = item.comment.lines().collect();
        let has = |part: &str| lines.iter().any(|l| l.strip_prefix(part).is_some_and(|rest| rest.len() > 8));
        parts.iter().find(|part| !has(part)).map(|part| format!("lacks \"{part} ...\""))
    };
    let words = item.comment.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic)).count();
    if item.line.starts_with("SKC_API ") {
        // What it returns: statuses, or for a value what it is.
        let status = item.line.starts_with("SKC_API skc_status ");
        let names_statuses = item.comment.contains("Returns: SKC_STATUS_OK");
        let statuses = (status && !names_statuses).then(|| "does not say which statuses it returns".to_owned());
        return missing(&["Returns:", "Lifetime:", "Threads:"]).or(statuses);
    }
    if item.line.starts_with("typedef ") && item.line.contains("(*") {
        return missing(&["Lifetime:", "Threads:"]);
    }
    // "SKC_CALL_EVICT: skc_evict." says enough of a constant.
    let least = if item.line.starts_with("#define") { 1 } else { 3 };
    (words < least).then(|| format!("says too little: \"{}\"", item.comment))
}

#[test]
fn every_item_says_what_a_caller_needs_to_know() {
    let items = items(&generate());
    let problems: Vec<String> =
        items.iter().filter_map(|item| problem(item).map(|why| format!("{}: {why}", item.line))).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let count = |prefix: &str| items.iter().filter(|item| item.line.starts_with(prefix)).count();
    let fields =
        items.iter().filter(|i| i.line.ends_with(';') && !i.line.contains('(') && !i.line.starts_with("typedef"));
    let exports = std::fs::read_to_string(root().join("cpp_tests/exports.txt")).unwrap();
    assert_eq!(count("SKC_API "), exports.lines().count());
    assert!(fields.count() >= 150 && count("typedef ") >= 18 && count("#define") >= 47);
}

#[test]
fn a_comment_that_says_too_little_is_found() {
    let problems = |header: &str| items(header).iter().filter_map(problem).collect::<Vec<_>>();
    let function = |comment: &str| format!("/**\n{comment} */\nSKC_API skc_status skc_f(void);\n");
    let full = " * Does.\n * Returns: SKC_STATUS_OK or not.\n * Lifetime: of nothing.\n * Threads: any thread.\n";
    assert!(problems(&function(full)).is_empty());
    for part in ["Returns:", "Lifetime:", "Threads:"] {
        let lines = full.lines().filter(|l| !l.contains(part)).fold(String::new(), |text, l| text + l + "\n");
        assert!(problems(&function(&lines))[0].contains(part));
    }
    assert!(problems(&function(&full.replace("SKC_STATUS_OK or not", "something else")))[0].contains("statuses"));
    let fields =
        |text: &str| problems(&format!("/** Arguments of a call. */\ntypedef struct x {{\n{text}}} x;\n")).len();
    assert_eq!(fields("    /** Index of the layer. */\n    uint32_t layer;\n"), 0);
    assert_eq!(fields("    /** 0. */\n    uint32_t reserved;\n    uint32_t layer;\n"), 2);
    assert_eq!(fields("    /** Layer. */\n    uint32_t layer;\n"), 1);
    assert_eq!(problems("#define SKC_X 1\n").len(), 1);
    assert_eq!(problems("/** Frees. */\ntypedef void (*skc_free_fn)(void *user);\n").len(), 1);
}
