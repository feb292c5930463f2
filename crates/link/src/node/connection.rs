//! One program's connection: from its ring to a channel and back.

use super::frame::{BYTES_HEAD, Decoder, Frame, bytes_head};
use super::hub::{Hub, PeerIndex};
use crate::remote::{ConnectionKey, Local, Outgoing, Switch, Written};
use rustix::event::epoll;
use skein_link_core::light::ChannelId;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// What is taken from a ring at a time: a train of segments.
const PIECE: usize = 64 * 1024;
/// Kept free in a channel for what must not wait: bells and ends.
const RESERVE: usize = 64;
/// Less room than this is not worth reading for.
const ROOM_MIN: usize = 1500;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Our program is here; the peer's node opens the channel when its program is.
    Waiting,
    /// We have opened the channel; the peer's node says when its program is there.
    Calling(ChannelId),
    /// Both are there.
    Joined(ChannelId),
}

/// What a round found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Something was done.
    Work,
    /// Nothing to do.
    Nothing,
    /// Both directions have ended.
    Over,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the program broke its ring")]
    Program(#[source] io::Error),
    #[error("the other node said something that means nothing")]
    Nonsense,
    #[error("the channel is gone")]
    Channel,
}

pub(super) struct Connection {
    pub(super) key: ConnectionKey,
    pub(super) peer: PeerIndex,
    pub(super) phase: Phase,
    local: Box<dyn Local>,
    decoder: Decoder,
    /// A change of path for which the program had no room yet.
    switch: Option<Switch>,
    owes_bell: bool,
    ended_here: bool,
    ended_there: bool,
    piece: Vec<u8>,
    is_registered: bool,
}

impl Connection {
    pub(super) fn new(
        key: ConnectionKey,
        peer: PeerIndex,
        phase: Phase,
        local: Box<dyn Local>,
    ) -> Self {
        Self {
            key,
            peer,
            phase,
            local,
            decoder: Decoder::default(),
            switch: None,
            owes_bell: false,
            ended_here: false,
            ended_there: false,
            piece: Vec::new(),
            is_registered: false,
        }
    }

    pub(super) fn local(&mut self) -> &mut dyn Local {
        self.local.as_mut()
    }

