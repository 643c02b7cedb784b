//! Handle slots. A slot holds one cache at a time, has a generation for each, and counts the calls that use it.
//!
//! Nothing here locks. A child of fork(2) has only the thread that forked: a lock that another thread held would stay
//! locked in it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;

use super::gate::Handle;
use crate::error::{Result, bail};
use crate::process::ForkHandler;
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Shared, null_pointers, shared_static};

/// How many slots there can be.
pub const MAX_SLOTS: u32 = if usize::BITS == 64 { 1 << 24 } else { 1 << 12 } - FIRST_CHUNK;
/// The last generation of a slot, after which it is not used again: an old handle must not become valid.
pub const MAX_GENERATION: u32 = if usize::BITS == 64 { u32::MAX } else { (1 << 12) - 1 };

/// Slots are allocated by chunks, each twice as large as the one before, that never move and are never freed.
const FIRST_CHUNK: u32 = if cfg!(sinkcache_loom) { 1 } else { 64 };
const N_CHUNKS: usize = ((MAX_SLOTS + FIRST_CHUNK) / FIRST_CHUNK).ilog2() as usize;
shared_static! {
    static CHUNKS: [AtomicPtr<Slot>; N_CHUNKS] = null_pointers!(N_CHUNKS);
}
shared_static! {
    /// Number of slots in use or free.
    static N_SLOTS: AtomicU32 = AtomicU32::new(0);
}
shared_static! {
    /// The free slots, as a stack: index of the top plus 1, or 0, in the low half. The high half counts changes, so
    /// that a comparison fails if the top was taken and put back meanwhile.
    static FREE: AtomicU64 = AtomicU64::new(0);
}

/// Zero is a valid slot, without a cache.
struct Slot {
    /// The generation in the high half; in the low half 0 without a cache, 1 plus the calls that use it, or one of the
    /// marks below.
    state: AtomicU64,
    /// Valid while there is a cache.
    handle: Shared<Option<Box<Handle>>>,
    /// While on the stack of free slots: the slot below, as in [`FREE`].
    below: AtomicU32,
}

#[cfg(sinkcache_loom)]
impl Slot {
    /// Loom's atomics have to be created.
    fn without_cache() -> Self {
        Self { state: AtomicU64::new(0), handle: Shared::new(None), below: AtomicU32::new(0) }
    }
}

/// Beside the number of users: another thread was using the cache when this process was forked. It cannot finish here,
/// and its cache is in no defined state. Calls of this thread that are under way end as usual, no other begins.
const LOST: u32 = 1 << 31;
/// In place of the number of users: the cache is being destroyed.
const CLOSING: u32 = LOST - 1;

thread_local! {
    static USES: Uses = const { Uses { slots: [const { Cell::new(0) }; 8], n: Cell::new(0) } };
}

/// The slots that this thread's calls use: more than one if a callback of a call makes another.
struct Uses {
    /// The first of them. A fork inside more calls than that leaves the caches of the others lost.
    slots: [Cell<u32>; 8],
    n: Cell<usize>,
}

impl Uses {
    fn begin(&self, slot: u32) {
        let n = self.n.get();
        if let Some(place) = self.slots.get(n) {
            place.set(slot);
        }
        self.n.set(n + 1);
    }

    /// Ends the latest use.
    fn end(&self) {
        self.n.set(self.n.get().saturating_sub(1));
    }

    /// How often this thread uses a slot.
    fn of(&self, slot: u32) -> u32 {
        self.slots.iter().take(self.n.get()).filter(|used| used.get() == slot).count() as u32
    }
}

fn pack(generation: u32, users: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(users)
}

fn unpack(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}

/// A slot's chunk, and its place there.
fn place(index: u32) -> (usize, usize) {
    let at = index + FIRST_CHUNK;
    let chunk = at.ilog2() - FIRST_CHUNK.ilog2();
    (chunk as usize, (at - (FIRST_CHUNK << chunk)) as usize)
}

