//! All interleavings of a few moves, with loom: `RUSTFLAGS="--cfg loom" cargo test -p skein-link-core --release ring::model`.

use super::direction::Bell;
use super::*;
use core::ptr::NonNull;
use loom::sync::{Arc, Mutex};
use loom::thread;

const CAPACITY: usize = 8;

/// What lies in the receiver's kernel socket: data, then bells.
#[derive(Default)]
struct Wire {
    data: u64,
    bells: u64,
}

struct Shared {
    direction: Direction,
    /// Not looked at: only indices are modelled.
    data: [u8; CAPACITY],
    wire: Mutex<Wire>,
}

fn pipe(shared: &Shared) -> Pipe<'_> {
    // SAFETY: no byte of it is read or written in these models: writes are of indices, through `announce`.
    unsafe {
        let data = NonNull::from(&shared.data).cast();
        Pipe::from_parts(&shared.direction, data, CAPACITY, Reach::Near)
    }
}

fn shared() -> Arc<Shared> {
    let wire = Mutex::new(Wire::default());
    Arc::new(Shared { direction: Direction::new(), data: [0; CAPACITY], wire })
}

/// The same, with a sender that has taken the ring.
fn on_ring() -> (Arc<Shared>, Tx) {
    let shared = shared();
    let mut tx = Tx::new(0);
    tx.to_ring(&shared.direction).unwrap();
    (shared, tx)
}

/// A thread of its own for somebody's moves.
fn aside<T: 'static>(
    shared: &Arc<Shared>,
    moves: impl FnOnce(&Shared) -> T + 'static,
) -> thread::JoinHandle<T> {
    let shared = Arc::clone(shared);
    thread::spawn(move || moves(&shared))
}

/// One byte into the ring, and its bell.
fn announce(shared: &Shared, tx: &mut Tx) {
    shared.direction.begin_write();
    tx.publish_for_model(&shared.direction);
    if tx.bell(&shared.direction).unwrap() {
        shared.wire.lock().unwrap().bells += 1;
    }
    shared.direction.wrote();
}

/// A receiver that is about to wait never waits while there are bytes and no bell.
#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let (shared, mut tx) = on_ring();
        let mut rx = Rx::new(0);
        let sender = aside(&shared, move |shared| {
            announce(shared, &mut tx);
            announce(shared, &mut tx);
        });
        // Reads a byte if there is one, then settles.
        let dir = &shared.direction;
        assert!(dir.enter(thread::yield_now));
        if let Next::Ring { .. } = rx.next(pipe(&shared)).unwrap() {
            rx.take(dir, 1);
        }
        let mut owed = 0;
        if rx.next(pipe(&shared)).unwrap() == Next::Empty {
            owed = match rx.settle(pipe(&shared)).unwrap() {
                Settled::Quiet { drop } | Settled::Bytes { drop } => drop,
                Settled::Asked => unreachable!("the other end is near"),
            };
        }
        dir.leave();
        sender.join().unwrap();
        // The bells it has to drop are there by now; a settling receiver waits for them.
        let mut wire = shared.wire.lock().unwrap();
        assert!(wire.bells >= owed, "it waits for a bell that does not come");
        wire.bells -= owed;
        if dir.head() != rx.tail() {
            assert!(wire.bells > 0, "bytes in the ring, no bell in the socket");
        }
    });
}

/// A receiver that dozes, its bell rung and left where it is, is woken by the next byte, and by the end of the ring phase.
#[test]
fn who_dozes_is_woken() {
    for leaves in [false, true] {
        loom::model(move || {
            let (shared, mut tx) = on_ring();
            let dir = &shared.direction;
            let mut rx = Rx::new(0);
            announce(&shared, &mut tx);
            assert!(matches!(rx.next(pipe(&shared)), Ok(Next::Ring { bytes: 1 })));
            rx.take(dir, 1);
            assert!(rx.is_unsettled(dir));
            let sender = aside(&shared, move |shared| {
                let dir = &shared.direction;
                if leaves {
                    tx.to_tcp(dir);
                } else {
                    announce(shared, &mut tx);
                    if !dir.seems_dozing() {
                        return false;
                    }
                }
                dir.take_dozing()
            });
            dir.doze();
            let sleeps = !rx.stirs(dir);
            let woken = sender.join().unwrap();
            assert!(woken || !sleeps, "it sleeps beside bytes");
        });
    }
}

