//! The record of invalid entries: many of them, and a host that takes it while the device writes.

use cudarc::driver::sys;
use sinkcache::{Batch, Cache, DeviceBatch, Status};

use crate::common::device::{Buf, Host, ok, with_host};
use crate::common::new_cache;
use crate::support::{Tensors, config, cuda};

/// Entries of a launch.
const N: usize = 20;

/// Arrays of a launch whose entries are all invalid. They hold `number`, so that a record shows which launch it is of.
struct Launch {
    ids: Buf<i32>,
    counts: Buf<i32>,
    layer: u32,
}

impl Launch {
    fn new(number: usize) -> Self {
        let number = number as i32;
        let (ids, counts) = (Buf::new(&[1000 + number; N]), Buf::new(&[1 + number; N]));
        Self { ids, counts, layer: number as u32 % 2 }
    }

    fn append(&self, cache: &mut Cache, t: &Tensors) {
        let (seq_ids, n_tokens) = (self.ids.address, self.counts.address);
        let batch = DeviceBatch { seq_ids, n_tokens, n_entries: N as u32, max_tokens: 16, n_rows: 8 };
        // SAFETY: arrays in device memory that live until the stream has been waited for.
        cache.append(self.layer, unsafe { Batch::on_device(batch) }, t.k.rows(), t.v.rows()).unwrap();
    }
}

/// A record's launch, if all of its fields are of one.
fn launch_of(error: &sinkcache::DeviceError) -> u64 {
    let number = error.value - 1;
    assert_eq!(u64::from(error.seq_id as u32), 1000 + number, "{error:?}");
    assert_eq!(u64::from(error.layer), number % 2, "{error:?}");
    assert!(error.call == 1 && (error.entry as usize) < N, "{error:?}");
    // The entry that comes first is invalid for its id. Later ones name the same sequence.
    let status = if error.entry == 0 { Status::OutOfRange } else { Status::InvalidArgument };
    assert_eq!(error.status, status as i32, "{error:?}");
    number
}

#[test]
fn all_invalid_entries_are_counted_and_one_of_the_first_launch_is_shown() {
    let Some(_turn) = cuda() else { return };
    let mut cache = new_cache(&config(2, 3, 1, 10));
    let t = Tensors::new(8);
    let launches: Vec<_> = (0..12).map(Launch::new).collect();
    for n in [1, 2, 7, 12] {
        for launch in &launches[launches.len() - n..] {
            launch.append(&mut cache, &t);
        }
        with_host(Host::wait);
        let error = cache.take_error().unwrap().expect("invalid entries");
        assert_eq!((error.count as usize, launch_of(&error) as usize), (n * N, launches.len() - n));
        assert_eq!(cache.take_error().unwrap(), None);
    }
}

/// Nothing is lost, counted twice or torn, and what is shown is the first since the last time.
#[test]
fn a_host_takes_the_record_while_the_device_writes_it() {
    let Some(_turn) = cuda() else { return };
    let mut cache = new_cache(&config(2, 3, 1, 10));
    let t = Tensors::new(8);
    let launches: Vec<_> = (0..150).map(Launch::new).collect();
    for launch in &launches {
        launch.append(&mut cache, &t);
    }
    let (context, stream) = with_host(|host| (host.context as usize, host.stream as usize));
    let mut counted = 0;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            // SAFETY: both are live: the host's thread waits for this one.
            unsafe {
                ok(sys::cuCtxSetCurrent(context as sys::CUcontext));
                ok(sys::cuStreamSynchronize(stream as sys::CUstream));
            }
        });
        loop {
            let ended = waiter.is_finished();
            match cache.take_error().unwrap() {
                Some(error) => {
                    // Launches run one after the other.
                    assert_eq!(launch_of(&error) as usize, counted / N, "{error:?} after {counted}");
                    counted += error.count as usize;
                }
                None if ended => break,
                None => std::thread::yield_now(),
            }
        }
    });
    assert_eq!(counted, launches.len() * N);
}
