//! Taking the record of invalid entries that the device has skipped. `kernels/error_record.cuh` writes it.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::params::SkcErrorPage;
use crate::backend::DeviceError;

/// The page at one moment.
#[derive(Clone, Copy, Debug)]
struct Record {
    /// Entries skipped so far, and the number of the recorded one among them, modulo 2^32.
    n_skipped: u32,
    first: u32,
    error: DeviceError,
}

/// Whether number `a` is later than `b`. Numbers wrap.
fn later(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Returns what has been skipped since the last call, and takes it. Never waits: what the device is just writing is
/// left for the next call.
///
/// # Safety
/// `page` is a live page. Nothing but the device writes it at the same time, and `n_taken` nothing but this function.
pub unsafe fn take(page: *mut SkcErrorPage) -> Option<DeviceError> {
    // SAFETY: the caller's; both words are aligned, and each has one writer.
    let [n_taken, n_skipped] =
        unsafe { [&raw mut (*page).n_taken, &raw mut (*page).n_skipped].map(|at| AtomicU32::from_ptr(at)) };
    let mut taken = n_taken.load(Ordering::Relaxed);
    // SAFETY: the caller's.
    let record = unsafe { read(page) }?;
    // Otherwise the record has been taken. If more entries are counted, the device is about to write the next one.
    if !later(record.first, taken) {
        return None;
    }
    let mut error = DeviceError { count: 0, ..record.error };
    let mut upto = record.n_skipped;
    // Each further round has found entries that were skipped since the round before: few, since a round takes less than
    // a microsecond.
    while upto != taken {
        error.count = error.count.wrapping_add(upto.wrapping_sub(taken));
        taken = upto;
        n_taken.store(taken, Ordering::Relaxed);
        // An entry that is skipped meanwhile: if the device has read `n_taken` before this store, it may add the entry
        // to those of the record that is taken here; then the count that is loaded next has the entry. Otherwise it
        // records the entry. Both sides store, pass a fence, and load what the other has stored.
        fence(Ordering::SeqCst);
        upto = n_skipped.load(Ordering::Relaxed);
    }
    Some(error)
}

/// The page, or `None` while the device is writing it.
///
/// # Safety
/// As for [`take`].
unsafe fn read(page: *mut SkcErrorPage) -> Option<Record> {
    let word = |at: *mut u32| {
        // SAFETY: a word of the page, aligned; the device writes it in one piece.
        unsafe { AtomicU32::from_ptr(at) }.load(Ordering::Relaxed)
    };
    // SAFETY: addresses of fields of a live page.
    let [begun, ended] = unsafe { [&raw mut (*page).begun, &raw mut (*page).ended] };
    let number = word(ended);
    fence(Ordering::Acquire);
    // SAFETY: as above; `i32` and `u32` have the same layout.
    let [n_skipped, first, status, layer, entry, seq, call, low, high] = unsafe {
        [
            &raw mut (*page).n_skipped,
            &raw mut (*page).first,
            (&raw mut (*page).status).cast(),
            &raw mut (*page).layer,
            &raw mut (*page).entry,
            (&raw mut (*page).seq).cast(),
            &raw mut (*page).call,
            &raw mut (*page).value_low,
            &raw mut (*page).value_high,
        ]
    }
    .map(word);
    fence(Ordering::Acquire);
    // The device stores `begun` first and `ended` last.
    // mutant: torn_record_taken
    if word(begun) != number {
        return None;
    }
    let value = u64::from(high) << 32 | u64::from(low);
    let (status, seq_id) = (status.cast_signed(), seq.cast_signed());
    Some(Record { n_skipped, first, error: DeviceError { count: 0, status, call, layer, entry, seq_id, value } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// A page that a test writes as `kernels/error_record.cuh` does. Entry n has `entry`, `layer` and `value` n.
    struct Device {
        page: Box<SkcErrorPage>,
        n_writes: u32,
        n_skipped: u32,
        first: u32,
    }

    impl Device {
        /// As if `n` entries had been skipped and taken before.
        fn new(n: u32) -> Self {
            let page = SkcErrorPage { n_skipped: n, first: n, n_taken: n, ..SkcErrorPage::default() };
            Self { page: Box::new(page), n_writes: 0, n_skipped: n, first: n }
        }

        fn page(&mut self) -> *mut SkcErrorPage {
            &raw mut *self.page
        }
    }

    /// What the device knows of a page, which another thread takes from.
    struct Writer(*mut SkcErrorPage, [u32; 3]);

    // SAFETY: the page outlives the thread.
    unsafe impl Send for Writer {}

    impl Writer {
        fn of(device: &mut Device) -> Self {
            let numbers = [device.n_writes, device.n_skipped, device.first];
            Self(device.page(), numbers)
        }

        fn store(at: *mut u32, x: u32) {
            // SAFETY: a word of a live page.
            unsafe { AtomicU32::from_ptr(at) }.store(x, Ordering::Relaxed);
        }

        fn record_is_taken(&self) -> bool {
            // SAFETY: a word of a live page.
            let taken = unsafe { AtomicU32::from_ptr(&raw mut (*self.0).n_taken) }.load(Ordering::Relaxed);
            !later(self.1[2], taken)
        }

        fn write(&mut self, own: bool) {
            let Self(page, [n_writes, n_skipped, first]) = self;
            let page = *page;
            *n_writes = n_writes.wrapping_add(1);
            // SAFETY: a live page.
            unsafe {
                Self::store(&raw mut (*page).begun, *n_writes);
                fence(Ordering::SeqCst);
                Self::store(&raw mut (*page).n_skipped, *n_skipped);
                if own {
                    *first = *n_skipped;
                    Self::store(&raw mut (*page).first, *first);
                    Self::store((&raw mut (*page).status).cast(), u32::MAX);
                    Self::store(&raw mut (*page).layer, *first);
                    Self::store(&raw mut (*page).entry, *first);
                    Self::store(&raw mut (*page).value_low, *first);
                    Self::store(&raw mut (*page).value_high, *first);
                }
                fence(Ordering::SeqCst);
                Self::store(&raw mut (*page).ended, *n_writes);
                fence(Ordering::SeqCst);
            }
        }

        fn report(&mut self) {
            self.1[1] = self.1[1].wrapping_add(1);
            let taken = self.record_is_taken();
            self.write(taken);
            if !taken && self.record_is_taken() {
                self.write(true);
            }
        }
    }

    #[test]
    fn a_record_is_taken_once_with_the_first_entry_and_all_counted() {
        // The numbers wrap in the second case.
        for n in [0, u32::MAX - 3] {
            let mut device = Device::new(n);
            let mut writer = Writer::of(&mut device);
            for round in 0..5 {
                let first = writer.1[1].wrapping_add(1);
                for _ in 0..=round {
                    writer.report();
                }
                // SAFETY: one thread, a live page.
                let error = unsafe { take(device.page()) }.expect("entries were skipped");
                assert_eq!((error.count, error.entry, error.status), (round + 1, first, -1));
                assert_eq!(error.value, u64::from(first) << 32 | u64::from(first));
                // SAFETY: as above.
                assert_eq!(unsafe { take(device.page()) }, None);
            }
        }
    }

    #[test]
    fn a_record_that_is_being_written_is_left() {
        let mut device = Device::new(0);
        let mut writer = Writer::of(&mut device);
        writer.report();
        device.page.begun += 1;
        // SAFETY: one thread, a live page.
        assert_eq!(unsafe { take(device.page()) }, None);
        device.page.ended += 1;
        // SAFETY: as above.
        assert_eq!(unsafe { take(device.page()) }.map(|e| e.count), Some(1));
    }

    /// Without a lost entry, a torn record, or a record that is not that of the first entry since the last one.
    #[test]
    fn a_host_takes_while_the_device_writes() {
        const N: u32 = if cfg!(miri) { 200 } else { 200_000 };
        for n in [0, u32::MAX - 1000] {
            let mut device = Device::new(n);
            let mut writer = Writer::of(&mut device);
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let ended = &done;
                scope.spawn(move || {
                    for _ in 0..N {
                        writer.report();
                    }
                    ended.store(true, Ordering::Release);
                });
                let mut counted = 0;
                loop {
                    let last = done.load(Ordering::Acquire);
                    // SAFETY: the page lives, and only this thread takes.
                    let error = unsafe { take(device.page()) };
                    if let Some(error) = error {
                        let first = n.wrapping_add(counted).wrapping_add(1);
                        assert_eq!((error.entry, error.layer), (first, first));
                        assert_eq!(error.value, u64::from(first) << 32 | u64::from(first));
                        counted += error.count;
                    } else if last {
                        break;
                    }
                }
                assert_eq!(counted, N);
            });
        }
    }
}
