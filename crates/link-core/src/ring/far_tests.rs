//! Properties of the far rules: random moves of two programs and two nodes over a model of TCP and of the light protocol, each
//! of which delivers in order and when it likes.

use super::far::{Giver, Rang, Taken, Taker};
use super::*;
use core::ptr::NonNull;
use proptest::prelude::*;
use std::collections::VecDeque;

const CAPACITY: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Data(u8),
    Bell,
}

/// From the sender's node to the receiver's.
enum ToReceiver {
    Bytes(Vec<u8>),
    Switch(Phase, Record),
    Rung(Phase, Option<u64>),
}

/// And back.
enum ToSender {
    Placed(Phase),
    Took(u64, Phase),
    Bell(Phase),
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Write(usize),
    ToRing,
    ToTcp,
    /// The sender's node looks at its program.
    Pump,
    /// The receiver's node looks at its program.
    Look,
    /// A message arrives.
    ToReceiver,
    ToSender,
    /// That many bytes of TCP arrive.
    Arrive(usize),
    Read(usize),
    /// The receiver's program is about to wait.
    Settle,
}

const fn byte(position: u64) -> u8 {
    (position * 7 % 251) as u8
}

/// One side's words and ring.
struct Side {
    direction: Direction,
    memory: Box<[u8; CAPACITY]>,
}

impl Side {
    fn new() -> Self {
        Self { direction: Direction::new(), memory: Box::new([0; CAPACITY]) }
    }

    #[expect(unsafe_code, reason = "the memory is the side's own and lives as long")]
    fn pipe(&mut self) -> Pipe<'_> {
        let data = NonNull::from(&mut *self.memory).cast();
        // SAFETY: 64 bytes of the side's own.
        unsafe { Pipe::from_parts(&self.direction, data, CAPACITY, Reach::Far) }
    }
}

struct World {
    here: Side,
    there: Side,
    tx: Tx,
    taker: Taker,
    giver: Giver,
    rx: Rx,
    told: (u64, Phase),
    to_receiver: VecDeque<ToReceiver>,
    to_sender: VecDeque<ToSender>,
    /// On the wire, and in the receiver's socket.
    wire: VecDeque<Item>,
    queue: VecDeque<Item>,
    sent: u64,
    got: u64,
}

impl World {
    fn new() -> Self {
        Self {
            here: Side::new(),
            there: Side::new(),
            tx: Tx::new(1000),
            taker: Taker::default(),
            giver: Giver::default(),
            rx: Rx::new(1000),
            told: (0, Phase(0)),
            to_receiver: VecDeque::new(),
            to_sender: VecDeque::new(),
            wire: VecDeque::new(),
            queue: VecDeque::new(),
            sent: 0,
            got: 0,
        }
    }

    fn apply(&mut self, step: Move) {
        match step {
            Move::Write(count) => self.write(count),
            Move::ToRing => {
                if !self.tx.on_ring() {
                    let _ = self.tx.to_ring(&self.here.direction);
                }
            }
            Move::ToTcp => {
                if self.tx.on_ring() {
                    let wire = &mut self.wire;
                    let ring = || {
                        wire.push_back(Item::Bell);
                        true
                    };
                    let _ = self.tx.leave_far(&self.here.direction, ring);
                }
            }
            Move::Pump => self.pump(),
            Move::Look => self.look(),
            Move::ToReceiver => self.deliver_to_receiver(),
            Move::ToSender => self.deliver_to_sender(),
            Move::Arrive(count) => {
                let count = count.min(self.wire.len());
                self.queue.extend(self.wire.drain(..count));
            }
            Move::Read(room) => self.read(room),
            Move::Settle => self.settle(),
        }
    }

    fn write(&mut self, count: usize) {
        let bytes: Vec<u8> = (0..count as u64).map(|i| byte(self.sent + i)).collect();
        if self.tx.on_ring() {
            let dir_is_free = self.here.direction.begin_write() == Refusal::None;
            assert!(dir_is_free);
            self.sent += self.tx.write(self.here.pipe(), &bytes).unwrap() as u64;
            self.here.direction.wrote();
        } else {
            self.wire.extend(bytes.iter().map(|byte| Item::Data(*byte)));
            self.tx.sent(&self.here.direction, count as u64);
            self.sent += count as u64;
        }
    }

    fn pump(&mut self) {
        let mut into = [0; 40];
        self.to_receiver.push_back(match self.taker.take(self.here.pipe(), &mut into).unwrap() {
            Taken::Bytes(count) => ToReceiver::Bytes(into[..count].to_vec()),
            Taken::Switch(phase, record) => ToReceiver::Switch(phase, record),
            Taken::Empty => return,
        });
    }

    fn look(&mut self) {
        let dir = &self.there.direction;
        let now = (dir.tail(), dir.seen());
        if now != self.told {
            self.told = now;
            self.to_sender.push_back(ToSender::Took(now.0, now.1));
        }
        if self.giver.wants_bell(dir) {
            self.to_sender.push_back(ToSender::Bell(self.giver.phase()));
        }
    }

    fn deliver_to_receiver(&mut self) {
        match self.to_receiver.pop_front() {
            None => {}
            Some(ToReceiver::Bytes(bytes)) => {
                let kept = self.giver.write(self.there.pipe(), &bytes).unwrap();
                assert_eq!(kept, bytes.len(), "a node never holds more than the ring has room for");
            }
            Some(ToReceiver::Switch(phase, record)) => {
                self.giver.switch(&self.there.direction, phase, record).unwrap();
                self.to_sender.push_back(ToSender::Placed(phase));
            }
            Some(ToReceiver::Rung(phase, end)) => {
                self.giver.rung(&self.there.direction, phase, end).unwrap();
            }
        }
    }

