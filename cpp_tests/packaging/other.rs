//! A second Rust library in one program. It brings its own copy of the standard library, and panics and catches it.

/// Returns n; a thread, a lookup that panics and a formatted number are on the way.
#[unsafe(no_mangle)]
pub extern "C" fn other_call(n: usize) -> usize {
    std::panic::set_hook(Box::new(|_| ()));
    let words: std::collections::HashMap<usize, String> = (0..n).map(|i| (i, format!("{i}"))).collect();
    match std::panic::catch_unwind(|| words[&n].len()) {
        Ok(_) => 0,
        Err(_) => std::thread::spawn(move || words.len()).join().unwrap_or(0),
    }
}
