//! A long stream: memory does not grow, results stay correct, and no call waits or allocates.

use std::time::Instant;

use cudarc::driver::sys;
use sinkcache::{Batch, Cache, CacheConfig};

use crate::common::device::{ok, with_host};
use crate::common::new_cache;
use crate::support::{Graph, Random, Tensors, close, config, cuda};

fn free() -> usize {
    let (mut free, mut total) = (0, 0);
    // SAFETY: outputs are writable; a context is current.
    ok(unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) });
    free
}

/// `SKC_SOAK` tokens (default 3,000) by a replayed graph, one at a time; then the device agrees with a CPU cache that
/// got only the last tokens, at the same stream positions.
#[test]
fn a_long_stream_in_constant_memory() {
    let Some(_turn) = cuda() else { return };
    let tokens: usize = std::env::var("SKC_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    // No sinks: results depend on the last tokens alone, so the CPU cache can start late.
    let config = config(1, 1, 0, 40);
    let mut cache = new_cache(&config);
    let mut t = Tensors::new(1);
    with_host(|host| {
        let graph = Graph::capture(host, || {
            // SAFETY: the host's stream.
            unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
            t.feed(&mut cache, 0, Batch::new(&[0], &[1]));
        });
        let mut plain = Cache::new(&CacheConfig { backend: sinkcache::BackendKind::Cpu, ..config.clone() }).unwrap();
        let late = tokens - 60;
        plain.reset(&[0], Some(&[late as u64])).unwrap();
        let mut random = Random(21);
        graph.launch(host);
        host.wait();
        let before = free();
        let began = Instant::now();
        for i in 1..tokens {
            // New rows only sometimes: otherwise most of the time would go into copies.
            if i >= late || i % 64 == 0 {
                t.draw(&mut random, 1);
            }
            graph.launch(host);
            if i >= late {
                let want = t.feed_cpu(&mut plain, 0, Batch::new(&[0], &[1]));
                if i >= late + 40 {
                    close(&t.out.read(), &want);
                }
            }
        }
        host.wait();
        println!("{tokens} tokens in {:.1} s", began.elapsed().as_secs_f64());
        assert_eq!(free(), before);
        cache.note_replay(None, &[0], &[i32::try_from(tokens).unwrap()]).unwrap();
        assert_eq!(cache.seq_info(0, 0).unwrap().len_min, tokens as u64);
        let noted = cache.seq_info(0, 0).unwrap();
        // SAFETY: the host's stream.
        unsafe { cache.set_stream(host.stream.cast()) }.unwrap();
        cache.read_back(0).unwrap();
        let read = cache.seq_info(0, 0).unwrap();
        assert_eq!((read.len_min, read.cached, read.evicted), (noted.len_min, noted.cached, noted.evicted));
        assert_eq!(cache.take_error().unwrap(), None);
    });
}