    pub(super) fn wake(&self) -> std::os::fd::BorrowedFd<'_> {
        self.local.wake()
    }

    pub(super) fn channel(&self) -> Option<ChannelId> {
        match self.phase {
            Phase::Waiting => None,
            Phase::Calling(channel) | Phase::Joined(channel) => Some(channel),
        }
    }

    /// Asks to be woken through `wakes`, under the number `id`, when the program has something; `false` if it has already.
    pub(super) fn listen(&mut self, wakes: &OwnedFd, id: u64) -> Result<bool, Broken> {
        if !self.is_registered {
            let data = epoll::EventData::new_u64(id);
            epoll::add(wakes, self.local.wake(), data, epoll::EventFlags::IN)
                .map_err(|errno| Broken::Program(errno.into()))?;
            self.is_registered = true;
        }
        Ok(self.local.arm())
    }

    /// Both ends are there.
    pub(super) fn join(&mut self, channel: ChannelId) -> Result<(), Broken> {
        self.phase = Phase::Joined(channel);
        self.local.join().map_err(Broken::Program)
    }

    /// Bytes of the channel, next in turn; how many could be used.
    pub(super) fn feed(&mut self, input: &[u8]) -> Result<usize, Broken> {
        let mut used = 0;
        loop {
            if !self.give_switch()? {
                return Ok(used);
            }
            let (frame, taken) = self.decoder.next(&input[used..]).map_err(|_| Broken::Nonsense)?;
            used += taken;
            match frame {
                None if taken == 0 => return Ok(used),
                None => {}
                Some(Frame::Bytes(bytes)) => {
                    let written = self.local.write(bytes).map_err(Broken::Program)?;
                    let (Written::Quiet(kept) | Written::Bell(kept)) = written;
                    self.owes_bell |= matches!(written, Written::Bell(_));
                    if kept < bytes.len() {
                        self.decoder.give_back(bytes.len() - kept);
                        return Ok(used - (bytes.len() - kept));
                    }
                }
                Some(Frame::Switch(switch)) => self.switch = Some(switch),
                Some(Frame::Joined) => match self.phase {
                    Phase::Calling(channel) => self.join(channel)?,
                    Phase::Waiting | Phase::Joined(_) => return Err(Broken::Nonsense),
                },
                // A broken TCP connection is the program's to notice.
                Some(Frame::Bell) => drop(self.local.ring_bell()),
                Some(Frame::End) => {
                    self.ended_there = true;
                    self.local.end().map_err(Broken::Program)?;
                }
            }
        }
    }

    /// Tells the program of a change of path that waits; `false` if it has no room for it.
    fn give_switch(&mut self) -> Result<bool, Broken> {
        let Some(switch) = self.switch else { return Ok(true) };
        match self.local.switch(switch) {
            Ok(()) => {
                self.switch = None;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(Broken::Program(error)),
        }
    }

    /// One round in both directions.
    pub(super) fn pump(&mut self, hub: &mut Hub) -> Result<Found, Broken> {
        let Some(channel) = self.channel() else { return Ok(Found::Nothing) };
        let mut found = self.drain(hub, channel)?;
        if !matches!(self.phase, Phase::Joined(_)) {
            return Ok(found);
        }
        if self.owes_bell && self.say(hub, channel, Frame::Bell)? {
            self.owes_bell = false;
            found = Found::Work;
        }
        if !self.ended_here && self.send(hub, channel)? {
            found = Found::Work;
        }
        if self.ended_here && self.ended_there && !self.owes_bell {
            hub.session(self.peer).finish(channel).map_err(|_| Broken::Channel)?;
            return Ok(Found::Over);
        }
        Ok(found)
    }

    /// Gives the program what waits in the channel.
    fn drain(&mut self, hub: &mut Hub, channel: ChannelId) -> Result<Found, Broken> {
        let now = hub.now();
        let peer = self.peer;
        let mut found = Found::Nothing;
        loop {
            // The first piece only: the second follows when the first is used up.
            let (first, second) =
                hub.session(peer).readable(channel).map_err(|_| Broken::Channel)?;
            let piece = if first.is_empty() { second } else { first };
            if piece.is_empty() && self.switch.is_none() {
                return Ok(found);
            }
            let used = self.feed(piece)?;
            if used == 0 {
                return Ok(found);
            }
            found = Found::Work;
            hub.session(peer).consume(channel, used, now).map_err(|_| Broken::Channel)?;
        }
    }

    /// Says something short; `false` if there is no room.
    fn say(&self, hub: &mut Hub, channel: ChannelId, frame: Frame<'_>) -> Result<bool, Broken> {
        let (head, length) = frame.head();
        let session = hub.session(self.peer);
        let (room, _) = session.room(channel).map_err(|_| Broken::Channel)?;
        if room < length {
            return Ok(false);
        }
        session.write(channel, &head[..length]).map_err(|_| Broken::Channel)?;
        Ok(true)
    }

    /// Sends what the program has written; whether there was anything.
    fn send(&mut self, hub: &mut Hub, channel: ChannelId) -> Result<bool, Broken> {
        let session = hub.session(self.peer);
        let (room, _) = session.room(channel).map_err(|_| Broken::Channel)?;
        if room < ROOM_MIN {
            return Ok(false);
        }
        let length = (room - RESERVE - BYTES_HEAD).min(PIECE);
        self.piece.resize(BYTES_HEAD + PIECE, 0);
        let into = &mut self.piece[BYTES_HEAD..][..length];
        match self.local.read(into).map_err(Broken::Program)? {
            Outgoing::Bytes(count) => {
                let count = count.min(length);
                self.piece[..BYTES_HEAD].copy_from_slice(&bytes_head(count));
                let piece = &self.piece[..BYTES_HEAD + count];
                session.write(channel, piece).map_err(|_| Broken::Channel)?;
                Ok(true)
            }
            Outgoing::Switch(switch) => self.say(hub, channel, Frame::Switch(switch)),
            Outgoing::Empty => Ok(false),
            Outgoing::End => {
                self.ended_here = self.say(hub, channel, Frame::End)?;
                Ok(true)
            }
        }
    }
}

/// What a node gives with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// A connection of two programs.
    Connection(ConnectionKey),
    /// A stream that is thrown away: it only shows how fast a way is.
    Race,
}

impl Opening {
    pub(super) fn write(&self) -> Vec<u8> {
        match self {
            Self::Race => vec![2],
            Self::Connection(key) => {
                let mut bytes = vec![1];
                for address in [key.low, key.high] {
                    match address.ip() {
                        IpAddr::V4(ip) => {
                            bytes.push(4);
                            bytes.extend_from_slice(&ip.octets());
                        }
                        IpAddr::V6(ip) => {
                            bytes.push(6);
                            bytes.extend_from_slice(&ip.octets());
                        }
                    }
                    bytes.extend_from_slice(&address.port().to_be_bytes());
                }
                bytes
            }
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (2, []) => Some(Self::Race),
            (1, rest) => {
                let (low, rest) = read_address(rest)?;
                let (high, rest) = read_address(rest)?;
                let ordered = rest.is_empty() && low <= high;
                ordered.then_some(Self::Connection(ConnectionKey { low, high }))
            }
            _ => None,
        }
    }
}

fn read_address(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (ip, rest) = match kind {
        4 => {
            let (ip, rest) = rest.split_first_chunk::<4>()?;
            (IpAddr::from(*ip), rest)
        }
        6 => {
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            (IpAddr::from(*ip), rest)
        }
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk::<2>()?;
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_survive() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (one, other) in [("10.0.0.1:80", "10.0.0.2:4000"), ("[fd00::1]:80", "10.0.0.2:4000")] {
            let opening = Opening::Connection(ConnectionKey::new(address(one), address(other)));
            let bytes = opening.write();
            assert_eq!(Opening::read(&bytes), Some(opening));
            for cut in 0..bytes.len() {
                assert_eq!(Opening::read(&bytes[..cut]), None);
            }
        }
        assert_eq!(Opening::read(&Opening::Race.write()), Some(Opening::Race));
        assert_eq!(Opening::read(&[2, 0]), None);
    }
}
