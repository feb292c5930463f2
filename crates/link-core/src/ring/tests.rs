//! Properties of the ring and the switch: random moves of both sides over a model of TCP.

use super::*;
use core::ptr::NonNull;
use proptest::prelude::*;
use std::collections::VecDeque;

/// What lies in the receiver's kernel socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Data(u8),
    Bell,
}

/// A move of one side.
#[derive(Debug, Clone, Copy)]
enum Move {
    /// The sender writes that many bytes on the path it is on.
    Write(usize),
    ToRing,
    ToTcp,
    /// The receiver's program reads with a buffer of that size, and takes less than there is.
    Read(usize),
    /// The receiver's program is about to wait.
    Settle,
    /// The receiver wants its bytes back on TCP.
    Recall,
}

const CAPACITY: usize = 64;

struct World {
    direction: Direction,
    memory: Box<[u8; CAPACITY]>,
    tx: Tx,
    rx: Rx,
    tcp: VecDeque<Item>,
    sent: u64,
    got: u64,
}

const fn byte(position: u64) -> u8 {
    (position * 7 % 251) as u8
}

impl World {
    fn new() -> Self {
        Self {
            direction: Direction::new(),
            memory: Box::new([0; CAPACITY]),
            tx: Tx::new(1000),
            rx: Rx::new(1000),
            tcp: VecDeque::new(),
            sent: 0,
            got: 0,
        }
    }

    #[expect(unsafe_code, reason = "the memory is the world's own and lives as long")]
    fn pipe<'a>(direction: &'a Direction, memory: &mut Box<[u8; CAPACITY]>) -> Pipe<'a> {
        let data = NonNull::from(&mut **memory).cast();
        // SAFETY: 64 bytes of the world's own.
        unsafe { Pipe::from_parts(direction, data, CAPACITY, Reach::Near) }
    }

    fn apply(&mut self, step: Move) {
        let pipe = Self::pipe(&self.direction, &mut self.memory);
        let dir = &self.direction;
        match step {
            Move::Write(count) => {
                let bytes: Vec<u8> = (0..count as u64).map(|i| byte(self.sent + i)).collect();
                if self.tx.on_ring() {
                    assert_eq!(dir.begin_write(), Refusal::None);
                    self.sent += self.tx.write(pipe, &bytes).unwrap() as u64;
                    if self.tx.bell(dir).unwrap() {
                        self.tcp.push_back(Item::Bell);
                    }
                    dir.wrote();
                } else {
                    self.tcp.extend(bytes.iter().map(|byte| Item::Data(*byte)));
                    self.tx.sent(dir, count as u64);
                    self.sent += count as u64;
                }
            }
            Move::ToRing => {
                if !self.tx.on_ring() {
                    let _ = self.tx.to_ring(dir);
                }
            }
            Move::ToTcp => {
                if self.tx.on_ring() {
                    self.tx.to_tcp(dir);
                }
            }
            Move::Read(room) => self.read(room),
            Move::Settle => self.settle(),
            Move::Recall => self.recall(),
        }
    }

    fn read(&mut self, room: usize) {
        let pipe = Self::pipe(&self.direction, &mut self.memory);
        assert!(self.direction.enter(|| {}));
        let mut left = room;
        while left > 0 {
            match self.rx.next(pipe).unwrap() {
                Next::Tcp { limit } => {
                    let count =
                        left.min(self.tcp.len()).min(usize::try_from(limit).unwrap_or(left));
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        let item = self.tcp.pop_front();
                        assert_eq!(item, Some(Item::Data(byte(self.got))), "a byte of TCP");
                        self.got += 1;
                    }
                    self.rx.took(count as u64);
                    left -= count;
                }
                Next::Ring { bytes } => {
                    let count = left.min(bytes);
                    let mut into = vec![0; count];
                    self.rx.peek(pipe, 0, &mut into);
                    for found in into {
                        assert_eq!(found, byte(self.got), "a byte of the ring");
                        self.got += 1;
                    }
                    self.rx.take(&self.direction, count);
                    left -= count;
                }
                Next::Bells { bytes } => {
                    for _ in 0..bytes {
                        assert_eq!(self.tcp.pop_front(), Some(Item::Bell));
                    }
                    self.rx.took(bytes);
                }
                Next::Empty => break,
            }
        }
        self.direction.leave();
    }

    fn settle(&mut self) {
        let pipe = Self::pipe(&self.direction, &mut self.memory);
        assert!(self.direction.enter(|| {}));
        if self.rx.next(pipe).unwrap() == Next::Empty {
            let drop = match self.rx.settle(pipe).unwrap() {
                Settled::Quiet { drop } | Settled::Bytes { drop } => drop,
                Settled::Asked => unreachable!("the other end is near"),
            };
            for _ in 0..drop {
                assert_eq!(self.tcp.pop_front(), Some(Item::Bell));
            }
            self.rx.took(drop);
            assert!(self.tcp.is_empty(), "nothing to read, and the socket is readable");
        }
        self.direction.leave();
    }

    /// The receiver leaves: what it has not read from the ring comes on TCP.
    fn recall(&mut self) {
        if !self.tx.on_ring() || !self.tx.is_seen(&self.direction) {
            return;
        }
        let tail = self.direction.tail();
        let unread = (self.tx.head() - tail) as usize;
        self.direction.refuse(Refusal::Recall);
        self.tx.back_to_tcp(&self.direction, tail).unwrap();
        let first = self.sent - unread as u64;
        self.tcp.extend((0..unread as u64).map(|i| Item::Data(byte(first + i))));
        self.tx.sent(&self.direction, unread as u64);
        self.direction.refuse(Refusal::None);
    }

    /// Whenever there are bytes to read, the kernel's socket is readable.
    fn check(&self) {
        if self.got < self.sent {
            assert!(!self.tcp.is_empty(), "{} bytes to read, and no bell", self.sent - self.got);
        }
    }
}

