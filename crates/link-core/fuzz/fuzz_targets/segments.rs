//! A segment whose other side writes what it likes, between the moves of an honest sender, receiver and node.
//!
//! The input is a row of ten bytes each: what to do, at which place of the first two pages, and a value. A broken rule may end a
//! connection; nothing may panic, and nothing may be read or written outside the segment.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_link_core::ring::far::{Giver, Taker};
use skein_link_core::ring::{
    CAPACITY_MIN, Next, Phase, Pipe, Reach, Record, Role, Rx, Segment, Tx, segment_len,
};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

const LEN: usize = segment_len(CAPACITY_MIN);
/// Header and directions.
const WORDS: usize = 8192 / 8;

/// Zeroed memory of a segment, aligned to a page.
struct Memory(NonNull<u8>);

impl Memory {
    fn layout() -> Layout {
        Layout::from_size_align(LEN, 4096).unwrap()
    }

    fn new() -> Self {
        // SAFETY: the layout is not empty.
        Self(NonNull::new(unsafe { alloc_zeroed(Self::layout()) }).unwrap())
    }

    /// The hostile side's pen.
    fn poke(&self, word: usize, value: u64) {
        // SAFETY: within the first two pages, aligned; nobody else runs.
        unsafe { self.0.cast::<u64>().add(word % WORDS).write_volatile(value) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this layout.
        unsafe { dealloc(self.0.as_ptr(), Self::layout()) };
    }
}

/// Looks at what a receiver would find, over changes of path.
fn look(mut ahead: Rx, pipe: Pipe<'_>, bytes: &mut [u8]) {
    for _ in 0..8 {
        match ahead.look(pipe) {
            Ok(Next::Ring { bytes: count }) => {
                let seen = count.min(bytes.len());
                ahead.peek(pipe, 0, &mut bytes[..seen]);
                ahead.pass(count);
            }
            Ok(Next::Bells { bytes }) => ahead.took(bytes),
            Ok(Next::Tcp { limit }) if limit < 1 << 20 => ahead.took(limit),
            _ => break,
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let memory = Memory::new();
    let reach = if input.first().is_some_and(|byte| byte & 1 == 1) { Reach::Far } else { Reach::Near };
    // SAFETY: the memory has this length and stays while the segment is used.
    let segment = unsafe { Segment::create(memory.0, LEN, CAPACITY_MIN, reach) }.unwrap();
    let pipe = segment.pipe(Role::Low);
    let dir = pipe.direction();
    let (mut tx, mut rx) = (Tx::new(7), Rx::new(7));
    let (mut taker, mut giver) = (Taker::default(), Giver::default());
    let mut bytes = [0; 300];
    for step in input.chunks_exact(10) {
        let value = u64::from_le_bytes(step[2..].try_into().unwrap());
        match step[0] % 13 {
            0..=3 => memory.poke(usize::from(step[1]) + usize::from(step[0]) * 16, value),
            4 if !tx.on_ring() => drop(tx.to_ring(dir)),
            5 if tx.on_ring() => drop(tx.write(pipe, &bytes[..step[1].into()])),
            6 if tx.on_ring() => drop(tx.bell(dir)),
            7 if tx.on_ring() => drop(tx.leave_far(dir, || value & 1 == 0)),
            8 => match rx.next(pipe) {
                Ok(Next::Ring { bytes: count }) => {
                    let count = count.min(bytes.len());
                    rx.peek(pipe, 0, &mut bytes[..count]);
                    rx.take(dir, count);
                }
                Ok(Next::Bells { bytes }) => rx.took(bytes),
                Ok(Next::Empty) => drop(rx.settle(pipe)),
                Ok(Next::Tcp { limit }) => rx.took(limit.min(step[1].into())),
                Err(_) => rx = Rx::new(7),
            },
            9 => {
                let _ = taker.take(pipe, &mut bytes);
                let _ = taker.told(dir, value >> 32, Phase(value as u32 & 7));
            }
            10 => {
                let record = Record { tcp: value >> 32, ring: value & 0xFFFF };
                let _ = giver.switch(dir, Phase(step[1].into()), record);
                let _ = giver.write(pipe, &bytes[..step[1].into()]);
            }
            11 => look(rx, pipe, &mut bytes),
            _ => {
                giver.wants_bell(dir);
                let _ = giver.rung(dir, giver.phase(), Some(value));
                let _ = segment.header().call_node();
            }
        }
    }
});