fn slot(index: u32) -> Option<&'static Slot> {
    if index >= N_SLOTS.load(Ordering::Acquire) {
        return None;
    }
    let (chunk, at) = place(index);
    let first = CHUNKS.get(chunk)?.load(Ordering::Acquire);
    // SAFETY: below the number of slots chunks are allocated, with all their slots, and are never freed; `Slot` is made
    // of atomics and a cell that `state` guards.
    (!first.is_null()).then(|| unsafe { &*first.add(at) })
}

/// Makes sure that the chunk of a slot is there.
fn allocate_chunk(index: u32) -> Result<()> {
    let (chunk, _) = place(index);
    let Some(chunk_ptr) = CHUNKS.get(chunk) else {
        bail!(Internal, "handle slot {index} has no chunk");
    };
    if !chunk_ptr.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    let Ok(layout) = Layout::array::<Slot>((FIRST_CHUNK as usize) << chunk) else {
        bail!(Internal, "chunk {chunk} of handles exceeds the address space");
    };
    // SAFETY: the layout has at least one slot.
    let new = unsafe { alloc_zeroed(layout) }.cast::<Slot>();
    if new.is_null() {
        bail!(OutOfMemory, "{} bytes for handles could not be allocated", layout.size());
    }
    #[cfg(sinkcache_loom)]
    for i in 0..(FIRST_CHUNK as usize) << chunk {
        // SAFETY: room for so many slots.
        unsafe { new.add(i).write(Slot::without_cache()) };
    }
    if chunk_ptr.compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: allocated above with this layout; another thread's chunk is used instead.
        unsafe { dealloc(new.cast(), layout) };
    }
    Ok(())
}

/// Takes a free slot.
fn take() -> Result<u32> {
    let mut top = FREE.load(Ordering::Acquire);
    while let (changes, Some(index)) = ((top >> 32) as u32, (top as u32).checked_sub(1)) {
        let Some(slot) = slot(index) else {
            bail!(Internal, "free handle slot {index} does not exist");
        };
        let below = pack(changes.wrapping_add(1), slot.below.load(Ordering::Relaxed));
        match FREE.compare_exchange_weak(top, below, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Ok(index),
            Err(now) => top = now,
        }
    }
    loop {
        let n = N_SLOTS.load(Ordering::Acquire);
        if n >= MAX_SLOTS {
            bail!(OutOfMemory, "there are {n} caches: no more handles are possible");
        }
        allocate_chunk(n)?;
        if N_SLOTS.compare_exchange(n, n + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return Ok(n);
        }
    }
}

/// Gives a slot back.
fn give_back(index: u32, slot: &Slot) {
    let mut top = FREE.load(Ordering::Relaxed);
    loop {
        slot.below.store(top as u32, Ordering::Relaxed);
        let new = pack(((top >> 32) as u32).wrapping_add(1), index + 1);
        match FREE.compare_exchange_weak(top, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => top = now,
        }
    }
}

/// Puts a cache into a slot; returns the slot's index and generation.
pub fn insert(handle: Box<Handle>) -> Result<(u32, u32)> {
    static LOSE: ForkHandler = ForkHandler::new(mark_lost);
    LOSE.register()?;
    let index = take()?;
    let Some(slot) = slot(index) else {
        bail!(Internal, "handle slot {index} is missing");
    };
    let generation = unpack(slot.state.load(Ordering::Relaxed)).0 + 1;
    // SAFETY: the slot was taken just now and has no cache: nobody else accesses it.
    unsafe { *slot.handle.write() = Some(handle) };
    slot.state.store(pack(generation, 1), Ordering::Release);
    Ok((index, generation))
}

/// Why a slot's cache cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no such cache.
    Gone,
    /// It is being destroyed.
    Closing,
    /// See [`LOST`].
    Lost,
}

/// A call's use of a cache: the cache lives until it is dropped.
pub struct InUse {
    slot: &'static Slot,
    index: u32,
    generation: u32,
}