impl World {
    /// Who looks ahead sees all that is there, over all changes of path, and his sender does not notice.
    fn look(&mut self) {
        let pipe = Self::pipe(&self.direction, &mut self.memory);
        let (mut ahead, seen, mut queue) = (self.rx, self.direction.seen(), self.tcp.iter());
        let mut at = self.got;
        let mut take = |item: &Item| {
            assert_eq!(*item, Item::Data(byte(at)));
            at += 1;
        };
        loop {
            match ahead.look(pipe).unwrap() {
                Next::Ring { bytes } => {
                    let mut into = vec![0; bytes];
                    ahead.peek(pipe, 0, &mut into);
                    ahead.pass(bytes);
                    into.into_iter().map(Item::Data).for_each(|item| take(&item));
                }
                Next::Bells { bytes } => {
                    let bells = queue.by_ref().take(bytes as usize);
                    assert!(bells.eq(&vec![Item::Bell; bytes as usize]));
                    ahead.took(bytes);
                }
                Next::Tcp { limit } => {
                    let most = usize::try_from(limit).unwrap_or(usize::MAX);
                    let count = queue.by_ref().take(most).map(&mut take).count() as u64;
                    ahead.took(count);
                    if count < limit {
                        break;
                    }
                }
                Next::Empty => break,
            }
        }
        assert_eq!((at, self.direction.seen()), (self.sent, seen));
    }
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => (1..100usize).prop_map(Move::Write),
        2 => Just(Move::ToRing),
        2 => Just(Move::ToTcp),
        5 => (1..100usize).prop_map(Move::Read),
        3 => Just(Move::Settle),
        1 => Just(Move::Recall),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_byte_comes_once_and_in_order(moves in prop::collection::vec(any_move(), 1..200)) {
        let mut world = World::new();
        for step in moves {
            world.apply(step);
            world.check();
            world.look();
        }
        world.read(usize::MAX);
        prop_assert_eq!(world.got, world.sent);
        world.settle();
    }

    /// A peer that writes anything into the shared words gets an error or wrong bytes of its own, never a panic.
    #[test]
    fn a_hostile_sender_is_refused(
        head in any::<u64>(), phase in any::<u32>(), bell in any::<u64>(), tcp in any::<u64>(), ring in any::<u64>(),
    ) {
        let mut world = World::new();
        let pipe = World::pipe(&world.direction, &mut world.memory);
        let dir = &world.direction;
        dir.publish(Phase(phase), Record { tcp, ring });
        dir.set_head(head);
        dir.reset_bell(direction::Bell { end: bell >> 1, rung: bell & 1 == 1 });
        for _ in 0..4 {
            match world.rx.next(pipe) {
                Ok(Next::Ring { bytes }) => {
                    prop_assert!(bytes <= CAPACITY);
                    let mut into = vec![0; bytes];
                    world.rx.peek(pipe, 0, &mut into);
                    world.rx.take(dir, bytes);
                }
                Ok(Next::Empty) => { let _ = world.rx.settle(pipe); }
                Ok(Next::Bells { bytes }) => world.rx.took(bytes),
                Ok(Next::Tcp { .. }) | Err(_) => break,
            }
        }
    }

    #[test]
    fn a_hostile_receiver_is_refused(tail in any::<u64>(), bell in any::<u64>()) {
        let mut world = World::new();
        world.apply(Move::ToRing);
        let pipe = World::pipe(&world.direction, &mut world.memory);
        world.direction.set_tail(tail);
        world.direction.reset_bell(direction::Bell { end: bell >> 1, rung: bell & 1 == 1 });
        let _ = world.tx.write(pipe, &[1; 100]).map(|count| assert!(count <= CAPACITY));
        let _ = world.tx.bell(&world.direction);
    }
}

#[test]
fn a_sender_that_died_is_mended() {
    // After the bell was announced and before it was sent.
    let mut world = World::new();
    world.apply(Move::ToRing);
    let pipe = World::pipe(&world.direction, &mut world.memory);
    let stale = world.tx;
    world.tx.write(pipe, b"x").unwrap();
    assert!(world.tx.bell(&world.direction).unwrap());
    let mut heir = stale;
    assert_eq!(heir.recover(pipe, 1000), Ok(true), "the bell did not go out");
    assert_eq!(heir, world.tx);
    let mut heir = stale;
    assert_eq!(heir.recover(pipe, 1001), Ok(false), "it did");
    let mut heir = stale;
    assert_eq!(heir.recover(pipe, 1003), Err(Broken::Foreign));
}

#[test]
fn a_sender_that_is_far_ahead_stays_on_tcp() {
    let mut world = World::new();
    for _ in 0..100 {
        world.apply(Move::ToRing);
        world.apply(Move::Write(1));
        world.apply(Move::ToTcp);
        world.apply(Move::Write(1));
    }
    assert!(!world.tx.on_ring());
    assert!(world.direction.phase().0 < LOG);
    world.read(usize::MAX);
    assert_eq!(world.got, world.sent);
    world.apply(Move::ToRing);
    assert!(world.tx.on_ring(), "when the receiver has caught up, the ring is taken again");
}
