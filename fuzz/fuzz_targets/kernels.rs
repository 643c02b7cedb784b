//! A file of the cache of compiled kernels, changed in any way: it counts as absent, unless it is what was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sinkcache::fuzzing::kernel_file;
use sinkcache_fuzz::Bytes;

const RECIPES: [&str; 4] = ["generic -arch=sm_90 -DDIM=128 nvrtc 13.0", "", " ", "fast\u{e9} 0"];

fn change(file: &mut Vec<u8>, b: &mut Bytes<'_>) {
    while !b.is_empty() {
        let at = usize::from(b.byte()) % (file.len() + 1);
        match b.byte() % 8 {
            0 => file.truncate(at),
            1 => file.insert(at, b.byte()),
            2 if at < file.len() => drop(file.remove(at)),
            3 => {
                let (line, end) = (file.split_off(at), file.clone());
                file.extend(line);
                file.extend(end);
            }
            4 => *file = (0..b.byte()).map(|_| b.byte()).collect(),
            5 => file.splice(at..at, *b"\n\n").for_each(drop),
            _ if at < file.len() => file[at] ^= b.byte(),
            _ => {}
        }
        file.truncate(1 << 16);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let b = &mut Bytes::new(bytes);
    let recipe = b.choose(&RECIPES);
    let cubin: Vec<u8> = (0..b.byte() % 32).map(|_| b.byte()).collect();
    let mut changed = false;
    let found = kernel_file(recipe, &cubin, |file| {
        let whole = file.clone();
        change(file, b);
        changed = *file != whole;
    });
    assert_eq!(found, (!changed).then_some(cubin));
});
