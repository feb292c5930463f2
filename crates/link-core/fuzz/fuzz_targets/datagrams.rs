//! Two sessions that have a channel between them, and whatever else comes over the wire.
//!
//! The input is a row of datagrams, each with a byte in front: its length, and in the two highest bits whether it gets the
//! session's tag and the channel's number, as an attacker who sees the wire would give it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_link_core::light::{AgentId, Config, Event, Header, Key, Moment, Session};

fn session(me: u64, peer: u64) -> Session {
    let key = Key::new([1; 32]);
    Session::new(Config::new(AgentId(me), AgentId(peer), key, me, [2; 32]))
}

/// Carries datagrams both ways until both are silent; the last one.
fn settle(one: &mut Session, other: &mut Session, now: Moment) -> Vec<u8> {
    let (mut buffer, mut last) = (vec![0; 2000], Vec::new());
    loop {
        let mut any = false;
        while let Some(length) = one.transmit(now, &mut buffer) {
            other.receive(&buffer[..length], now);
            last = buffer[..length].to_vec();
            any = true;
        }
        while let Some(length) = other.transmit(now, &mut buffer) {
            one.receive(&buffer[..length], now);
            any = true;
        }
        if !any {
            return last;
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let (mut one, mut other) = (session(1, 2), session(2, 1));
    let mut now = Moment::from_nanos(1);
    one.call(now);
    settle(&mut one, &mut other, now);
    let channel = one.open(b"fuzz").expect("a session");
    one.write(channel, &[0x5a; 5000]).expect("a channel");
    let known = settle(&mut one, &mut other, now);
    let (known, _) = Header::read(&known, 0).expect("a datagram");
    let mut rest = input;
    while let Some((head, tail)) = rest.split_first() {
        let (datagram, after) = tail.split_at(usize::from(head & 0x3f).min(tail.len()));
        rest = after;
        let mut datagram = datagram.to_vec();
        // Where tag and number are; those that say no length have them two bytes earlier.
        let at = if datagram.first().is_some_and(|first| first >> 4 == 6) { 10 } else { 12 };
        if head & 0x40 != 0 && datagram.len() >= 16 {
            datagram[at..at + 2].copy_from_slice(&known.session.0.to_be_bytes());
        }
        if head & 0x80 != 0 && datagram.len() >= 16 {
            datagram[at + 2..at + 4].copy_from_slice(&known.channel.0.to_be_bytes());
        }
        one.receive(&datagram, now);
        other.receive(&datagram, now);
        now = Moment::from_nanos(now.as_nanos() + 1_000_000);
        settle(&mut one, &mut other, now);
        for session in [&mut one, &mut other] {
            while let Some(event) = session.event() {
                if let Event::Readable(channel) = event {
                    let length = session.readable(channel).map_or(0, |(a, b)| a.len() + b.len());
                    let _ = session.consume(channel, length, now);
                }
            }
            assert!(session.flight().1 <= 5010, "nobody wrote more");
        }
    }
});