impl InUse {
    pub fn enter(index: u32, generation: u32) -> std::result::Result<Self, Unusable> {
        let slot = slot(index).ok_or(Unusable::Gone)?;
        let mut state = slot.state.load(Ordering::Relaxed);
        loop {
            match unpack(state) {
                (g, users) if g != generation || users == 0 => return Err(Unusable::Gone),
                (_, users) if users & LOST != 0 => return Err(Unusable::Lost),
                (_, CLOSING) => return Err(Unusable::Closing),
                _ => {}
            }
            match slot.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        let _ = USES.try_with(|uses| uses.begin(index));
        Ok(Self { slot, index, generation })
    }

    pub fn handle(&self) -> Option<&Handle> {
        // SAFETY: this use is counted: while it is, the handle is neither moved nor freed, and only shared.
        unsafe { &*self.slot.handle.read() }.as_deref()
    }

    /// Keeps everybody else out, to destroy the cache; `None` while another call uses it.
    pub fn close(self) -> Option<Closed> {
        let (now, closing) = (pack(self.generation, 2), pack(self.generation, CLOSING));
        self.slot.state.compare_exchange(now, closing, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let closed = Closed { slot: self.slot, index: self.index, generation: self.generation };
        let _ = USES.try_with(Uses::end);
        std::mem::forget(self);
        Some(closed)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let _ = USES.try_with(Uses::end);
        self.slot.state.fetch_sub(1, Ordering::Release);
    }
}

/// A cache that nobody else can use. Unless it is removed, it becomes usable again when this is dropped.
pub struct Closed {
    slot: &'static Slot,
    index: u32,
    generation: u32,
}

impl Closed {
    pub fn handle(&mut self) -> Option<&mut Handle> {
        // SAFETY: the slot is marked CLOSING by `self`: nobody else uses or enters it.
        unsafe { &mut *self.slot.handle.write() }.as_deref_mut()
    }

    /// Takes the cache out of its slot.
    pub fn remove(self) -> Option<Box<Handle>> {
        // SAFETY: as in `handle`.
        let handle = unsafe { &mut *self.slot.handle.write() }.take();
        self.slot.state.store(pack(self.generation, 0), Ordering::Release);
        if self.generation < MAX_GENERATION {
            give_back(self.index, self.slot);
        }
        std::mem::forget(self);
        handle
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.slot.state.store(pack(self.generation, 1), Ordering::Release);
    }
}

/// Runs in a child of fork(2), which has one thread: marks caches that another thread of the parent was using. A
/// callback of a call may fork, too; its call goes on in the child.
extern "C" fn mark_lost() {
    let _ = USES.try_with(|uses| {
        for index in 0..N_SLOTS.load(Ordering::Relaxed) {
            let Some(slot) = slot(index) else { continue };
            let (generation, users) = unpack(slot.state.load(Ordering::Relaxed));
            if users > 1 + uses.of(index) {
                slot.state.store(pack(generation, users | LOST), Ordering::Relaxed);
            }
        }
    });
}

#[cfg(all(test, not(sinkcache_loom)))]
mod tests {
    use super::*;

    /// No other unit test makes a cache by the C ABI.
    #[test]
    #[expect(clippy::unwrap_used, reason = "a test")]
    fn every_change_of_the_free_slots_is_counted() {
        let changes = || FREE.load(Ordering::Relaxed) >> 32;
        let taken = [(); 3].map(|()| take().unwrap());
        let before = changes();
        taken.iter().for_each(|&index| give_back(index, slot(index).unwrap()));
        assert_eq!(changes(), before + 3);
        let again = [(); 3].map(|()| take().unwrap());
        assert_eq!(changes(), before + 6);
        // The last one given back is the first one taken.
        assert_eq!(again, [taken[2], taken[1], taken[0]]);
    }

    #[test]
    fn every_slot_has_a_place_of_its_own() {
        let mut next = (0, 0);
        for index in (0..5000).chain([MAX_SLOTS - 1]) {
            let (chunk, at) = place(index);
            assert!(chunk < N_CHUNKS && at < (FIRST_CHUNK as usize) << chunk, "slot {index}: {chunk}, {at}");
            if index < 5000 {
                assert_eq!((chunk, at), next);
                next = if at + 1 == (FIRST_CHUNK as usize) << chunk { (chunk + 1, 0) } else { (chunk, at + 1) };
            }
        }
        // No chunk is too many, and the last is full.
        let last = N_CHUNKS - 1;
        assert_eq!(place(MAX_SLOTS - 1), (last, ((FIRST_CHUNK as usize) << last) - 1));
    }
}