/// A sender that leaves the ring while the receiver reads: what comes on TCP then is no bell, and the ring's next phase does not
/// begin before the receiver has come out.
#[test]
fn a_ring_phase_ends_under_a_reader() {
    loom::model(|| {
        let (shared, mut tx) = on_ring();
        let mut rx = Rx::new(0);
        let sender = aside(&shared, move |shared| {
            let dir = &shared.direction;
            announce(shared, &mut tx);
            tx.to_tcp(dir);
            shared.wire.lock().unwrap().data += 1;
            tx.sent(dir, 1);
            if tx.to_ring(dir).is_ok() {
                tx.publish_for_model(dir);
            }
        });
        let dir = &shared.direction;
        if dir.enter(thread::yield_now) {
            let mut taken = 0;
            let owed = loop {
                match rx.next(pipe(&shared)).unwrap() {
                    Next::Ring { bytes } => {
                        rx.take(dir, bytes);
                        taken += bytes;
                    }
                    Next::Bells { bytes } => break bytes,
                    Next::Empty => match rx.settle(pipe(&shared)).unwrap() {
                        Settled::Quiet { drop } => break drop,
                        Settled::Bytes { drop } if drop > 0 => break drop,
                        Settled::Bytes { .. } => {}
                        Settled::Asked => unreachable!("the other end is near"),
                    },
                    // Between two phases: nothing to drop.
                    Next::Tcp { .. } => break 0,
                }
            };
            // The second byte on the ring comes after one of TCP, which was not read.
            assert!(taken <= 1, "a byte of a later phase");
            // One byte went to the ring in the first phase, and one bell for it.
            assert!(owed <= 1, "data are dropped for bells");
            dir.leave();
        }
        sender.join().unwrap();
    });
}

/// In its critical section a receiver on TCP never reads a bell as data.
#[test]
fn phases_do_not_change_under_a_reader() {
    loom::model(|| {
        let shared = shared();
        let sender = aside(&shared, move |shared| {
            let mut tx = Tx::new(0);
            shared.wire.lock().unwrap().data += 1;
            tx.sent(&shared.direction, 1);
            if tx.to_ring(&shared.direction).is_ok() {
                announce(shared, &mut tx);
            }
        });
        let mut rx = Rx::new(0);
        let dir = &shared.direction;
        if dir.enter(thread::yield_now) {
            if let Next::Tcp { limit } = rx.next(pipe(&shared)).unwrap() {
                let mut wire = shared.wire.lock().unwrap();
                let most = limit.min(wire.data + wire.bells);
                assert!(most <= wire.data, "a bell was read as data");
                wire.data -= most;
                rx.took(most);
            }
            dir.leave();
        }
        sender.join().unwrap();
    });
}

/// After a refusal, and once no write is in progress, nothing comes on the ring.
#[test]
fn a_refused_ring_stays_as_it_is() {
    loom::model(|| {
        let (shared, mut tx) = on_ring();
        let sender = aside(&shared, move |shared| {
            if shared.direction.begin_write() == Refusal::None {
                tx.publish_for_model(&shared.direction);
            }
            shared.direction.wrote();
        });
        shared.direction.refuse(Refusal::NoMore);
        let quiet = !shared.direction.is_writing();
        let seen = shared.direction.head();
        sender.join().unwrap();
        if quiet {
            assert_eq!(shared.direction.head(), seen, "bytes came after the refusal");
        }
    });
}

/// The last bell of a phase and a node that rings: each bell is counted, and none follows the phase.
#[test]
fn a_node_rings_in_its_phase_only() {
    loom::model(|| {
        let (shared, mut tx) = on_ring();
        shared.direction.set_placed(Phase(1));
        let node = aside(&shared, move |shared| {
            far::Taker::default().ring(&shared.direction, Phase(1), || {
                shared.wire.lock().unwrap().bells += 1;
                Some(true)
            })
        });
        let left = tx.leave_far(&shared.direction, || {
            shared.wire.lock().unwrap().bells += 1;
            true
        });
        node.join().unwrap();
        let bells = shared.wire.lock().unwrap().bells;
        let counted = if left.is_ok() { tx.tcp() } else { shared.direction.bell().end };
        assert_eq!(bells, counted);
    });
}

/// A refusal that a node passes on, and a sender that leaves the ring: either it rings before the node finds it at rest, or not at
/// all.
#[test]
fn no_bell_follows_a_refusal_that_was_heard() {
    loom::model(|| {
        let (shared, mut tx) = on_ring();
        shared.direction.set_placed(Phase(1));
        let sender = aside(&shared, move |shared| {
            let _ = tx.leave_far(&shared.direction, || {
                shared.wire.lock().unwrap().bells += 1;
                true
            });
        });
        shared.direction.refuse(Refusal::NoMore);
        // At rest in the phase that the node knows: what it has told the receiver is all.
        let is_at_rest = !shared.direction.is_changing() && shared.direction.phase() == Phase(1);
        let bells = shared.wire.lock().unwrap().bells;
        sender.join().unwrap();
        if is_at_rest {
            assert_eq!(shared.wire.lock().unwrap().bells, bells);
        }
    });
}

/// Names the type that the models look into.
#[test]
fn a_bell_is_armed_at_first() {
    loom::model(|| assert_eq!(Direction::new().bell(), Bell { end: 0, rung: false }));
}
