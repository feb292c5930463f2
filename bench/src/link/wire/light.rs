//! The light protocol between two hosts, driven by one thread at each end.

use super::run::{Meter, Stop};
use skein_link::carrier::{Address, Ethernet, Neighbour, Udp, neighbour_of};
use skein_link::node::{Clock, Hub, PeerIndex, Way};
use skein_link::testbed::Host;
use skein_link_core::light::{AgentId, ChannelId, Config, Event, Key, ResetReason};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const PORT: u16 = 4077;
/// As `NodeConfig::spin_max`.
const LOOKS: Duration = Duration::from_micros(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// How an end of a bench waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// In the kernel, after having looked for work as long as a node does at most.
    Sleeping,
    /// Never.
    Spinning,
}

/// Which carrier a bench uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Ethernet,
    Udp,
}

/// One end of a session.
pub(crate) struct End {
    pub(crate) hub: Hub,
    pub(crate) peer: PeerIndex,
    waits: Waits,
    idle_since: Option<Instant>,
}

impl End {
    /// Sets a session up; to be called on the host's own thread, at both ends.
    pub(crate) fn connect(host: Host, by: By, waits: Waits) -> io::Result<Self> {
        let remote = IpAddr::from(host.other().address());
        let local = SocketAddr::new(host.address().into(), PORT);
        let to = SocketAddr::new(remote, PORT);
        let mut hub = Hub::new(Clock::start());
        let udp = Udp::open(local).map_err(io::Error::other)?;
        let way = match by {
            By::Udp => {
                let carrier = hub.add_carrier(Box::new(udp));
                Way { carrier, address: Address::Socket(to) }
            }
            By::Ethernet => {
                let neighbour = find_neighbour(remote)?;
                let ethernet = Ethernet::open(&neighbour.interface, neighbour.mtu);
                let carrier = hub.add_carrier(Box::new(ethernet.map_err(io::Error::other)?));
                Way { carrier, address: Address::Mac(neighbour.mac) }
            }
        };
        let id = |host: Host| AgentId(u64::from(u32::from(host.address())));
        let seed = [host as u8; 32];
        let config = Config::new(id(host), id(host.other()), Key::new([7; 32]), 1, seed);
        let peer = hub.add_peer(config, way);
        let now = hub.now();
        hub.session(peer).call(now);
        let mut end = Self { hub, peer, waits, idle_since: None };
        let begun = Instant::now();
        while !end.hub.session(peer).is_established() {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no session"));
            }
            end.turn()?;
        }
        Ok(end)
    }

    /// One round: takes what came, sends what is to be sent, waits if there was nothing.
    pub(crate) fn turn(&mut self) -> io::Result<()> {
        self.turn_with(&mut |_| 0)
    }

    /// The same; `taker` takes bytes as they come.
    fn turn_with(&mut self, taker: &mut dyn FnMut(&[u8]) -> usize) -> io::Result<()> {
        self.turn_by_channel(&mut |_, bytes| taker(bytes))
    }

    fn turn_by_channel(
        &mut self,
        taker: &mut dyn FnMut(ChannelId, &[u8]) -> usize,
    ) -> io::Result<()> {
        let received = self.hub.receive(&mut |_, channel, bytes| taker(channel, bytes));
        // What came with the opening of a channel waits there.
        for channel in self.readable() {
            let now = self.hub.now();
            let session = self.hub.session(self.peer);
            // The peer may have ended it in the same train of datagrams.
            let Ok((first, second)) = session.readable(channel) else { continue };
            let bytes = [first, second].concat();
            let taken = taker(channel, &bytes);
            session.consume(channel, taken, now).map_err(io::Error::other)?;
        }
        let sent = self.hub.transmit();
        self.pause(received > 0 || sent)
    }

    /// Waits, if there was nothing to do for long enough.
    fn pause(&mut self, worked: bool) -> io::Result<()> {
        if worked || (self.waits == Waits::Sleeping && self.hub.rest()?) {
            self.idle_since = None;
        } else if self.waits == Waits::Sleeping {
            let since = *self.idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= LOOKS {
                self.hub.wait(Some(Duration::from_millis(20)), &[])?;
                self.idle_since = None;
            }
        }
        Ok(())
    }

    /// Sends as fast as the other end takes it, until told to stop.
    pub(crate) fn send_until(&mut self, stop: &Stop) -> io::Result<()> {
        let session = self.hub.session(self.peer);
        let channel = session.open(b"stream").map_err(io::Error::other)?;
        let block = vec![0x5a; 64 * 1024];
        while !stop.load(Ordering::Relaxed) {
            let session = self.hub.session(self.peer);
            while session.write(channel, &block).map_err(io::Error::other)? > 0 {}
            self.turn()?;
        }
        let now = self.hub.now();
        self.hub.session(self.peer).reset(channel, ResetReason::Aborted, now);
        self.settle()
    }

    /// Goes on for a moment, so that the other end hears the last of it.
    fn settle(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {
            self.turn()?;
        }
        Ok(())
    }

    /// Reads what comes until told to stop; the bytes that came between the moment `from` after the first byte and the
    /// end, and how long that was.
    pub(crate) fn receive_until(
        &mut self,
        warm: Duration,
        stop: &Stop,
    ) -> io::Result<(u64, Duration)> {
        let mut meter = Meter::new(warm);
        let mut block = vec![0; 64 * 1024];
        while !stop.load(Ordering::Relaxed) {
            let mut taken = 0;
            self.turn_with(&mut |bytes| {
                // As a program does: into memory of its own.
                for piece in bytes.chunks(block.len()) {
                    block[..piece.len()].copy_from_slice(piece);
                }
                taken += bytes.len() as u64;
                bytes.len()
            })?;
            std::hint::black_box(&block);
            if taken > 0 {
                meter.count(taken);
            }
        }
        let result = meter.result();
        self.settle()?;
        Ok(result)
    }

    /// Channels with something to read, by the events.
    fn readable(&mut self) -> Vec<ChannelId> {
        let session = self.hub.session(self.peer);
        let mut channels = Vec::new();
        while let Some(event) = session.event() {
            if let Event::Readable(channel) = event {
                channels.push(channel);
            }
        }
        channels
    }

    /// Reads everything that waits.
    fn drain(&mut self, channel: ChannelId) -> u64 {
        let now = self.hub.now();
        let session = self.hub.session(self.peer);
        let Ok((first, second)) = session.readable(channel) else { return 0 };
        let block = [first, second].concat();
        let copied = std::hint::black_box(&block).len();
        let _ = session.consume(channel, copied, now);
        copied as u64
    }

    /// Sends `message` and waits for as many bytes back, `rounds` times; how long each took.
    pub(crate) fn ping(&mut self, message: usize, rounds: usize) -> io::Result<Vec<Duration>> {
        let block = vec![0x5a; message];
        let session = self.hub.session(self.peer);
        let channel = session.open(b"ping").map_err(io::Error::other)?;
        let mut times = Vec::with_capacity(rounds);
        let mut answer = vec![0; message];
        for _ in 0..rounds {
            let begun = Instant::now();
            self.hub.session(self.peer).write(channel, &block).map_err(io::Error::other)?;
            let mut got = 0;
            self.hub.transmit();
            while got < message {
                self.turn_with(&mut |bytes| {
                    let into = &mut answer[got..];
                    let length = bytes.len().min(into.len());
                    into[..length].copy_from_slice(&bytes[..length]);
                    got += length;
                    length
                })?;
                if begun.elapsed() > PATIENCE {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
                }
            }
            times.push(begun.elapsed());
        }
        Ok(times)
    }

    /// Sends everything back until told to stop.
    pub(crate) fn echo_until(&mut self, stop: &Stop) -> io::Result<()> {
        let mut block = Vec::new();
        let mut channel = None;
        while !stop.load(Ordering::Relaxed) {
            self.turn_by_channel(&mut |from, bytes| {
                channel = Some(from);
                block.extend_from_slice(bytes);
                bytes.len()
            })?;
            if let Some(channel) = channel.filter(|_| !block.is_empty()) {
                self.hub.session(self.peer).write(channel, &block).map_err(io::Error::other)?;
                self.hub.transmit();
                block.clear();
            }
        }
        Ok(())
    }

    /// Opens a channel, sends `bytes`, and waits for one byte that says that all have come; how long it took.
    pub(crate) fn burst(&mut self, bytes: usize) -> io::Result<Duration> {
        let block = vec![0x5a; bytes];
        let begun = Instant::now();
        let session = self.hub.session(self.peer);
        let channel = session.open(&(bytes as u32).to_be_bytes()).map_err(io::Error::other)?;
        let mut written = 0;
        loop {
            let session = self.hub.session(self.peer);
            written += session.write(channel, &block[written..]).map_err(io::Error::other)?;
            let mut is_answered = false;
            self.turn_by_channel(&mut |from, bytes| {
                is_answered |= from == channel;
                bytes.len()
            })?;
            if is_answered {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to a burst"));
            }
        }
        let took = begun.elapsed();
        let now = self.hub.now();
        self.hub.session(self.peer).reset(channel, ResetReason::Aborted, now);
        Ok(took)
    }

    /// Answers bursts with one byte each, until told to stop.
    pub(crate) fn answer_bursts_until(&mut self, stop: &Stop) -> io::Result<()> {
        let mut expected = HashMap::new();
        while !stop.load(Ordering::Relaxed) {
            let received = self.hub.receive(&mut |_, _, _| 0);
            let mut readable = Vec::new();
            while let Some(event) = self.hub.session(self.peer).event() {
                match event {
                    Event::Opened { channel, opening } => {
                        let bytes = opening.try_into().map_or(0, u32::from_be_bytes);
                        expected.insert(channel, u64::from(bytes));
                    }
                    Event::Readable(channel) => readable.push(channel),
                    Event::Reset { channel, .. } => drop(expected.remove(&channel)),
                    _ => {}
                }
            }
            for channel in readable {
                let got = self.drain(channel);
                let Some(missing) = expected.get_mut(&channel) else { continue };
                *missing = missing.saturating_sub(got);
                if *missing == 0 {
                    // A channel that the other end has reset meanwhile needs no answer.
                    let _ = self.hub.session(self.peer).write(channel, &[1]);
                }
            }
            let sent = self.hub.transmit();
            self.pause(received > 0 || sent)?;
        }
        Ok(())
    }
}

/// Waits until the kernel knows the peer's Ethernet address.
pub(crate) fn find_neighbour(peer: IpAddr) -> io::Result<Neighbour> {
    let begun = Instant::now();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(5)))?;
    loop {
        // The discard port: whatever is sent there makes the kernel ask for the address.
        socket.send_to(b"", SocketAddr::new(peer, 9))?;
        if let Some(neighbour) = neighbour_of(peer) {
            return Ok(neighbour);
        }
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no neighbour"));
        }
        // Times out: nobody answers there.
        let _ = socket.recv(&mut [0]);
    }
}