    fn deliver_to_sender(&mut self) {
        let dir = &self.here.direction;
        match self.to_sender.pop_front() {
            None => {}
            Some(ToSender::Placed(phase)) => self.taker.placed(dir, phase),
            Some(ToSender::Took(tail, seen)) => self.taker.told(dir, tail, seen).unwrap(),
            Some(ToSender::Bell(phase)) => {
                let wire = &mut self.wire;
                let rang = self.taker.ring(dir, phase, || {
                    wire.push_back(Item::Bell);
                    Some(true)
                });
                let end = match rang {
                    Rang::Yes(end) => Some(end),
                    Rang::No => None,
                    Rang::Busy => unreachable!("nobody else moves"),
                };
                self.to_receiver.push_back(ToReceiver::Rung(phase, end));
            }
        }
    }

    fn read(&mut self, room: usize) {
        let mut left = room;
        assert!(self.there.direction.enter(|| {}));
        while left > 0 {
            match self.rx.next(self.there.pipe()).unwrap() {
                Next::Tcp { limit } => {
                    let limit = usize::try_from(limit).unwrap_or(left);
                    let count = left.min(self.queue.len()).min(limit);
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        let item = self.queue.pop_front();
                        assert_eq!(item, Some(Item::Data(byte(self.got))), "a byte of TCP");
                        self.got += 1;
                    }
                    self.rx.took(count as u64);
                    left -= count;
                }
                Next::Ring { bytes } => {
                    let mut into = vec![0; left.min(bytes)];
                    self.rx.peek(self.there.pipe(), 0, &mut into);
                    for found in &into {
                        assert_eq!(*found, byte(self.got), "a byte of the ring");
                        self.got += 1;
                    }
                    self.rx.take(&self.there.direction, into.len());
                    left -= into.len();
                }
                Next::Bells { bytes } => {
                    let count = self.queue.len().min(bytes as usize);
                    for _ in 0..count {
                        assert_eq!(self.queue.pop_front(), Some(Item::Bell));
                    }
                    self.rx.took(count as u64);
                    if (count as u64) < bytes {
                        break;
                    }
                }
                Next::Empty => break,
            }
        }
        self.there.direction.leave();
    }

    fn settle(&mut self) {
        assert!(self.there.direction.enter(|| {}));
        if self.rx.next(self.there.pipe()).unwrap() == Next::Empty {
            let drop = match self.rx.settle(self.there.pipe()).unwrap() {
                Settled::Quiet { drop } | Settled::Bytes { drop } => drop,
                Settled::Asked => 0,
            };
            for _ in 0..drop {
                // They were sent: the library waits for those that have not arrived.
                let item = self.queue.pop_front().or_else(|| self.wire.pop_front());
                assert_eq!(item, Some(Item::Bell));
            }
            self.rx.took(drop);
        }
        self.there.direction.leave();
    }

    /// Everything that is on its way arrives, and the nodes look until they find nothing.
    fn come_to_rest(&mut self) {
        for _ in 0..400 {
            for step in [Move::Pump, Move::Look, Move::ToReceiver, Move::ToSender] {
                self.apply(step);
            }
            self.apply(Move::Arrive(usize::MAX));
        }
    }
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => (1..50usize).prop_map(Move::Write),
        2 => Just(Move::ToRing),
        2 => Just(Move::ToTcp),
        6 => Just(Move::Pump),
        3 => Just(Move::Look),
        6 => Just(Move::ToReceiver),
        6 => Just(Move::ToSender),
        4 => (1..60usize).prop_map(Move::Arrive),
        5 => (1..100usize).prop_map(Move::Read),
        3 => Just(Move::Settle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_byte_comes_once_and_in_order(moves in prop::collection::vec(any_move(), 1..300)) {
        let mut world = World::new();
        for step in moves {
            world.apply(step);
        }
        world.come_to_rest();
        // A program that waits in the kernel is woken for each of them.
        for _ in 0..2000 {
            if world.got == world.sent {
                break;
            }
            prop_assert!(!world.queue.is_empty(), "{} of {} read, and no bell", world.got, world.sent);
            world.read(50);
            world.settle();
            world.come_to_rest();
        }
        prop_assert_eq!(world.got, world.sent);
        world.settle();
        prop_assert!(world.queue.iter().all(|item| *item == Item::Bell));
    }

    /// A program, or another node, that says anything gets an error, never a panic.
    #[test]
    fn a_hostile_program_is_refused(
        head in any::<u64>(), phase in any::<u32>(), tcp in any::<u64>(), ring in any::<u64>(), tail in any::<u64>(),
        seen in any::<u32>(), end in any::<u64>(), count in 0..200usize,
    ) {
        let mut world = World::new();
        world.here.direction.publish(Phase(phase), Record { tcp, ring });
        world.here.direction.set_head(head);
        let mut into = [0; 100];
        for _ in 0..4 {
            if world.taker.take(world.here.pipe(), &mut into).is_err() {
                break;
            }
        }
        let _ = world.taker.told(&world.here.direction, tail, Phase(seen));
        let mut world = World::new();
        world.there.direction.set_tail(tail);
        world.there.direction.set_seen(Phase(seen));
        let record = Record { tcp, ring };
        for phase in [phase, 1, 2] {
            let _ = world.giver.switch(&world.there.direction, Phase(phase), record);
            let _ = world.giver.write(world.there.pipe(), &vec![1; count]);
            let _ = world.giver.rung(&world.there.direction, Phase(phase), Some(end));
            let _ = world.giver.wants_bell(&world.there.direction);
        }
    }
}
